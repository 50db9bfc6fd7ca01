"""Progress of long work on stderr: a live line on a terminal, one line a stage elsewhere.

What draws it is imported by who draws it: a command that prints JSON has no use for it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol, Self

from interop.interruption import raise_lost_interrupt

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["ConsoleProgress", "Progress", "SilentProgress"]


class Progress(Protocol):
    """Told what is being done. `stage` begins something, `advance` says how much of it is done."""

    def stage(self, description: str, *, total: int | None = None) -> None:
        """Begin a stage, of `total` steps where that is known."""

    def advance(self, done: int) -> None:
        """Say that `done` steps of the stage are done."""


class SilentProgress:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        pass

    def stage(self, description: str, *, total: int | None = None) -> None:  # noqa: ARG002 - as below
        """Begin a stage; raises an interrupt that got lost."""
        raise_lost_interrupt()

    def advance(self, done: int) -> None:  # noqa: ARG002 - for those who show it
        """Say that `done` steps of the stage are done; raises an interrupt that got lost."""
        raise_lost_interrupt()


class ConsoleProgress(SilentProgress):
    """Shows the present stage, with a bar where its length is known."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - see the top
        from rich.progress import (  # noqa: PLC0415 - see the top
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = Console(stderr=True, highlight=False)
        self._live = sys.stderr.isatty()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._live,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._progress.stop()

    def stage(self, description: str, *, total: int | None = None) -> None:
        """Begin a stage of `total` steps, where that is known; raises as `advance` does."""
        super().stage(description, total=total)
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total)
        if not self._live:
            self._console.print(f"{description} ...", markup=False)

    def advance(self, done: int) -> None:
        """Say that `done` steps of the stage are done; raises an interrupt that got lost."""
        super().advance(done)
        if self._task is not None:
            self._progress.update(self._task, completed=done)
