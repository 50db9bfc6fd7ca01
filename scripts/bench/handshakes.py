"""Full handshakes per CPU second of the server: ours beside nginx, asyncio's own TLS and uvicorn.

The client is `openssl s_time`, which does one handshake after the other and closes; it sends
nothing. With ``--clients`` several do so at once. Two of ours are the engines alone, two the server
around them: ``pfs serve http``, with its limits, deadlines and log.

Each measurement starts its server anew. Of two processes of one program, one can make a third more
handshakes than the other for as long as they live, as their memory happens to lie, so medians are
those of many processes.

With ``--workers`` it is ``pfs serve http`` with so many worker processes beside itself with one, by
the clock: how many handshakes its metrics count in a while in which all are busy. Clients and
workers share the machine, and a handshake of `openssl s_time` takes it 1.3 to 2 milliseconds, so
the server has a huge RSA key, whose signatures leave nearly all of the cores to the workers.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import time
from typing import TYPE_CHECKING
from urllib.request import urlopen

from contenders import (
    handshakes,
    make_identity,
    make_rsa_identity,
    one_line_errors,
    print_ratios,
    run_server,
    start_clients,
)

if TYPE_CHECKING:
    from contenders import Identity

    from interop.peers.names import TLSVersion

OURS = ("blocking", "asyncio", "pfs serve blocking", "pfs serve asyncio")
THEIRS = ("nginx", "asyncio-ssl", "uvicorn")
CLIENTS_OF_A_WORKER = 8  # the kernel spreads connections by chance, and none shall be idle
RAMP_SECONDS = 1
VERSIONS: tuple[TLSVersion, ...] = ("1.3", "1.2")


def compare(
    identity: Identity, version: TLSVersion, clients: int, seconds: int, rounds: int
) -> None:
    """Measure all contenders in turn and print; each of them starts anew each time."""
    rates: dict[str, list[float]] = {name: [] for name in OURS + THEIRS}
    for name in [*rates] * rounds:
        with run_server(name, identity, version) as server:
            handshakes(server, identity, version, 1)  # so that it is warm
            count, used = handshakes(server, identity, version, seconds, clients=clients)
        rates[name].append(count / used)
    print(f"TLS {version}, clients: {clients}, {rounds} rounds of {seconds} s:")
    ours, theirs = ({name: rates[name] for name in names} for names in (OURS, THEIRS))
    print_ratios("handshakes per CPU second of the server", ours, theirs)


def compare_workers(bits: int, workers: int, seconds: int, rounds: int) -> None:
    """Measure one worker and several in turn and print."""
    rates: dict[int, list[float]] = {1: [], workers: []}
    clients = CLIENTS_OF_A_WORKER * workers
    with make_rsa_identity(bits) as identity:
        for number in [*rates] * rounds:
            rates[number].append(busy_rate(identity, number, clients, seconds))
    print(f"pfs serve http, RSA-{bits}, {clients} clients, {os.cpu_count()} cores:")
    for number, found in rates.items():
        print(
            f"  {number} workers    {statistics.median(found):8.1f} handshakes a second "
            f"({min(found):.1f} to {max(found):.1f})"
        )
    ratio = statistics.median(rates[workers]) / statistics.median(rates[1])
    print(f"  {workers} are {ratio:.2f} times 1 by the clock")


def busy_rate(identity: Identity, workers: int, clients: int, seconds: int) -> float:
    """Measure the handshakes a second of new workers, all of them busy."""
    counts_at = f"127.0.0.1:{free_port()}"
    with (
        run_server("pfs serve asyncio", identity, workers=workers, metrics=counts_at) as server,
        start_clients(server, identity, "1.3", seconds + RAMP_SECONDS, clients),
    ):
        time.sleep(RAMP_SECONDS)
        before, started = count_handshakes(counts_at), time.perf_counter()
        time.sleep(seconds)
        done = count_handshakes(counts_at) - before
        return done / (time.perf_counter() - started)


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def count_handshakes(address: str) -> int:
    """Ask a server's metrics how many handshakes it has done."""
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = re.findall(r"^pfs_handshakes_total\{.*\} ([\d.e+]+)$", text, re.MULTILINE)
    return sum(int(float(count)) for count in counts)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=2, help="of each contender in each round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--versions", nargs="+", choices=VERSIONS, default=VERSIONS)
    parser.add_argument("--clients", type=int, default=1, help="so many at once")
    parser.add_argument("--workers", type=int, help="compare so many workers with one")
    parser.add_argument("--rsa-bits", type=int, default=8192, help="of the key for --workers")
    chosen = parser.parse_args()
    with one_line_errors():
        if chosen.workers is not None:
            compare_workers(chosen.rsa_bits, chosen.workers, chosen.seconds, chosen.rounds)
            return
        with make_identity() as identity:
            for version in chosen.versions:
                compare(identity, version, chosen.clients, chosen.seconds, chosen.rounds)


if __name__ == "__main__":
    main()
