"""Full handshakes per CPU second of the server: ours beside nginx, asyncio's own TLS and uvicorn.

The client is `openssl s_time`, which does one handshake after the other and closes; it sends
nothing. With ``--clients`` several do so at once. Two of ours are the engines alone, two the server
around them: ``pfs serve http``, with its limits, deadlines and log.

With ``--workers`` it is ``pfs serve http`` with so many worker processes beside itself with one, by
the clock. Clients and workers share the machine then, so the server has an RSA key: its signature
costs many times what its clients do, and leaves the cores to the workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from contenders import handshakes, make_identity, one_line_errors, print_ratios, run_server

from certs.key_types import KeyType

if TYPE_CHECKING:
    from contenders import Identity

    from interop.peers.names import TLSVersion

OURS = ("blocking", "asyncio", "pfs serve blocking", "pfs serve asyncio")
THEIRS = ("nginx", "asyncio-ssl", "uvicorn")
VERSIONS: tuple[TLSVersion, ...] = ("1.3", "1.2")


def compare(
    identity: Identity, version: TLSVersion, clients: int, seconds: int, rounds: int
) -> None:
    """Measure all contenders in turn and print."""
    rates: dict[str, list[float]] = {name: [] for name in OURS + THEIRS}
    with ExitStack() as stack:
        servers = [stack.enter_context(run_server(name, identity, version)) for name in rates]
        for server in servers:
            handshakes(server, identity, version, 1)  # so that all are warm
        for _ in range(rounds):
            for server in servers:
                count, used = handshakes(server, identity, version, seconds, clients=clients)
                rates[server.name].append(count / used)
    print(f"TLS {version}, clients: {clients}, {rounds} rounds of {seconds} s:")
    ours, theirs = ({name: rates[name] for name in names} for names in (OURS, THEIRS))
    print_ratios("handshakes per CPU second of the server", ours, theirs)


def compare_workers(identity: Identity, workers: int, seconds: int, rounds: int) -> None:
    """Measure one worker and several in turn and print."""
    walls: dict[int, list[float]] = {1: [], workers: []}
    costs: dict[int, list[float]] = {1: [], workers: []}
    clients = 2 * workers
    with ExitStack() as stack:
        servers = {
            number: stack.enter_context(run_server("pfs serve asyncio", identity, workers=number))
            for number in walls
        }
        for _ in range(rounds):
            for number, server in servers.items():
                started = time.perf_counter()
                count, used = handshakes(server, identity, "1.3", seconds, clients=clients)
                walls[number].append(count / (time.perf_counter() - started))
                costs[number].append(count / used)
    print(f"pfs serve http, RSA-3072, {clients} clients, {os.cpu_count()} cores:")
    for number, rates in walls.items():
        print(
            f"  {number} workers    {statistics.median(rates):8.1f} handshakes a second, "
            f"{statistics.median(costs[number]):8.1f} per CPU second of the server"
        )
    wall, cost = (
        statistics.median(rates[workers]) / statistics.median(rates[1]) for rates in (walls, costs)
    )
    print(f"  {workers} are {wall:.2f} times 1 by the clock, {cost:.2f} times per CPU second")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=2, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--clients", type=int, default=1, help="so many at once")
    parser.add_argument("--workers", type=int, help="compare so many workers with one")
    chosen = parser.parse_args()
    key_type = KeyType.EC_P256 if chosen.workers is None else KeyType.RSA_3072
    with one_line_errors(), make_identity(key_type) as identity:
        if chosen.workers is not None:
            compare_workers(identity, chosen.workers, chosen.seconds, chosen.rounds)
            return
        for version in chosen.versions:
            compare(identity, version, chosen.clients, chosen.seconds, chosen.rounds)


if __name__ == "__main__":
    main()
