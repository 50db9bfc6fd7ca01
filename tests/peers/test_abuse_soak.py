"""The soak in a small form: all clients get what they should, and a leak is found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOAK = ROOT / "scripts/soak.py"


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SOAK, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def module() -> Any:
    """Give the script as a module, for what it decides from samples."""
    spec = importlib.util.spec_from_file_location("soak", SOAK)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(loaded)
    finally:
        sys.path[:] = before
    return loaded


@pytest.mark.parametrize("engine", ["asyncio", "blocking"])
def test_a_small_soak_holds(engine: str) -> None:
    done = soak("--connections", "300", "--engine", engine, "--json", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["connections"] == 300
    assert report["wrong"] == 0
    assert report["descriptors_after"] <= report["descriptors_before"]
    assert report["problems"] == []
    assert set(report["kinds"]) >= {"honest", "resets", "stalls", "plain HTTP"}


@pytest.mark.slow
def test_a_leak_of_descriptors_is_found() -> None:
    done = soak("--connections", "100", "--leak", "descriptors", "--workers", "1")
    assert done.returncode == 1
    (line,) = [one for one in done.stderr.splitlines() if " connections, " not in one]
    assert line.startswith("descriptors leak: ")


def test_memory_that_climbs_is_a_leak_and_memory_that_has_settled_is_none(module: Any) -> None:
    def samples(each_bytes: float, noise_bytes: int) -> list[Any]:
        return [
            module.Sample(n, int(40e6 + n * each_bytes + (n // 1000 % 7) * noise_bytes))
            for n in range(20_000, 100_001, 1000)
        ]

    assert module.memory_problem(samples(0, 300_000), 2) is None
    assert module.memory_problem(samples(10, 0), 2) is None  # below what fragments make
    assert "memory leaks: 100 bytes" in module.memory_problem(samples(100, 0), 2)
    assert "memory leaks" in module.memory_problem(samples(100, 300_000), 2)
    assert module.memory_problem([], 2) is None


def test_bad_input_is_refused_and_help_teaches() -> None:
    assert soak("--connections", "0").returncode == 2
    told = soak("--help")
    assert told.returncode == 0
    assert "Exit status" in told.stdout
