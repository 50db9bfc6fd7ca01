"""One blocking TLS connection: `TLSSocket`, shaped like `ssl.SSLSocket`.

**The file descriptor never blocks.** It is non-blocking from the start, whatever the timeout; an
operation that cannot go on waits in `poll(2)`. That is what makes deadlines hold against a peer
that sends a byte at a time (a timeout on the descriptor starts anew with every byte), and
what makes the next point possible. It costs one `poll` for each wait.

**Threads.** One `TLSSocket` may be used by several threads, in particular by one that reads and
one that writes. OpenSSL allows one call at a time per connection, so a lock is held around each
call, and never across a wait, or a reader waiting for its peer would stop the writer that the
peer is waiting for. A second lock is held across a whole send, waits included: OpenSSL demands that
a write that had to wait be repeated before any other (see `transport.connection`). A third one lets
one thread drive the handshake while others wait for it. They are always taken in the order
handshake, send, call. `close` waits a second at most for a send to finish; threads that wait on
the connection wake up then, and their calls raise `APIMisuse`.

**Timeouts** are those of `socket`: None waits forever, zero raises `WantRead` or `WantWrite`
(subclasses of `ssl.SSLWantReadError` and its twin, for the sake of selector loops), a number raises
`TimeoutError`. A send that times out has sent part of its data, so the connection can only be
closed after it. The handshake has the earlier of the two deadlines and raises `HandshakeTimeout`.

**Tickets.** A TLS 1.3 server sends its tickets when the handshake is over (ours sends two that
hold nothing: see `transport.context`). A client that only sends and closes may be gone when they
arrive, the kernel answers them with a reset, and the reset throws away what the server has received
and not read yet: an upload by FTP lost its end that way. So a client that never received anything
waits, a second at most, for the server to close too. Whatever was received came after the tickets.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from typing import IO, TYPE_CHECKING, Final, Literal, Self, TypeVar, overload

from transport import failures
from transport.connection import MAX_RECORD_BYTES, MAX_WRITE_BYTES, TLSCore, Want
from transport.errors import APIMisuse, TransportError
from transport.session_views import SessionViews
from transport.socket_file import open_socket_file
from transport.sockets import poll_milliseconds, prepare_socket

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from transport.authorization import AuthorizedPeer
    from transport.context import EndpointContext
    from transport.negotiated import NegotiatedSession
    from transport.sessions import ConnectionTickets

    BinaryMode = Literal["b", "rb", "br", "wb", "bw", "rwb", "rbw", "wrb", "wbr", "brw", "bwr"]
    TextMode = Literal["r", "w", "rw", "wr", ""]

__all__ = [
    "DEFAULT_HANDSHAKE_TIMEOUT_SECONDS",
    "DEFAULT_RECEIVE_BYTES",
    "TLSSocket",
    "WantRead",
    "WantWrite",
]

DEFAULT_HANDSHAKE_TIMEOUT_SECONDS: Final = 10.0
DEFAULT_RECEIVE_BYTES: Final = 1024  # as in the standard library
_CLOSE_TIMEOUT_SECONDS: Final = 1.0
_POLL_EVENTS: Final = {Want.READ: select.POLLIN, Want.WRITE: select.POLLOUT}
_Result = TypeVar("_Result")


class WantRead(ssl.SSLWantReadError):
    """A non-blocking operation has to wait until the socket is readable."""


class WantWrite(ssl.SSLWantWriteError):
    """A non-blocking operation has to wait until the socket is writable."""


class TLSSocket(SessionViews):
    """A connected TLS socket; made by `wrap_socket`, `connect` and `TLSListener.accept`.

    Every method that moves bytes does the handshake first if it is still to be done. They raise
    `TransportError` as `transport.errors` describes, `TimeoutError` and `OSError`. Leaving a `with`
    block by an exception closes without close_notify, so that the peer does not take half the
    data for all of it.
    """

    context: ssl.SSLContext | None = None  # that of `transport.adapters.ssl_context`, if any
    do_handshake_on_connect = True

    def __init__(
        self,
        transport: socket.socket,
        endpoint: EndpointContext,
        *,
        server_hostname: str | None = None,
        tickets: ConnectionTickets | None = None,
        handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
    ) -> None:
        self._core = TLSCore(endpoint, transport, server_hostname=server_hostname, tickets=tickets)
        self._timeout = transport.gettimeout()
        prepare_socket(transport)
        self._transport = transport
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._handshake_deadline: float | None = None
        self._handshake_lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._call_lock = threading.Lock()
        self._open_files = 0
        self._close_when_unused = False
        self._tickets_may_come = not endpoint.server_side
        self.server_side = endpoint.server_side
        self.server_hostname = server_hostname

    def __repr__(self) -> str:
        state = "established" if self._core.is_established else "not established"
        return f"<TLSSocket {state} on descriptor {self._transport.fileno()}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._close_now(say_close_notify=False)

    # What was negotiated

    def do_handshake(self) -> None:
        """Do the handshake and check what it negotiated, unless that is done already.

        Raises `HandshakeTimeout` past the deadline, which starts with the first call.
        """
        if self._core.is_established:
            return
        with self._handshake_lock:
            now = time.monotonic()
            if self._handshake_deadline is None:
                self._handshake_deadline = now + self._handshake_timeout_seconds
            deadline = self._handshake_deadline
            if self._timeout:
                deadline = min(deadline, now + self._timeout)
            try:
                self._repeat(self._core.handshake, deadline)
            except TimeoutError as timeout:
                if isinstance(timeout, TransportError) or timeout.errno is not None:
                    raise  # an earlier one, raised again, or TCP's own
                error = failures.handshake_timed_out()
                with self._call_lock:
                    self._core.fail(error)
                raise error from None

    @property
    def negotiated(self) -> NegotiatedSession:
        """The proof of what was negotiated. Raises `APIMisuse` before the handshake is done."""
        return self._core.negotiated

    @property
    def authorized_peer(self) -> AuthorizedPeer | None:
        """The proof of who was let in; None where no authorization was asked for."""
        return self._core.authorized_peer

    def export_keying_material(
        self, label: str, length_bytes: int, context: bytes | None = None
    ) -> bytes:
        """Return keying material bound to this session (RFC 9846 section 7.5, RFC 5705).

        `length_bytes` is 1 to 8160. Raises `APIMisuse` for another one.
        """
        self.do_handshake()
        with self._call_lock:
            return self._core.export_keying_material(label, length_bytes, context)

    # Receiving

    def recv(self, limit_bytes: int = DEFAULT_RECEIVE_BYTES, flags: int = 0) -> bytes:
        """Return at most `limit_bytes`, as they come; empty once the peer said close_notify."""
        _require_no_flags(flags)
        if limit_bytes < 0:
            raise ValueError("negative buffer size in recv")
        self.do_handshake()
        with self._call_lock:
            data = self._core.read(limit_bytes)
        if isinstance(data, Want):
            data = self._complete(data, lambda: self._core.read(limit_bytes), self._deadline())
        self._tickets_may_come = False
        return data

    def recv_into(self, buffer: Buffer, limit_bytes: int = 0, flags: int = 0) -> int:
        """Read into `buffer`, at most `limit_bytes` of it if not zero; zero on close_notify."""
        _require_no_flags(flags)
        view = memoryview(buffer).cast("B")
        if limit_bytes:
            view = view[:limit_bytes]
        self.do_handshake()
        with self._call_lock:
            count = self._core.read_into(view)
        if isinstance(count, Want):
            count = self._complete(count, lambda: self._core.read_into(view), self._deadline())
        self._tickets_may_come = False
        return count

    @overload
    def read(self, limit_bytes: int = ..., buffer: None = None) -> bytes: ...
    @overload
    def read(self, limit_bytes: int, buffer: Buffer) -> int: ...
    def read(
        self, limit_bytes: int = DEFAULT_RECEIVE_BYTES, buffer: Buffer | None = None
    ) -> bytes | int:
        """Receive as `recv` does, or into `buffer` as `recv_into` does."""
        if buffer is None:
            return self.recv(limit_bytes)
        return self.recv_into(buffer, limit_bytes)

    def pending(self) -> int:
        """Return how many bytes `recv` can return although the descriptor may not be readable."""
        with self._call_lock:
            return self._core.pending_bytes

    # Sending

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Send some of `data` and return how much: up to 1 MiB, or a record if non-blocking.

        After `WantRead` or `WantWrite` the next send must begin with the same data.
        """
        _require_no_flags(flags)
        view = memoryview(data).cast("B")
        self.do_handshake()
        limit = MAX_RECORD_BYTES if self._timeout == 0 else MAX_WRITE_BYTES
        with self._send_lock:
            return self._send(view[:limit], self._deadline())

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Send all of `data`. After a `TimeoutError` part of it is sent: close the connection."""
        _require_no_flags(flags)
        view = memoryview(data).cast("B")
        self.do_handshake()
        deadline = self._deadline()
        with self._send_lock:
            for start in range(0, len(view), MAX_WRITE_BYTES):
                self._send(view[start : start + MAX_WRITE_BYTES], deadline)

    def write(self, data: Buffer) -> int:
        """Send as `send` does."""
        return self.send(data)

    def _send(self, view: memoryview, deadline: float | None) -> int:
        try:
            return self._repeat(lambda: self._core.write(view), deadline)
        except TimeoutError as timeout:
            if timeout.errno is None:  # else it is TCP's own
                with self._call_lock:
                    self._core.fail(
                        APIMisuse(
                            "an earlier send timed out with part of its data sent",
                            advice="close the connection and open a new one",
                        )
                    )
            raise

    def sendfile(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send a file from `offset` to its end, or `count` bytes of it; return how many."""
        if offset:
            file.seek(offset)
        total = 0
        while count is None or total < count:
            limit = MAX_WRITE_BYTES if count is None else min(MAX_WRITE_BYTES, count - total)
            if not (chunk := file.read(limit)):
                break
            self.sendall(chunk)
            total += len(chunk)
        return total

    # Files

    @overload
    def makefile(
        self,
        mode: BinaryMode,
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[bytes]: ...
    @overload
    def makefile(
        self,
        mode: TextMode = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[str]: ...
    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[bytes] | IO[str]:
        """Return a file over this socket, as `socket.socket.makefile` does.

        The connection stays open until the socket and all its files are closed.
        """
        file = open_socket_file(
            self, mode, buffering, encoding=encoding, errors=errors, newline=newline
        )
        self._open_files += 1
        return file

    def file_closed(self) -> None:
        """Take note that a file of `makefile` was closed; for that file's own use."""
        self._open_files -= 1
        if self._close_when_unused and self._open_files == 0:
            self._close_now(say_close_notify=True)

    # Ending

    def shutdown(self, how: int) -> None:
        """Say close_notify if `how` ends our direction, then shut the socket down as asked."""
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._say_close_notify()
        self._transport.shutdown(how)

    def unwrap(self) -> socket.socket:
        """End TLS in both directions and return the TCP socket, its timeout restored.

        Waits for the peer's close_notify up to the timeout. Raises `APIMisuse` if the peer was
        still sending data, which would be lost.
        """
        self.do_handshake()
        deadline = self._deadline()
        with self._send_lock:
            self._repeat(self._core.close_notify, deadline)
        if self._repeat(lambda: self._core.read(1), deadline):
            raise APIMisuse(
                "the peer was still sending when TLS was to end",
                advice="receive until the empty bytes, then unwrap",
            )
        with self._call_lock:
            self._core.abandon()
            transport = socket.socket(fileno=self._transport.detach())
        transport.settimeout(self._timeout)
        return transport

    def close(self) -> None:
        """Say close_notify and close, waiting a second at most; later calls do nothing.

        With files of `makefile` still open, the last of them closes the connection.
        """
        if self._open_files:
            self._close_when_unused = True
        else:
            self._close_now(say_close_notify=True)

    def _close_now(self, *, say_close_notify: bool) -> None:
        if say_close_notify:
            self._say_close_notify()
        with self._call_lock:
            linger = say_close_notify and self._tickets_may_come and self._core.is_established
            self._core.abandon()
        if linger:
            self._await_end()
        with self._call_lock:
            if self._transport.fileno() >= 0:
                self._core.close_transport()

    def _await_end(self) -> None:
        """Wait a second at most for the peer to end, so that its tickets do not find us gone."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_SECONDS
        poll = select.poll()
        try:
            self._transport.shutdown(socket.SHUT_WR)
            poll.register(self._transport, select.POLLIN)
            while time.monotonic() < deadline:
                if not poll.poll(poll_milliseconds(deadline)):
                    continue
                with self._call_lock:
                    if not self._core.discard_input():
                        return
        except (OSError, ValueError):  # gone already, or closed by another thread
            return

    def _say_close_notify(self) -> None:
        """Say close_notify within a second or not at all; another thread's send is not cut."""
        if self._transport.fileno() < 0 or not self._send_lock.acquire(
            timeout=_CLOSE_TIMEOUT_SECONDS
        ):
            return
        try:
            deadline = time.monotonic() + _CLOSE_TIMEOUT_SECONDS
            self._repeat(self._core.close_notify, deadline, always_wait=True)
        except OSError:
            pass  # the peer takes nothing any more, and will see a truncation
        finally:
            self._send_lock.release()

    # Waiting

    def _deadline(self) -> float | None:
        return time.monotonic() + self._timeout if self._timeout else None

    def _repeat(
        self,
        operation: Callable[[], _Result | Want],
        deadline: float | None,
        *,
        always_wait: bool = False,
    ) -> _Result:
        """Call until the operation is done, waiting between calls as the timeout allows."""
        with self._call_lock:
            result = operation()
        if isinstance(result, Want):
            return self._complete(result, operation, deadline, always_wait=always_wait)
        return result

    def _complete(
        self,
        want: Want,
        operation: Callable[[], _Result | Want],
        deadline: float | None,
        *,
        always_wait: bool = False,
    ) -> _Result:
        """Wait and call until an operation is done that wanted to wait when it was called first."""
        result: _Result | Want = want
        while isinstance(result, Want):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError("timed out")
            if self._timeout == 0 and not always_wait:
                raise _WANT_ERRORS[result](f"the socket has to become {_BECOME[result]} first")
            descriptor = self._transport.fileno()
            if descriptor >= 0:  # else the operation says that the connection is closed
                poll = select.poll()
                poll.register(descriptor, _POLL_EVENTS[result])
                poll.poll(poll_milliseconds(deadline))
            with self._call_lock:
                result = operation()
        return result

    # The TCP socket underneath

    def connect(self, address: tuple[str, int]) -> None:
        """Connect a socket that was wrapped before it was connected, then do the handshake.

        A non-blocking socket does its handshake later, as does one that was told to. Raises what
        `socket.connect` raises.
        """
        self._transport.settimeout(self._timeout)
        try:
            self._transport.connect(address)
        finally:
            self._transport.settimeout(0)
        if self.do_handshake_on_connect and self._timeout != 0:
            self.do_handshake()

    def detach(self) -> int:
        """Give the descriptor up as it is, without close_notify, and return it."""
        with self._call_lock:
            self._core.abandon()
            return self._transport.detach()

    @property
    def family(self) -> int:
        """The family of the socket's addresses."""
        return self._transport.family

    @property
    def type(self) -> int:
        """The kind of the socket."""
        return self._transport.type

    @property
    def proto(self) -> int:
        """The number of the socket's protocol."""
        return self._transport.proto

    def fileno(self) -> int:
        """Return the descriptor, or -1 once closed."""
        return self._transport.fileno()

    def gettimeout(self) -> float | None:
        """Return the timeout in seconds; None waits forever, zero never."""
        return self._timeout

    timeout = property(gettimeout)

    def settimeout(self, timeout_seconds: float | None) -> None:
        """Set the timeout in seconds of the operations that follow."""
        if timeout_seconds is not None and timeout_seconds < 0:
            raise ValueError("Timeout value out of range")
        self._timeout = timeout_seconds

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001 - the signature of socket.socket
        """Wait forever if true, never if false."""
        self._timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        """Return whether operations wait."""
        return self._timeout != 0

    def getpeername(self) -> tuple[str, int]:
        """Return the peer's address, in the form of the socket's family."""
        return self._transport.getpeername()  # type: ignore[no-any-return] # typeshed cannot say

    def getsockname(self) -> tuple[str, int]:
        """Return this side's address, in the form of the socket's family."""
        return self._transport.getsockname()  # type: ignore[no-any-return] # typeshed cannot say

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        """Set an option of the TCP socket."""
        self._transport.setsockopt(level, name, value)

    def getsockopt(self, level: int, name: int) -> int:
        """Return an integer option of the TCP socket."""
        return self._transport.getsockopt(level, name)


def _require_no_flags(flags: int) -> None:
    if flags:
        raise ValueError("flags such as MSG_PEEK have no meaning over TLS")


_WANT_ERRORS: Final = {Want.READ: WantRead, Want.WRITE: WantWrite}
_BECOME: Final = {Want.READ: "readable", Want.WRITE: "writable"}
