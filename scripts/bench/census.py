"""A census beside a bare loop over pyOpenSSL's memory BIOs that does nothing else.

Both make the same handshakes in as many processes as there are cores: the same contexts, but for
the key log, and the same offers in the same order. The loop keeps nothing and looks at nothing. The
census is taken twice: all of it in one context, which is what the loop does, and as ``pfs
uniqueness`` plans it, under all conditions, some of which cost more (new contexts, new processes)
and one less (resumption). Its time is that of the whole, with starting its workers.

Rates by the clock suffer where others use the machine, so CPU time for each handshake is given
too, that of starting processes included on both sides. With ``--whole N`` it is ``pfs uniqueness
--handshakes N`` as a process, with the most memory that it and its workers held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from contenders import Server, make_identity, one_line_errors
from OpenSSL import SSL

from interop.census.conditions import Batch, Condition
from interop.census.ends import OFFERS, TransportEnds, TransportRecipe
from interop.census.tallies import MemoryTallies
from interop.census.workers import processors, take_census
from transport.context import EndpointContext, client_context

if TYPE_CHECKING:
    from transport.policy import SecurityPolicy

BATCH = 250
READ_BYTES = 16384
SAMPLE_SECONDS = 0.5


class Rate(NamedTuple):
    """Handshakes a second, and microseconds of CPU time for each."""

    per_second: float
    cpu_microseconds: float


class SilentEnds(TransportEnds):
    """The same contexts without a key log."""

    def _client(self, policy: SecurityPolicy) -> EndpointContext:
        return client_context(self._anchors, policy)


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> None:
    """Make one handshake, with nothing but pyOpenSSL."""
    waiting = [(client, server), (server, client)]
    while waiting:
        for pair in tuple(waiting):
            end, peer = pair
            try:
                end.do_handshake()
                waiting.remove(pair)
            except SSL.WantReadError:
                pass
            with contextlib.suppress(SSL.WantReadError):
                peer.bio_write(end.bio_read(READ_BYTES))


def run_loop(recipe: TransportRecipe, handshakes: int, barrier: threading.Barrier) -> None:
    """Make handshakes in this process, once all processes are ready."""
    made = recipe.open()
    ends = SilentEnds(made._credential, recipe.server_name)  # noqa: SLF001 - the same, but silent
    for number in range(len(OFFERS)):
        pair = ends.pair(number)
        shake_hands(pair.client.connection, pair.server.connection)
    barrier.wait()
    for number in range(handshakes):
        pair = ends.pair(number)
        shake_hands(pair.client.connection, pair.server.connection)
    barrier.wait()


def children_cpu_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def bare_loop(recipe: TransportRecipe, handshakes: int, processes: int) -> Rate:
    """Run the loop in `processes` processes; the time is that of the loop alone."""
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(processes + 1)
    each = handshakes // processes
    before = children_cpu_seconds()
    children = [
        spawn.Process(target=run_loop, args=(recipe, each, barrier)) for _ in range(processes)
    ]
    for child in children:
        child.start()
    barrier.wait()
    started = time.perf_counter()
    barrier.wait()
    elapsed = time.perf_counter() - started
    for child in children:
        child.join()
    used = children_cpu_seconds() - before
    return Rate(each * processes / elapsed, used / (each * processes) * 1e6)


def census(recipe: TransportRecipe, handshakes: int, *, all_conditions: bool) -> Rate:
    """Take a census; the time is that of all of it."""
    batches = None
    if not all_conditions:
        firsts = range(0, handshakes, BATCH)
        batches = [
            Batch(Condition.ONE_CONTEXT, first, min(BATCH, handshakes - first)) for first in firsts
        ]
    before, started = children_cpu_seconds() + time.process_time(), time.perf_counter()
    tallies = MemoryTallies()
    take_census(handshakes, recipe, tallies, batches=batches)
    if any(kind.repeated for kind in tallies.count().kinds):
        sys.exit("the census found a repetition")
    elapsed = time.perf_counter() - started
    used = children_cpu_seconds() + time.process_time() - before
    return Rate(handshakes / elapsed, used / handshakes * 1e6)


def print_rate(name: str, rates: list[Rate], bare: list[Rate]) -> None:
    """Print medians, and the ratio to the bare loop, run by run."""
    walls = [rate.per_second / other.per_second for rate, other in zip(rates, bare, strict=True)]
    costs = [
        other.cpu_microseconds / rate.cpu_microseconds
        for rate, other in zip(rates, bare, strict=True)
    ]
    print(
        f"{name:<24} {statistics.median(rate.per_second for rate in rates):7.0f} a second, "
        f"{statistics.median(rate.cpu_microseconds for rate in rates):5.0f} us of CPU each, "
        f"{statistics.median(walls):.2f} times the bare loop ({min(walls):.2f} to {max(walls):.2f})"
        f", by CPU time {statistics.median(costs):.2f}"
    )


def compare(handshakes: int, rounds: int) -> None:
    """Let loop and census take turns, and print."""
    processes = processors()
    with make_identity() as identity:
        recipe = TransportRecipe(
            identity.credential.certificate_chain.read_bytes(),
            identity.credential.private_key.read_bytes(),
            "localhost",
        )
        bare, same, whole = [], [], []
        for _ in range(rounds):
            bare.append(bare_loop(recipe, handshakes, processes))
            same.append(census(recipe, handshakes, all_conditions=False))
            whole.append(census(recipe, handshakes, all_conditions=True))
    print(f"{handshakes:,} handshakes on {processes} cores, medians of {rounds} rounds")
    print_rate("bare loop", bare, bare)
    print_rate("census, one context", same, bare)
    print_rate("census, all conditions", whole, bare)


def take_whole(handshakes: int) -> None:
    """Run the command, and look at its memory while it works."""
    command = [Path(sys.executable).with_name("pfs"), "uniqueness", "--json"]
    command += ["--handshakes", str(handshakes)]
    started = time.perf_counter()
    load = os.getloadavg()[0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        server, peak, done = Server("pfs", 0, process.pid), 0, threading.Event()

        def look() -> None:
            nonlocal peak
            while not done.wait(SAMPLE_SECONDS):
                with contextlib.suppress(OSError, ValueError):  # a process that has just ended
                    peak = max(peak, server.memory_kibibytes())

        watcher = threading.Thread(target=look)
        watcher.start()
        output, _ = process.communicate()
        done.set()
        watcher.join()
    elapsed = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"pfs uniqueness failed with status {process.returncode}")
    report = json.loads(output)
    print(
        f"pfs uniqueness --handshakes {handshakes}: {report['verdict']}, in {elapsed:.0f} s, peak "
        f"{peak / 1024:.0f} MiB of all processes (load before: {load:.1f})"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--handshakes", type=int, default=60_000, help="of each in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--whole", type=int, help="take a census of so many with the command")
    chosen = parser.parse_args()
    with one_line_errors():
        if chosen.whole is not None:
            take_whole(chosen.whole)
        else:
            compare(chosen.handshakes, chosen.rounds)


if __name__ == "__main__":
    main()
