"""A flood of like events in a few lines: what one packet can cause must not fill a disk.

A failed handshake or a refused connection costs its sender next to nothing, and a line each would
let anybody write as much to the server's disk as the network carries. So of each kind of event the
first few in a second are written whole, and what comes after them within that second is counted and
said in one line at its end: ``"more_like_it": 1234``. The metrics count every one.

Kinds come from closed tables (names of limits and of error classes), never from what a peer sent,
so there are few, and at most a few lines a second of each.

The line at the end is written by a timer of its own thread, so that it does not wait for the next
event: after a flood there may be none. Such a timer exists only while something is unsaid.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from transport.server_log import EventLog

__all__ = ["FloodGuard"]

_WINDOW_SECONDS: Final = 1.0


class _Window:
    """What was written, and what was not, of one kind of event since `began`."""

    __slots__ = ("began", "unsaid", "written")

    def __init__(self, began: float) -> None:
        self.began = began
        self.written = 0
        self.unsaid = 0


class FloodGuard:
    """Writes events to `log`, at most so many of a kind in a second; for any thread."""

    def __init__(self, log: EventLog, *, window_seconds: float = _WINDOW_SECONDS) -> None:
        self._log = log
        self._window_seconds = window_seconds
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, str, str], _Window] = {}
        self._timer: threading.Timer | None = None

    def admits(self, event: str, name: str, value: str, *, most: int) -> bool:
        """Return whether to write one more `event` whose field `name` is `value`; else count it.

        `most` is how many are written in a second before counting begins.
        """
        key = (event, name, value)
        with self._lock:
            now = time.monotonic()
            window = self._windows.get(key)
            if window is None or (not window.unsaid and now - window.began >= self._window_seconds):
                window = self._windows[key] = _Window(now)
            if window.written < most:
                window.written += 1
                return True
            window.unsaid += 1
            if self._timer is None:
                self._timer = threading.Timer(self._window_seconds, self.flush)
                self._timer.daemon = True
                self._timer.start()
            return False

    def flush(self) -> None:
        """Say how many were left out, a line for each kind; counting begins anew."""
        with self._lock:
            windows, self._windows = self._windows, {}
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for (event, name, value), window in windows.items():
            if window.unsaid:
                self._log.write(event, **{name: value}, more_like_it=window.unsaid)
