"""One TLS connection in the event loop: `TLSStream`, with the shape of asyncio's streams.

The stream sits on a socket-bound `TLSCore` and asks the loop for nothing but readiness: there is no
asyncio transport, no protocol, and no copy of the ciphertext in Python. What that means:

**Reading is on demand.** `read` asks the core; if the core wants to read, it waits until the
descriptor is readable and asks again. Nothing is read ahead of the application, so TCP's own window
is the back-pressure, and an idle connection holds no buffer. The socket is registered once for all
waits, in an epoll of ours: see `transport.readiness` for why, and for what that asks of us. A read
that finds data does not wait, so one read in 64 lets others run before it takes anything: a peer
that sent records of a byte fast enough had the loop for itself for a second. The same holds for a
`drain` or `send_all` whose data the socket takes at once, after it has sent.

**Writing is buffered.** `write` takes the data and returns; see `transport.send_queue` for the
order and the chunks. Small writes of one turn of the loop are sent by one call; what reaches a
record's size is sent at once. `drain` sends what it can and waits while more than the high-water
mark is queued.

**Cancellation.** Every wait is a wait for readiness, and no byte is on its way while it lasts: a
cancelled `read` has consumed nothing, and a cancelled `readexactly`, `readuntil` or `read(-1)`
leaves what it had in the stream's own buffer for the next call. A cancelled `drain` changes
nothing. A cancelled handshake is over: the connection is closed.

**Ending.** `close` lets the queue drain, says close_notify, ends the TCP direction and closes, all
within the shutdown timeout; it never waits for the peer's close_notify, so a peer that does not
send one cannot hold it up. A client that received nothing at all waits a second at most for the
server to end: see "Closing a socket politely" in `transport.connection`. `abort` closes at once
without close_notify, which the peer sees as a truncation: right for data that is not complete.
Leaving `async with` by an exception aborts, and so does dropping a stream that was not closed, with
a `ResourceWarning`.

Errors of sending happen in the loop's callback, where nobody could catch them; they are kept and
raised by the next `write` or `drain`. A stream belongs to one loop and one thread; one task may
read while another writes, and two that read at once are refused.
"""

from __future__ import annotations

import asyncio
import select
import socket
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self
from weakref import ref

from transport import failures
from transport.connection import MAX_RECORD_BYTES, TLSCore, Want
from transport.errors import APIMisuse
from transport.readiness import Readiness, Waiters
from transport.send_queue import SendQueue

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from transport.authorization import AuthorizedPeer
    from transport.negotiated import NegotiatedSession

    HandshakeEnd = Callable[[Exception | None], None]

__all__ = ["DEFAULT_LIMIT_BYTES", "DEFAULT_SHUTDOWN_TIMEOUT_SECONDS", "TLSStream"]

DEFAULT_LIMIT_BYTES: Final = 64 * 1024
DEFAULT_SHUTDOWN_TIMEOUT_SECONDS: Final = 5.0
_HIGH_WATER_BYTES: Final = 64 * 1024
_LINGER_SECONDS: Final = 1.0
_CALLS_PER_TURN: Final = 64


