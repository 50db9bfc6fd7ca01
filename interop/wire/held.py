"""What halves hold back while they wait, of all the sessions of a capture together.

A half that waits for its other direction holds its bytes (see `session`). Each may hold some; but a
capture has any number of connections, and one that was taken of one direction only makes all of
them wait to the end. So what they hold has a bound in common, and beyond it the half that has
waited longest is given up: what it waits for is the least likely to come. One `HeldBytes` is shared
by the sessions of a capture.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interop.wire.half import Half

__all__ = ["HeldBytes"]

DEFAULT_LIMIT = 64 * 2**20


class HeldBytes:
    """Counts the bytes of the halves that wait, at most `limit_bytes`."""

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT) -> None:
        self._limit = limit_bytes
        self._held: OrderedDict[Half, int] = OrderedDict()  # in order of who began to wait
        self._total = 0

    def __repr__(self) -> str:
        return f"HeldBytes({self._total} bytes of {len(self._held)} halves)"

    def note(self, half: Half) -> None:
        """Count what a half holds by now; ends those that have waited longest beyond the limit."""
        held = len(half.pending)
        self._total += held - self._held.get(half, 0)
        self._held[half] = held
        while self._total > self._limit:
            longest = next(iter(self._held))
            self.release(longest)
            longest.end(
                f"more than {self._limit} bytes of all sessions waited for what their other "
                "directions must tell first, and this one has waited longest"
            )

    def release(self, half: Half) -> None:
        """Count a half no more: it waits no longer, or is over."""
        self._total -= self._held.pop(half, 0)
