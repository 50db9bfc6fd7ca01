"""The sockets of the recording relay: every connection's two ends in one poll loop.

Theory of operation
-------------------
Threads that block on one end each would be shorter, but a thread blocked in a send to one end
cannot see the other end's RST, and RSTs are part of what is recorded. The loop blocks in
`poll` and nowhere else.

*Record first, then act.* What was received is recorded before it is queued for the other end;
the same for FIN, RST and the handshake.

*Backpressure.* An end is read only while nothing waits to be sent to its peer, so that one read
at most is held for each direction. An end that hung up or failed is read to its end whatever
waits: its bytes did arrive, and the kernel's buffer bounds them. (A RST that comes
while that buffer is full lies outside the receive window, and the kernel drops it; it comes
again when there is room. So it does between two ends without a relay.)

*Ends.* End of file is recorded as FIN, and passed on as a half-close after the bytes before it.
A reset is recorded as RST, and passed on by closing the other socket with a linger time of
zero, the one way to make the kernel send a RST. A server that refuses appears to the client as
a reset after its handshake with the relay, and in the capture as the refusal it was.

*What poll reports.* POLLERR and POLLHUP come whether asked for or not. Both ends of every
connection therefore stay registered, with an empty mask where nothing is wanted, until an end
is finished in both directions: from then on it would report POLLHUP for ever. Descriptors are
reused at once, so new connections are accepted only after all events of a round are handled;
an event for a closed socket can then never reach its successor.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from interop.capture.streams import Direction, Endpoint
from interop.capture.synthesis import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["RelayLoop"]

_READ_BYTES: Final = 256 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, for no time at all
_FAILED: Final = select.POLLERR | select.POLLHUP
_LEFT_OPEN: Final = "reset by the relay, which was closed before the connection ended"


class _End:
    """One of a connection's two sockets."""

    __slots__ = (
        "direction",
        "fin_waits",
        "mask",
        "outgoing",
        "pair",
        "peer",
        "reading",
        "socket",
        "writing",
    )

    pair: _Pair
    peer: _End

    def __init__(self, own: socket.socket, direction: Direction) -> None:
        self.socket = own
        self.direction = direction  # of what is received from here
        self.reading = True  # until its FIN
        self.writing = True  # until ours
        self.fin_waits = False  # a FIN is to follow the outgoing bytes
        self.outgoing: deque[memoryview] = deque()
        self.mask = -1  # what poll was asked for; -1 when it does not know the socket


class _Pair:
    """A client's connection and the one made to the server for it."""

    __slots__ = ("client", "closed", "connected", "conversation", "server")

    def __init__(self, client: _End, server: _End, conversation: Conversation) -> None:
        self.client, self.server = client, server
        client.peer, server.peer = server, client
        client.pair = server.pair = self
        self.conversation = conversation
        self.connected = False
        self.closed = False