class TLSStream:
    """An established TLS connection; made by `open_connection` and `start_server`.

    Methods raise `TransportError` as `transport.errors` describes, and `OSError`.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_closed_waiter",
        "_closing",
        "_core",
        "_ended",
        "_eof_requested",
        "_finished",
        "_flush_scheduled",
        "_handshake_ended",
        "_handshake_timer",
        "_limit_bytes",
        "_lingering",
        "_loop",
        "_queue",
        "_readers",
        "_readiness",
        "_reading",
        "_registered",
        "_shutdown_timeout_seconds",
        "_shutdown_timer",
        "_tickets_may_come",
        "_transport",
        "_turn",
        "_watches_writing",
        "_write_blocked",
        "_write_failure",
        "_writers",
    )

    def __init__(
        self,
        transport: socket.socket,
        core: TLSCore,
        *,
        shutdown_timeout_seconds: float,
        limit_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._core = core
        self._shutdown_timeout_seconds = shutdown_timeout_seconds
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()  # read but not returned: of readuntil, or a cancelled call
        self._ended = False  # the peer said close_notify
        self._reading = False
        self._readiness = Readiness.of_running_loop()
        self._readers = Waiters(self._readiness)
        self._writers = Waiters(self._readiness)
        self._registered = False
        self._watches_writing = False
        self._handshake_ended: HandshakeEnd | None = None  # while one is under way
        self._handshake_timer: asyncio.TimerHandle | None = None
        self._queue = SendQueue()
        self._flush_scheduled = False
        self._write_blocked = False
        self._write_failure: OSError | None = None
        self._eof_requested = False
        self._closing = False
        self._finished = False
        self._closed_waiter: asyncio.Future[None] | None = None
        self._shutdown_timer: asyncio.TimerHandle | None = None
        self._tickets_may_come = core.is_client
        self._lingering = False
        self._turn = 0  # calls since the last that let others run

    def __repr__(self) -> str:
        state = "closing" if self._closing else "open"
        return f"<TLSStream {state} on descriptor {self._transport.fileno()}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
        await self.wait_closed()

    # What was negotiated

    @property
    def negotiated(self) -> NegotiatedSession:
        """The proof of what was negotiated."""
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
        return self._core.export_keying_material(label, length_bytes, context)

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return `peername`, `sockname`, `socket` or `negotiated`; `default` for another name."""
        if name == "negotiated":
            return self._core.negotiated
        if name == "socket":
            return self._transport
        calls = {"peername": self._transport.getpeername, "sockname": self._transport.getsockname}
        with suppress(OSError):  # not connected any more
            return calls[name]() if name in calls else default
        return default

    # The handshake

    def begin_handshake(self, timeout_seconds: float, ended: HandshakeEnd) -> None:
        """Do the handshake as the peer's messages come; once (see `transport.establishing`).

        `ended` is called at the end, perhaps before this returns: with None, or with the error,
        and then whoever called has to abort. It is not called once the stream was aborted.
        """
        self._handshake_ended = ended
        self._shake_hands()
        if self._handshake_ended is not None:
            self._handshake_timer = self._loop.call_later(
                timeout_seconds, self._handshake_timed_out
            )

    def _shake_hands(self) -> None:
        try:
            want = self._core.handshake()
            if want is not None:
                self._await_ready(want)
                return
        except Exception as error:  # noqa: BLE001 - whoever began the handshake is told
            self._end_handshake(error)
        else:
            self._end_handshake(None)

    def _end_handshake(self, error: Exception | None) -> None:
        ended = self._forget_handshake()
        if ended is not None:
            ended(error)

    def _forget_handshake(self) -> HandshakeEnd | None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
        ended, self._handshake_ended = self._handshake_ended, None
        return ended

    def _handshake_timed_out(self) -> None:
        timeout = failures.handshake_timed_out()
        self._core.fail(timeout)
        self._end_handshake(timeout)

    # Reading

    async def read(self, n: int = -1) -> bytes:
        """Return at most `n` bytes as they come, or all until close_notify if `n` is negative.

        Empty bytes mean that the peer said close_notify; an end without it is `TruncatedStream`.
        """
        if n < 0:
            while block := await self._receive(MAX_RECORD_BYTES):
                self._buffer += block
            return self._take(len(self._buffer))
        if n == 0 or self._buffer:
            return self._take(n)
        return await self._receive(n)

    async def readexactly(self, n: int) -> bytes:
        """Return exactly `n` bytes; `asyncio.IncompleteReadError` if close_notify comes before."""
        if n < 0:
            raise ValueError("readexactly size can not be less than zero")
        while (missing := n - len(self._buffer)) > 0:
            block = await self._receive(min(missing, MAX_RECORD_BYTES))
            if not block:
                raise asyncio.IncompleteReadError(self._take(len(self._buffer)), n)
            self._buffer += block
        return self._take(n)

    async def readuntil(self, separator: bytes = b"\n") -> bytes:
        """Return data up to and with `separator`.

        Raises `asyncio.IncompleteReadError` if close_notify comes before it, and
        `asyncio.LimitOverrunError` if more than the stream's limit comes before it. The data stays
        in the stream then, and the first `consumed` bytes of it hold no part of the separator.
        """
        if not separator:
            raise ValueError("Separator should be at least one-byte string")
        searched = 0
        while (position := self._buffer.find(separator, searched)) < 0:
            searched = max(len(self._buffer) - len(separator) + 1, 0)
            if searched > self._limit_bytes:
                raise asyncio.LimitOverrunError("no separator within the limit", searched)
            block = await self._receive(MAX_RECORD_BYTES)
            if not block:
                raise asyncio.IncompleteReadError(self._take(len(self._buffer)), None)
            self._buffer += block
        if position > self._limit_bytes:
            raise asyncio.LimitOverrunError("the separator is beyond the limit", position)
        return self._take(position + len(separator))

    def _take(self, n: int) -> bytes:
        data = bytes(self._buffer[:n])
        del self._buffer[:n]
        return data

    async def readline(self) -> bytes:
        """Return a line with its newline, or what there is of it before close_notify.

        Raises `ValueError` for a line beyond the stream's limit. It is dropped, or what was read of
        it if its end was not.
        """
        try:
            return await self.readuntil(b"\n")
        except asyncio.IncompleteReadError as incomplete:
            return incomplete.partial
        except asyncio.LimitOverrunError as overrun:
            self._take(self._buffer.find(b"\n", overrun.consumed) + 1 or len(self._buffer))
            raise ValueError(str(overrun)) from None

    def at_eof(self) -> bool:
        """Return whether the peer said close_notify and all before it was read."""
        return self._ended and not self._buffer

    async def _receive(self, limit_bytes: int) -> bytes:
        if self._ended:
            return b""
        if self._reading:
            raise APIMisuse("two tasks read from one stream", advice="let one of them read")
        self._reading = True
        try:
            await self._take_turn()
            while isinstance(data := self._core.read(limit_bytes), Want):
                self._await_ready(data)
                if data is Want.READ:
                    await self._readers.wait()
                else:
                    self._write_blocked = True
                    await self._writers.wait()
        finally:
            self._reading = False
        self._ended = not data
        self._tickets_may_come = False  # they came before this
        return data

    async def _take_turn(self) -> None:
        """Let others run, once in a while: who never has to wait would keep the loop."""
        self._turn = (self._turn + 1) % _CALLS_PER_TURN
        if not self._turn:
            await asyncio.sleep(0)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue `data` to be sent; follow with `drain`, or memory is the limit."""
        self._require_writable()
        if self._queue.add(data):
            self._flush_unless_full()
        elif not self._flush_scheduled and not self._write_blocked:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def writelines(self, data: list[bytes]) -> None:
        """Queue several pieces of data."""
        for piece in data:
            self.write(piece)

    async def drain(self) -> None:
        """Send what can be sent, and wait until little enough is queued.

        Raises the error of an earlier send.
        """
        self._flush_unless_full()
        await self._take_turn()
        while self._write_failure is None and self._queue.queued_bytes > _HIGH_WATER_BYTES:
            await self._writers.wait()
        self._raise_failure()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data` and wait until TCP has taken all of it."""
        self.write(data)
        self._flush_unless_full()
        await self._take_turn()
        while self._write_failure is None and self._queue.queued_bytes:
            await self._writers.wait()
        self._raise_failure()

    def can_write_eof(self) -> bool:
        """Return True: TLS ends each direction by itself."""
        return True

    def write_eof(self) -> None:
        """Say close_notify once all is sent; reading goes on (half-close)."""
        if not self._eof_requested:
            self._require_writable()
            self._eof_requested = True
            self._flush_unless_full()

    def _raise_failure(self) -> None:
        if self._write_failure is not None:
            raise self._write_failure
        if self._finished:
            raise APIMisuse("the connection is closed", advice="open a new one")

    def _require_writable(self) -> None:
        self._raise_failure()
        if self._closing or self._eof_requested:
            raise APIMisuse("this side has ended its data", advice="write before closing")

    def _flush_unless_full(self) -> None:
        if not self._write_blocked:
            self._flush()

    def _flush(self) -> None:
        """Send until the queue is empty or the socket is full; never raises."""
        self._flush_scheduled = False
        if self._write_failure is not None or self._transport.fileno() < 0:
            return
        try:
            want = self._send_queue()
        except OSError as error:
            self._write_failure = error
            self._queue.clear()
            want = None
        self._write_blocked = want is not None
        if want is not None:
            self._await_ready(want)
        self._writers.wake()
        if self._closing and want is None:
            self._finish_after_tickets()

    def _send_queue(self) -> Want | None:
        want = self._queue.send(self._core)
        if want is None and (self._eof_requested or self._closing):
            return self._core.close_notify()
        return want

    # Ending

    def is_closing(self) -> bool:
        """Return whether `close` or `abort` was called."""
        return self._closing

    def close(self) -> None:
        """Send what is queued, say close_notify and close, within the shutdown timeout."""
        if self._closing:
            return
        self._closing = True
        if self._write_failure is not None:
            self._finish()
        else:
            self._flush_unless_full()
        if not self._finished and self._shutdown_timer is None:
            self._shutdown_timer = self._loop.call_later(
                self._shutdown_timeout_seconds, self._finish
            )

    def abort(self) -> None:
        """Close at once, without close_notify."""
        self._closing = True
        self._finish()

    def _finish_after_tickets(self) -> None:
        """Finish; but first let the peer end, if its tickets could still find us gone."""
        if self._lingering:
            return
        linger = self._tickets_may_come and self._write_failure is None
        if not linger or not self._core.is_established:
            self._finish()
            return
        self._lingering = True
        if self._shutdown_timer is not None:
            self._shutdown_timer.cancel()
        self._shutdown_timer = self._loop.call_later(_LINGER_SECONDS, self._finish)
        self._loop.add_reader(self._transport.fileno(), self._discard)
        try:
            self._transport.shutdown(socket.SHUT_WR)
        except OSError:
            self._finish()

    def _discard(self) -> None:
        try:
            ended = not self._core.discard_input()
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._finish()

    async def wait_closed(self) -> None:
        """Wait until the connection is closed."""
        if self._finished:
            return
        if self._closed_waiter is None:
            self._closed_waiter = self._loop.create_future()
        await asyncio.shield(self._closed_waiter)

    def _finish(self) -> None:
        if self._finished:
            return
        self._forget_handshake()
        if self._shutdown_timer is not None:
            self._shutdown_timer.cancel()
        if self._lingering:
            self._loop.remove_reader(self._transport.fileno())
        self._close_transport()
        self._queue.clear()
        self._write_blocked = False
        self._readers.wake()
        self._writers.wake()
        if self._closed_waiter is not None:
            self._closed_waiter.set_result(None)

    def _close_transport(self) -> None:
        self._finished = True
        if self._registered:
            self._readiness.forget(self._transport.fileno())
        self._core.abandon()
        self._core.close_transport()

    def __del__(self) -> None:
        # Perhaps half made, perhaps without its loop; nobody waits for it.
        if getattr(self, "_finished", True):
            return
        unclosed = f"unclosed {self!r}"
        self._close_transport()
        if not self._closing:
            warnings.warn(unclosed, ResourceWarning, stacklevel=2, source=self)

    # Readiness

    def _await_ready(self, want: Want) -> None:
        """Let `_on_ready` be called when the socket is ready for what it was not ready for."""
        if not self._registered:
            self._registered = True
            self._readiness.register(self._transport.fileno(), partial(_tell, ref(self)))
        if want is Want.WRITE and not self._watches_writing:
            self._watches_writing = True
            self._readiness.watch_writing(self._transport.fileno())

    def _on_ready(self, events: int) -> None:
        if self._handshake_ended is not None:
            self._shake_hands()
            return
        if events != select.EPOLLOUT:
            self._readers.wake()
        if self._write_blocked:
            self._flush()


def _tell(reference: ref[TLSStream], events: int) -> None:
    """Pass events on to a stream, if it is still there."""
    stream = reference()
    if stream is not None:
        stream._on_ready(events)  # noqa: SLF001 - a callback that does not keep it alive
