"""Each benchmark, at its smallest: that it runs, and prints its ratios.

The figures themselves are nobody's business here: a test that measures time fails on a busy day.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"
BENCHMARKS = {
    "attack.py": (
        ["--megabytes", "1", "--sessions", "10", "--runs", "1"],
        r"whole processes, by the clock: +[\d.]+ times tshark",
    ),
    "capture_memory.py": (
        ["--megabytes", "2", "--sessions", "30", "--distinct", "10"],
        r"one: 2 MB, 1 sessions opened, .*\nmany: 2 MB, 30 sessions opened, peak \d+ MiB",
    ),
    "handshakes.py": (
        ["--seconds", "1", "--rounds", "1", "--versions", "1.3"],
        r"blocking +is [\d.]+ times nginx, [\d.]+ times asyncio-ssl, [\d.]+ times uvicorn\n",
    ),
    "bulk.py": (["--megabytes", "4", "--rounds", "1"], r"blocking-bulk +is [\d.]+ times ssl-bulk"),
    "idle_memory.py": (["--connections", "20"], r"asyncio +is [\d.]+ times nginx"),
    "keystore.py": (
        ["--seconds", "0.2", "--rounds", "1", "--keys", "30"],
        (
            r"postgresql create +\d+ a second from one caller, +\d+ from eight: [\d.]+ times; "
            r".*\n(.*\n)*  postgresql 30 keys open in [\d.]+ s and [\d.]+ MiB"
        ),
    ),
    "stalled_accepts.py": (
        ["--stalled", "20", "--seconds", "1", "--rounds", "1"],
        r"asyncio +[\d.]+ handshakes a second, [\d.]+ times its rate without them",
    ),
    "census.py": (
        ["--handshakes", "400", "--rounds", "1"],
        r"census, all conditions +\d+ a second, +\d+ us of CPU each, [\d.]+ times the bare loop",
    ),
    "distinct_count.py": (
        ["--fingerprints", "240000", "--runs", "1"],
        r"240,000 fingerprints, .* GB of Parquet: counted in [\d.]+ s .* 1,000 repetitions found",
    ),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_prints_its_ratio(name: str) -> None:
    arguments, expected = BENCHMARKS[name]
    done = subprocess.run(
        [sys.executable, SCRIPTS / name, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(expected, done.stdout), done.stdout


def test_two_workers_are_compared_with_one() -> None:
    options = "--workers=2 --rsa-bits=3072 --seconds=1 --rounds=1"
    done = subprocess.run(
        [sys.executable, SCRIPTS / "handshakes.py", *options.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 are [\d.]+ times 1 by the clock", done.stdout), done.stdout


def test_a_whole_census_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPTS / "census.py", "--whole", "1000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"unique, in \d+ s, peak [1-9]\d* MiB of all", done.stdout), done.stdout
