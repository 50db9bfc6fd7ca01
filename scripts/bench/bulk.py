"""One connection's bulk data in each direction: our blocking engine beside Python's ssl module.

Both ends are of the same kind. The client asks for a direction and a length (one byte and eight),
data crosses in blocks of 1 MiB, and an upload is acknowledged by a byte. Given are megabytes per
second, and per CPU second of both ends together, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import time
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, NamedTuple

from contenders import make_identity, one_line_errors, print_ratios, run_server
from serving import BLOCK_BYTES

import transport
from certs.credential import TrustAnchors

if TYPE_CHECKING:
    from contenders import Identity, Server

MEGABYTE = 1_000_000
DIRECTIONS = {"upload": b"U", "download": b"D"}
OURS, THEIRS = "blocking-bulk", "ssl-bulk"


class Speed(NamedTuple):
    """Megabytes a second, by the clock and by CPU time."""

    by_clock: float
    by_cpu: float


def connect(name: str, server: Server, identity: Identity) -> Any:
    """Connect with a client of the server's kind."""
    address = ("127.0.0.1", server.port)
    if name == OURS:
        anchors = TrustAnchors.from_pem(identity.ca_file.read_bytes())
        return transport.connect(address, trust_anchors=anchors, server_hostname="localhost")
    context = ssl.create_default_context(cafile=identity.ca_file)
    return context.wrap_socket(socket.create_connection(address), server_hostname="localhost")


def move(client: Any, server: Server, direction: str, size_bytes: int) -> Speed:
    """Move so many bytes and return the speed."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    started, used = time.perf_counter(), server.cpu_seconds() + time.process_time()
    client.sendall(DIRECTIONS[direction] + size_bytes.to_bytes(8, "big"))
    remaining = size_bytes
    while remaining > 0:
        part = buffer[: min(remaining, BLOCK_BYTES)]
        if direction == "upload":
            client.sendall(part)
            remaining -= len(part)
        else:
            remaining -= client.recv_into(part)
    if direction == "upload":
        client.recv(1)
    megabytes = size_bytes / MEGABYTE
    return Speed(
        megabytes / (time.perf_counter() - started),
        megabytes / (server.cpu_seconds() + time.process_time() - used),
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megabytes", type=int, default=1000, help="in each round and direction")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    speeds: dict[tuple[str, str], list[Speed]] = {
        (direction, name): [] for direction in DIRECTIONS for name in (OURS, THEIRS)
    }
    with one_line_errors(), make_identity() as identity, ExitStack() as stack:
        servers = {name: stack.enter_context(run_server(name, identity)) for name in (OURS, THEIRS)}
        clients = {
            name: stack.enter_context(closing(connect(name, server, identity)))
            for name, server in servers.items()
        }
        for _ in range(chosen.rounds):
            for (direction, name), found in speeds.items():
                found.append(
                    move(clients[name], servers[name], direction, chosen.megabytes * MEGABYTE)
                )
    for direction in DIRECTIONS:
        for unit, index in (("MB/s", 0), ("MB per CPU second of both ends", 1)):
            print(f"{direction}, {chosen.rounds} rounds of {chosen.megabytes} MB:")
            ours, theirs = (
                {name: [speed[index] for speed in speeds[direction, name]]}
                for name in (OURS, THEIRS)
            )
            print_ratios(unit, ours, theirs)


if __name__ == "__main__":
    main()