class RelayLoop:
    """Relays between the clients of `listener` and `server`, in the thread that calls `run`.

    `record` gets the packets of each event and a comment on the first. `accepted` counts
    connections; `failure` holds the `OSError` that ended the loop early, such as a full disk.
    """

    def __init__(
        self,
        listener: socket.socket,
        server: tuple[str, int],
        record: Callable[[Sequence[bytes], str], None],
        segment_bytes: int,
    ) -> None:
        self.accepted = 0
        self.failure: OSError | None = None
        self._listener = listener
        self._server = server
        self._record = record
        self._segment_bytes = segment_bytes
        self._drain_seconds = 0.0
        self._deadline: float | None = None  # once stopping
        self._poll = select.poll()
        self._ends: dict[int, _End] = {}
        self._wake_reader, self._wake_writer = socket.socketpair()
        listener.settimeout(0)

    def stop(self, drain_seconds: float) -> None:
        """Accept no more, and end when all connections have, or after `drain_seconds`."""
        self._drain_seconds = drain_seconds
        with suppress(OSError):  # the loop failed and is gone
            self._wake_writer.send(b"\0")

    def run(self) -> None:
        """Relay until stopped; then every socket is closed."""
        try:
            self._relay()
        except OSError as error:
            self.failure = error
        finally:
            for end in list(self._ends.values()):
                self._close(end.pair, abort=True)
            for each in (self._listener, self._wake_reader, self._wake_writer):
                each.close()

    def _relay(self) -> None:
        listening, waking = self._listener.fileno(), self._wake_reader.fileno()
        self._poll.register(listening, select.POLLIN)
        self._poll.register(waking, select.POLLIN)
        while True:
            timeout_seconds = None
            if self._deadline is not None:
                timeout_seconds = self._deadline - time.monotonic()
                if not self._ends or timeout_seconds <= 0:
                    break
            ready = self._poll.poll(timeout_seconds and timeout_seconds * 1000)
            for descriptor, event in ready:
                end = self._ends.get(descriptor)
                if end is not None:
                    self._handle(end, event)
            descriptors = {descriptor for descriptor, _ in ready}
            if waking in descriptors:
                self._begin_stopping()
            elif listening in descriptors:
                self._accept_all()
        for end in list(self._ends.values()):
            if not end.pair.closed:
                self._abandon(end.pair)

    def _begin_stopping(self) -> None:
        self._poll.unregister(self._wake_reader)
        self._accept_all()  # whoever is in the backlog has connected
        self._poll.unregister(self._listener)
        self._listener.close()
        self._deadline = time.monotonic() + self._drain_seconds

    def _abandon(self, pair: _Pair) -> None:
        for end in (pair.server, pair.client) if pair.connected else (pair.server,):
            self._record(pair.conversation.reset(end.direction), _LEFT_OPEN)
        self._close(pair, abort=True)

    # Beginnings

    def _accept_all(self) -> None:
        while True:
            try:
                client, address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            try:
                server = socket.socket(self._listener.family, socket.SOCK_STREAM)
            except OSError:
                client.close()
                raise
            self.accepted += 1
            self._begin(client, server, Endpoint(*address[:2]))

    def _begin(self, client: socket.socket, server: socket.socket, address: Endpoint) -> None:
        conversation = Conversation(
            address,
            Endpoint(*self._server),
            initial_sequences=(secrets.randbits(32), secrets.randbits(32)),
            segment_bytes=self._segment_bytes,
        )
        pair = _Pair(
            _End(client, Direction.CLIENT_TO_SERVER),
            _End(server, Direction.SERVER_TO_CLIENT),
            conversation,
        )
        for end in (pair.client, pair.server):
            end.socket.settimeout(0)
            self._ends[end.socket.fileno()] = end
            with suppress(OSError):  # some systems refuse options of a socket that was reset
                end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._record(conversation.request(), "")
        error = server.connect_ex(self._server)
        if error in {0, errno.EINPROGRESS}:
            self._watch(pair)
        else:
            self._refuse(pair, error)

    def _finish_connecting(self, pair: _Pair) -> None:
        error = pair.server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._refuse(pair, error)
            return
        self._record(pair.conversation.accept(), "")
        pair.connected = True
        self._watch(pair)

    def _refuse(self, pair: _Pair, error: int) -> None:
        # Only a refusal was a RST of the server's; anything else is said in the comment.
        comment = "" if error == errno.ECONNREFUSED else f"no connection: {os.strerror(error)}"
        self._record(pair.conversation.reset(Direction.SERVER_TO_CLIENT), comment)
        self._close(pair, abort=True)

    # Middles

    def _handle(self, end: _End, event: int) -> None:
        pair = end.pair
        if not pair.connected:
            if end is pair.server:
                self._finish_connecting(pair)
            elif event & _FAILED:
                self._reset(end)
            return
        if event & select.POLLOUT:
            self._send(end)
        if end.reading and not pair.closed and event & (select.POLLIN | _FAILED):
            self._receive(end)
        elif not pair.closed and event & select.POLLERR:
            self._reset(end)  # after its FIN
        if not pair.closed:
            self._watch(pair)

    def _receive(self, end: _End) -> None:
        """Record and pass on what one read gives; poll says when there is more."""
        pair, peer = end.pair, end.peer
        try:
            data = end.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._reset(end)
            return
        if data:
            self._record(pair.conversation.data(end.direction, data), "")
            peer.outgoing.append(memoryview(data))
        else:
            self._record(pair.conversation.finish(end.direction), "")
            end.reading = False
            peer.fin_waits = True
        self._send(peer)

    def _send(self, end: _End) -> None:
        """Send what waits for this end, as far as it takes it, and then the FIN that follows."""
        try:
            while end.outgoing:
                waiting = end.outgoing[0]
                sent = end.socket.send(waiting)
                if sent < len(waiting):
                    end.outgoing[0] = waiting[sent:]
                else:
                    end.outgoing.popleft()
            if end.fin_waits and end.writing:
                end.writing = False
                end.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:
            self._reset(end)
            return
        pair = end.pair
        ends = (pair.client, pair.server)
        if not any(each.reading or each.writing for each in ends):
            self._close(pair, abort=False)

    # Ends

    def _reset(self, end: _End) -> None:
        """Record that an end reset its connection, after what it had sent, and pass that on."""
        pair, peer = end.pair, end.peer
        # A send may have met the reset while bytes from before it are still to be read.
        while end.reading and pair.connected and (data := _rest(end.socket)):
            self._record(pair.conversation.data(end.direction, data), "")
            peer.outgoing.append(memoryview(data))
        self._record(pair.conversation.reset(end.direction), "")
        # A RST does not take back what the peer's kernel has: bytes before it may be read.
        with suppress(OSError):
            while peer.outgoing and peer.writing:
                waiting = peer.outgoing.popleft()
                if peer.socket.send(waiting) < len(waiting):
                    break
        self._close(pair, abort=True)

    def _close(self, pair: _Pair, *, abort: bool) -> None:
        pair.closed = True
        for end in (pair.client, pair.server):
            if self._ends.pop(end.socket.fileno(), None) is None:
                continue
            if end.mask >= 0:
                self._poll.unregister(end.socket)
            if abort:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            end.socket.close()

    def _watch(self, pair: _Pair) -> None:
        """Ask poll for what can be acted upon now."""
        for end in (pair.client, pair.server):
            mask = 0
            if not pair.connected:
                mask = select.POLLOUT if end is pair.server else 0
            elif not (end.reading or end.writing):
                mask = -1
            else:
                if end.reading and not end.peer.outgoing:
                    mask = select.POLLIN
                if end.outgoing:
                    mask |= select.POLLOUT
            if mask != end.mask:
                if mask < 0:
                    self._poll.unregister(end.socket)
                else:
                    self._poll.register(end.socket, mask)
                end.mask = mask


def _rest(broken: socket.socket) -> bytes:
    """Return more of what a socket received before it failed, or nothing."""
    try:
        return broken.recv(_READ_BYTES)
    except OSError:
        return b""
