"""What becomes of a census whose workers end before their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from interop.census.conditions import Batch, Condition
from interop.census.ends import TransportRecipe
from interop.census.tallies import MemoryTallies
from interop.census.workers import take_census
from interop.errors import InputError, InteropError
from interop.identity import SERVER_NAME, issue_identity
from transport import APIMisuse

if TYPE_CHECKING:
    from pathlib import Path

    from interop.census.ends import Ends

DEADLINE_SECONDS = 60
BATCHES = [Batch(Condition.ONE_CONTEXT, first, 5) for first in range(0, 20, 5)]

# As people write it first: a spawned process that imports this starts a census of its own.
UNGUARDED = """
from interop.census.conditions import Batch, Condition
from interop.census.ends import TransportRecipe
from interop.census.tallies import MemoryTallies
from interop.census.workers import take_census
from interop.identity import SERVER_NAME, issue_identity

recipe = TransportRecipe.of(issue_identity().credential, SERVER_NAME)
take_census(5, recipe, MemoryTallies(), workers=1, batches=[Batch(Condition.ONE_CONTEXT, 0, 5)])
"""


class Killing:
    """A recipe that nobody survives."""

    def open(self) -> Ends:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Failing:
    """A recipe whose ends cannot be made, for one of several reasons."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def open(self) -> Ends:
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (InputError("no such key"), InputError, "no such key"),
        (OSError(24, "Too many open files"), OSError, "Too many open files"),
        (APIMisuse("not so", advice="but so"), InteropError, "a handshake of the census failed"),
    ],
    ids=["input", "system", "transport"],
)
def test_what_fails_in_a_worker_is_raised_here(
    error: Exception, raised: type[Exception], text: str
) -> None:
    with pytest.raises(raised, match=text):
        take_census(20, Failing(error), MemoryTallies(), workers=2, batches=BATCHES)


def test_a_killed_worker_fails_the_census_at_once() -> None:
    with pytest.raises(InteropError, match=r"ended with status -9 .* memory"):
        take_census(20, Killing(), MemoryTallies(), workers=2, batches=BATCHES)


def test_a_script_that_does_not_guard_its_main_part_fails_at_once(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "a worker of the census ended with status 1" in done.stderr
    assert "__name__ == '__main__'" in done.stderr  # what Python says of it


@pytest.mark.parametrize("workers", [1, 2, 20])
def test_every_batch_is_made_once_by_however_many_workers(workers: int) -> None:
    recipe = TransportRecipe.of(issue_identity().credential, SERVER_NAME)
    tallies, told = MemoryTallies(), list[int]()
    batches = [*BATCHES, *(Batch(Condition.RESTARTS, 20 + number, 1) for number in range(2))]
    take_census(22, recipe, tallies, workers=workers, batches=batches, progress=told.append)
    assert told == [1, 2, *range(7, 23, 5)]
    randoms = tallies.tallies()["server_random"]
    assert (randoms.count, randoms.distinct) == (22, 22)
