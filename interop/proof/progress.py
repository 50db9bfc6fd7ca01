"""What tells the user how far a run is."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """Told what is being done. `stage` begins something, `advance` says how much of it is done."""

    def stage(self, description: str, *, total: int | None = None) -> None:
        """Begin a stage, of `total` steps where that is known."""

    def advance(self, done: int) -> None:
        """Say that `done` steps of the stage are done."""
