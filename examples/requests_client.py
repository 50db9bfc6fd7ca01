"""Fetch a page with requests, and say what protected it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import requests

from certs.credential import Credential, TrustAnchors
from transport.adapters.requests import negotiated_session, session


def main() -> int:
    """Fetch one URL; exit with 1 if its server cannot be trusted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--cert", type=Path)
    parser.add_argument("--key", type=Path)
    options = parser.parse_args()
    anchors = TrustAnchors.from_pem(options.ca.read_bytes())
    credential = options.cert and Credential.from_pem(
        options.cert.read_bytes(), options.key.read_bytes()
    )
    with session(anchors, credential=credential) as http:
        try:
            response = http.get(options.url, timeout=30)
        except requests.RequestException as error:
            print(f"not fetched: {error}", file=sys.stderr)
            return 1
        proof = negotiated_session(response)
        print(f"{proof.version}, {proof.suite}, {proof.group}", file=sys.stderr)
        print(response.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
