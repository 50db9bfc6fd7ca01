"""Handshakes under stalled ones: a server's rate with a thousand half-open ones, beside without.

Each stalled client sends the first half of a ClientHello and then nothing, and the server's
deadline for handshakes is longer than the benchmark. nginx and asyncio's own TLS are measured too.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import statistics
import time
from contextlib import ExitStack, suppress

from contenders import (
    Identity,
    Server,
    allow_descriptors,
    handshakes,
    make_identity,
    one_line_errors,
    run_server,
)

NAMES = ("asyncio", "nginx", "asyncio-ssl")


def half_a_client_hello() -> bytes:
    """Make a ClientHello and return its first half."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    return hello[: len(hello) // 2]


def rates(server: Server, identity: Identity, seconds: int, rounds: int) -> tuple[float, float]:
    """Return the median rates by the clock and by the server's CPU time."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        count, used = handshakes(server, identity, "1.3", seconds)
        found.append((count / (time.perf_counter() - started), count / used))
    clock, cpu = zip(*found, strict=True)
    return statistics.median(clock), statistics.median(cpu)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    stalled = allow_descriptors(chosen.stalled)
    half = half_a_client_hello()
    print(f"{stalled} stalled handshakes, {chosen.rounds} rounds of {chosen.seconds} s, TLS 1.3:")
    with one_line_errors(), make_identity() as identity:
        for name in NAMES:
            with run_server(name, identity) as server, ExitStack() as stack:
                handshakes(server, identity, "1.3", 1)
                unloaded = rates(server, identity, chosen.seconds, chosen.rounds)
                for _ in range(stalled):
                    client = socket.create_connection(("127.0.0.1", server.port))
                    stack.enter_context(client).sendall(half)
                loaded = rates(server, identity, chosen.seconds, chosen.rounds)
            by_clock, by_cpu = (
                after / before for after, before in zip(loaded, unloaded, strict=True)
            )
            print(
                f"  {name:<12} {loaded[0]:7.1f} handshakes a second, {by_clock:.2f} times its rate "
                f"without them; {by_cpu:.2f} times per CPU second"
            )


if __name__ == "__main__":
    main()
