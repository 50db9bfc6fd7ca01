"""A server's log: JSON, one object a line, whole lines from any number of processes and threads.

Each line goes out in one `write(2)`, so that lines of several workers that share a descriptor do
not mix (POSIX promises it for files opened to append, and for pipes up to 4 KiB; lines are kept
below that). What is not ASCII is escaped, so that nothing a peer sends can start a new line or
colour a terminal.

A log that cannot be written (a full disk, a reader that went away) must not stop the server: the
line is lost, and how many were lost is said once writing works again.
"""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EventLog", "JSONLinesLog", "SilentLog"]

_MAX_VALUE_CHARACTERS: Final = 500
_MAX_LINE_BYTES: Final = 4096  # PIPE_BUF on Linux


class EventLog(Protocol):
    """Where events go; called from any thread."""

    def write(self, event: str, /, **fields: object) -> None:
        """Take one event with its facts; must not raise."""


class SilentLog:
    """A log that keeps nothing."""

    def write(self, event: str, /, **fields: object) -> None:
        """Forget the event."""


class JSONLinesLog:
    """JSON lines on a descriptor, standard error unless given; `common` stands in every line.

    Every line has `time` (UTC), `event` and `pid`; None is left out.
    """

    def __init__(self, descriptor: int = 2, *, common: Mapping[str, object] | None = None) -> None:
        self._descriptor = descriptor
        self._common = dict(common or {})
        self._lock = threading.Lock()
        self._lost = 0

    def with_common(self, **fields: object) -> JSONLinesLog:
        """Return a log on the same descriptor with more that stands in every line."""
        return JSONLinesLog(self._descriptor, common=self._common | fields)

    def write(self, event: str, /, **fields: object) -> None:
        """Write one line."""
        facts = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            "pid": os.getpid(),
            **self._common,
            **fields,
        }
        with self._lock:
            if self._lost:
                facts["lost_lines"] = self._lost
            try:
                os.write(self._descriptor, _line(facts))
            except OSError:
                self._lost += 1
            else:
                self._lost = 0


def _line(facts: Mapping[str, object]) -> bytes:
    kept = {name: _bounded(value) for name, value in facts.items() if value is not None}
    line = json.dumps(kept, default=str).encode("ascii") + b"\n"
    if len(line) <= _MAX_LINE_BYTES:
        return line
    short = {name: value for name, value in kept.items() if name in {"time", "event", "pid"}}
    return json.dumps({**short, "truncated": True}).encode("ascii") + b"\n"


def _bounded(value: object) -> object:
    if isinstance(value, str) and len(value) > _MAX_VALUE_CHARACTERS:
        return value[:_MAX_VALUE_CHARACTERS] + "..."
    return value
