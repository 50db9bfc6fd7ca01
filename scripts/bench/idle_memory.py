"""Memory of an idle connection: our asyncio engine beside nginx and asyncio's own TLS.

Opens many connections of TLS 1.3 from one client, which then says nothing, and divides by their
number what the server's memory grew by. Memory of the kernel is not in it.
"""

from __future__ import annotations

import argparse
import os
import socket
from contextlib import ExitStack, suppress

from contenders import (
    Identity,
    Server,
    allow_descriptors,
    make_identity,
    one_line_errors,
    run_server,
)

import transport
from certs.credential import TrustAnchors

OURS, THEIRS = "asyncio", ("nginx", "asyncio-ssl")


def grow(server: Server, identity: Identity, connections: int) -> float:
    """Open idle connections; return by how many KiB the server grew for each."""
    anchors = TrustAnchors.from_pem(identity.ca_file.read_bytes())

    def open_one() -> transport.TLSSocket:
        raw = socket.create_connection(("127.0.0.1", server.port))
        client = transport.wrap_socket(raw, trust_anchors=anchors, server_hostname="localhost")
        client.do_handshake()
        return client

    with ExitStack() as stack:
        for _ in range(20):  # what is made once is no cost of a connection
            stack.enter_context(open_one())
        before = server.memory_kibibytes()
        clients = [open_one() for _ in range(connections)]
        grown = server.memory_kibibytes() - before
        while clients:
            with suppress(OSError), socket.socket(fileno=os.dup(clients.pop().fileno())) as raw:
                raw.shutdown(socket.SHUT_RDWR)  # quicker than an orderly end of each
        return grown / connections


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--connections", type=int, default=5000)
    chosen = parser.parse_args()
    connections = allow_descriptors(chosen.connections)
    costs: dict[str, float] = {}
    with one_line_errors(), make_identity() as identity:
        for name in (OURS, *THEIRS):
            with run_server(name, identity) as server:
                costs[name] = grow(server, identity, connections)
    print(f"{connections} idle connections of TLS 1.3:")
    for name, cost in costs.items():
        print(f"  {name:<12} {cost:7.1f} KiB for each connection")
    ratios = ", ".join(f"{costs[OURS] / costs[peer]:.2f} times {peer}" for peer in THEIRS)
    print(f"  {OURS:<12} is {ratios}")


if __name__ == "__main__":
    main()
