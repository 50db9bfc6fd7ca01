"""What an open store remembers of what it has read and opened, and when it has to forget.

Theory of operation
-------------------
Before an operation acts, it reads what its principal is granted and the version of the key that is
to act. Both change rarely; reading, unsealing and checking them takes several times as long as a
signature. So they are remembered as they were found good, and an operation that finds them here
reads nothing.

*Whether they still hold* is known where the operation is recorded. Every change to a store is
recorded in its audit log, in the same commit; and whoever records anything holds the write lock and
looks at the log's end first (`certs.keystore.commits`). If the end is not where this process left
it, somebody else has written, and everything is forgotten. So it is once a change of this process
is committed, but for new keys: nothing is remembered of names that are not there. Each time, the
*generation* goes up.

*An operation that relied on what was forgotten meanwhile* is not recorded and answers nothing: it
is `Outdated`, and done again with fresh reading (`certs.keystore.gate`). That goes for refusals
too. An answer therefore always follows from the store as it was when it was recorded.

*What is being read while something is forgotten* may be from before: it is kept only if the
generation is what it was before the reading began.

Opened private keys are among what is remembered, until something changes, the store is closed, or
there is no more room. The root key that opens them all stays in memory just as long. What somebody
edits in the database behind the store's back is not in the log, and is met at the next reading;
what is used until then is what was found genuine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Memory", "Outdated"]

_MOST = 1024
_Value = TypeVar("_Value")


class Outdated(Exception):
    """An operation relied on what no longer holds; it was not recorded and is to be done again."""


class Memory:
    """What one open store remembers. Threads may share it."""

    def __init__(self) -> None:
        self.generation = 0
        self._lock = threading.Lock()
        self._held: dict[tuple[object, ...], object] = {}

    def recall(self, what: tuple[object, ...], read: Callable[[], _Value]) -> _Value:
        """Return what is remembered by this name; else what `read` returns, which is kept.

        Whoever uses it noted the `generation` before.
        """
        if what in (held := self._held):
            return cast("_Value", held[what])
        generation = self.generation
        found = read()
        with self._lock:
            if generation == self.generation:
                if len(self._held) >= _MOST:
                    self._held = {}
                self._held[what] = found
        return found

    def forget(self) -> None:
        """Forget everything: what was remembered may no longer hold."""
        with self._lock:
            self.generation += 1
            self._held = {}
