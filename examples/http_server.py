"""The standard library's HTTP server, over TLS: one line more than without."""

from __future__ import annotations

import argparse
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import transport
from certs.credential import Credential


def main() -> None:
    """Serve the files of the current directory on loopback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cert", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8443)
    options = parser.parse_args()
    credential = Credential.from_pem(options.cert.read_bytes(), options.key.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", options.port), SimpleHTTPRequestHandler)
    server.socket = transport.wrap_listener(server.socket, credential=credential)
    print(f"https://localhost:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
