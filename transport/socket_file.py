"""Files over a TLS socket, for `TLSSocket.makefile`.

`socket.SocketIO` would do the same over a `socket.socket`; it is not documented, and wants private
attributes of one. What it does is kept: a connection lives until its socket and all its files are
closed, and a file whose read timed out refuses to go on, since the buffer above it may have lost
its place.
"""

from __future__ import annotations

import io
import ssl
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["open_socket_file"]


class _Socket(Protocol):
    def recv_into(self, buffer: Buffer, limit_bytes: int = 0, flags: int = 0) -> int: ...
    def send(self, data: Buffer, flags: int = 0) -> int: ...
    def fileno(self) -> int: ...
    def file_closed(self) -> None: ...


class _SocketFile(io.RawIOBase):
    def __init__(self, sock: _Socket, *, reading: bool, writing: bool) -> None:
        self._sock: _Socket | None = sock
        self._reading = reading
        self._writing = writing
        self._timed_out = False

    def readable(self) -> bool:
        return self._reading and not self.closed

    def writable(self) -> bool:
        return self._writing and not self.closed

    def fileno(self) -> int:
        return self._open_socket().fileno()

    def readinto(self, buffer: Buffer, /) -> int | None:
        sock = self._open_socket()
        if self._timed_out:
            raise OSError("cannot read from timed out object")
        try:
            return sock.recv_into(buffer)
        except TimeoutError:
            self._timed_out = True
            raise
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None  # what a non-blocking raw file returns

    def write(self, data: Buffer, /) -> int | None:
        try:
            return self._open_socket().send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.file_closed()

    def _open_socket(self) -> _Socket:
        if self._sock is None:
            raise ValueError("I/O operation on closed file")
        return self._sock


def open_socket_file(
    sock: _Socket,
    mode: str,
    buffering: int | None,
    *,
    encoding: str | None,
    errors: str | None,
    newline: str | None,
) -> IO[bytes] | IO[str]:
    """Open a file over `sock`; the arguments and the `ValueError` are those of `socket.makefile`.

    The caller counts the file as open; the file calls `sock.file_closed` when it is closed.
    """
    if not set(mode) <= {"r", "w", "b"}:
        raise ValueError(f"invalid mode {mode!r} (only r, w, b allowed)")
    writing = "w" in mode
    reading = "r" in mode or not writing
    binary = "b" in mode
    size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
    if size == 0 and not binary:
        raise ValueError("unbuffered streams must be binary")
    raw = _SocketFile(sock, reading=reading, writing=writing)
    if size == 0:
        return raw  # type: ignore[return-value] # a binary file by all but its declared type
    buffered: io.BufferedRWPair | io.BufferedReader | io.BufferedWriter
    if reading and writing:
        buffered = io.BufferedRWPair(raw, raw, size)
    elif reading:
        buffered = io.BufferedReader(raw, size)
    else:
        buffered = io.BufferedWriter(raw, size)
    if binary:
        return buffered  # type: ignore[return-value] # the same
    return io.TextIOWrapper(buffered, encoding, errors, newline)  # type: ignore[type-var] # a pair too
