"""An ASGI application behind uvicorn that tells each client what was negotiated with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from certs.credential import Credential, TrustAnchors
from transport.adapters.uvicorn import run


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with the client's name and the session's facts."""
    if scope["type"] != "http":
        return
    await receive()
    session = scope["extensions"]["pfs.negotiated"]
    facts = {
        "client": scope["extensions"]["tls"]["client_cert_name"],
        "version": session.version,
        "suite": session.suite,
        "group": session.group,
    }
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(facts).encode()})


def main() -> None:
    """Serve on loopback until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--client-ca", type=Path)
    parser.add_argument("--port", type=int, default=8443)
    options = parser.parse_args()
    anchors = options.client_ca and TrustAnchors.from_pem(options.client_ca.read_bytes())
    run(
        application,
        credential=Credential.from_pem(options.cert.read_bytes(), options.key.read_bytes()),
        client_anchors=anchors,
        host="127.0.0.1",
        port=options.port,
        lifespan="off",
    )


if __name__ == "__main__":
    main()
