"""TLS key logs in the format of RFC 9850, for whoever must decrypt a capture of their own traffic.

A key log opens every session in it, so three rules hold. It is never on by accident: a key log is
an explicit argument of the calls that make endpoints, and ``SSLKEYLOGFILE`` in the environment
changes nothing. The file is readable by its owner alone from its first moment, and one that others
can read is refused rather than repaired. And lines are written whole, one `write(2)` each in append
mode, so that threads and processes may share a file without mixing lines.

The TLS library calls back into `write_line` from inside a handshake, where no exception can
propagate. A failure to write (a full disk) is therefore kept and raised by `close`.
"""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Protocol, Self

from transport.errors import APIMisuse

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["KeyLog", "KeyLogBuffer", "KeyLogFile"]


class KeyLog(Protocol):
    """Where secrets of sessions are written, a line each; called from any thread."""

    def write_line(self, line: bytes) -> None:
        """Take one line without its newline; must not raise."""


class KeyLogBuffer:
    """A key log in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[bytes] = []

    def __repr__(self) -> str:
        return f"<KeyLogBuffer with {len(self._lines)} lines>"

    def write_line(self, line: bytes) -> None:
        """Take one line without its newline."""
        with self._lock:
            self._lines.append(bytes(line))

    def getvalue(self) -> bytes:
        """Return the whole log, each line ended by a newline."""
        with self._lock:
            return b"".join(line + b"\n" for line in self._lines)


class KeyLogFile:
    """A key log appended to a file of mode 0600.

    Raises `APIMisuse` for a file that exists and that others than its owner can read or write, or
    that is not a regular file, and `OSError` as `open` does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._path = os.fspath(path)
        self._failure: OSError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        # Without O_NONBLOCK, opening a FIFO would wait for its reader; it is refused just below.
        self._descriptor = os.open(self._path, flags | os.O_NONBLOCK, 0o600)
        try:
            self._require_private()
        except APIMisuse:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<KeyLogFile {self._path!r}>"

    def write_line(self, line: bytes) -> None:
        """Append one line; a failure is kept for `close`, since no caller could catch it here."""
        with self._lock:
            if self._descriptor < 0 or self._failure is not None:
                return
            rest = memoryview(line + b"\n")
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                self._failure = error

    def close(self) -> None:
        """Close the file. Raises the `OSError` of the first line that could not be written."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_private(self) -> None:
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise APIMisuse(
                f"key log {self._path!r} is not a regular file", advice="name a file of its own"
            )
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            raise APIMisuse(
                f"key log {self._path!r} is open to others (mode {status.st_mode & 0o777:04o})",
                advice="chmod it to 0600, make it your own, or name a new file",
            )
