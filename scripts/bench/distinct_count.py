"""The distinct count over stored fingerprints: time and memory of the whole command.

Makes files of random fingerprints of twelve kinds as a census writes them, two runs' worth, and
among them a number of repetitions that the count must find. Making them is not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from interop.census.conditions import Condition
from interop.census.stored import write_fingerprints
from interop.census.values import FINGERPRINT_BYTES, Gathered

KINDS = (
    "client_handshake_traffic_secret",
    "client_key_share.mlkem768",
    "client_key_share.x25519",
    "client_random",
    "client_traffic_secret_0",
    "exporter",
    "exporter_secret",
    "server_handshake_traffic_secret",
    "server_key_share.mlkem768",
    "server_key_share.x25519",
    "server_random",
    "server_traffic_secret_0",
)
RUNS, REPETITIONS, BATCH = 2, 1000, 20_000


class Run(NamedTuple):
    """One run of the command."""

    seconds: float
    peak_mebibytes: float
    output: bytes


def make(folder: Path, fingerprints: int) -> int:
    """Write so many fingerprints; return how many of them are repetitions."""
    of_each = fingerprints // RUNS // len(KINDS)
    repeated = os.urandom(FINGERPRINT_BYTES * min(REPETITIONS, of_each))
    for _ in range(RUNS):
        with write_fingerprints(folder) as writer:
            for first in range(0, of_each, BATCH):
                size = min(BATCH, of_each - first)
                prints = {kind: os.urandom(FINGERPRINT_BYTES * size) for kind in KINDS}
                if first == 0:  # the same ones in each run, as from two clones of one machine
                    rest = prints["server_random"][len(repeated) :]
                    prints["server_random"] = (repeated + rest)[: FINGERPRINT_BYTES * size]
                writer.add(
                    Gathered(Condition.ONE_CONTEXT, size, prints, {"TLS 1.3 X25519MLKEM768": size})
                )
    return min(len(repeated) // FINGERPRINT_BYTES, BATCH) * (RUNS - 1)


def count(folder: Path) -> Run:
    """Run the command to its end; its time, and the most memory it held."""
    started = time.perf_counter()
    program = Path(sys.executable).with_name("pfs")
    with tempfile.TemporaryFile() as output:
        pid = os.posix_spawn(
            program,
            [program, "uniqueness", "--json", "--pool", folder],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)],
        )
        _, _, usage = os.wait4(pid, 0)
        elapsed = time.perf_counter() - started
        output.seek(0)
        return Run(elapsed, usage.ru_maxrss / 1024, output.read())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fingerprints", type=int, default=100_000_000)
    parser.add_argument("--runs", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pfs-bench-") as name:
        folder = Path(name)
        expected = make(folder, chosen.fingerprints)
        stored = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
        load = os.getloadavg()[0]
        runs = [count(folder) for _ in range(chosen.runs)]
        for run in runs:
            values = json.loads(run.output)["values"]
            if (found := sum(value["repeated"] for value in values)) != expected:
                sys.exit(f"the count found {found} repetitions of {expected}")
        rows = sum(value["count"] for value in values)
    seconds = [run.seconds for run in runs]
    print(
        f"{rows:,} fingerprints, {stored / 1e9:.2f} GB of Parquet: counted in "
        f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), peak "
        f"{max(run.peak_mebibytes for run in runs):.0f} MiB, {expected:,} repetitions found "
        f"(load before: {load:.1f})"
    )


if __name__ == "__main__":
    main()
