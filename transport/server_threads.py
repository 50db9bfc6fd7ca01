"""The blocking engine of a worker: a thread for each connection, the same rules as the other.

For handlers that block. What `transport.server_engine` says about the order of events, deadlines
and drain holds here too; what differs:

**Threads.** One thread for each listening socket accepts; each connection then has its own, so that
a handshake that stalls holds up nobody. One more thread looks at deadlines and files. All tables
are under one lock, held for a few lines at a time and never around a call into TLS.

**Ending a connection from outside** its thread means shutting its socket down: the thread, wherever
it waits, sees the end of the stream. An idle one that is drained is closed through `TLSSocket`,
which says close_notify.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
import time
from contextlib import suppress
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from transport.server_engine import idle_seconds, refuse_politely
from transport.server_limits import ConnectionLedger, DeadlineHeap, client_key
from transport.server_settings import BlockingHandler, Client, ServerSettings, WorkerState
from transport.tls_socket import TLSSocket

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transport.credentials import LiveIdentity, ServedCredential
    from transport.server_events import ServerEvents

__all__ = ["ThreadedEngine"]

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_ACCEPT_PAUSE_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 0.25


class _NotAdmitted(Exception):
    """A handshake failed, or its peer is not authorized."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Visit:
    """One connection that the engine looks after."""

    __slots__ = (
        "client",
        "ended",
        "key",
        "lives_until",
        "started",
        "stream",
        "thread",
        "transport",
    )

    def __init__(
        self,
        transport: socket.socket,
        client: Client,
        key: str,
        started: float,
        lives_until: float | None,
    ) -> None:
        self.transport = transport
        self.client = client
        self.key = key
        self.started = started
        self.lives_until = lives_until
        self.stream: TLSSocket | None = None
        self.thread: threading.Thread | None = None
        self.ended = False


class ThreadedEngine:
    """Serves listening sockets on threads; the engine owns them. The identity must be loaded."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        settings: ServerSettings,
        identity: LiveIdentity,
        events: ServerEvents,
    ) -> None:
        self._listeners = tuple(listeners)
        self._settings = settings
        self._limits = settings.limits
        self._handler = cast("BlockingHandler", settings.handler)
        self._identity = identity
        self._events = events
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()
        self._ledger = ConnectionLedger(settings.limits, time.monotonic())
        self._deadlines: DeadlineHeap[_Visit] = DeadlineHeap(attrgetter("ended"))
        self._visits: set[_Visit] = set()
        self._state = WorkerState()
        self._a_connection_ended = threading.Event()
        self._stopping = threading.Event()
        self._stop_reading, self._stop_writing = socket.socketpair()
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"<ThreadedEngine with {self.open_connections} connections>"

    @property
    def open_connections(self) -> int:
        """How many connections are open, those in their handshake included."""
        with self._lock:
            return self._ledger.open_connections

    def start(self) -> None:
        """Begin to accept."""
        for listener in self._listeners:
            listener.settimeout(0)
            self._threads.append(
                threading.Thread(target=self._accept_for_ever, args=(listener,), daemon=True)
            )
        self._threads.append(threading.Thread(target=self._look_after, daemon=True))
        for thread in self._threads:
            thread.start()

    # Credentials

    def reload(self) -> bool:
        """Load all credentials anew; False if they are bad and the old ones stay."""
        return self._load(None)

    def replace_credentials(self, served: Sequence[ServedCredential]) -> bool:
        """Serve with other credentials from now on; False if they are bad and the old ones stay."""
        return self._load(served)

    def _load(self, served: Sequence[ServedCredential] | None) -> bool:
        with self._load_lock:
            try:
                loaded = self._identity.load(served)
            except Exception as error:  # noqa: BLE001 - a source may be anybody's code
                self._events.credentials_kept(error)
                return False
            self._events.credentials_loaded(loaded)
            return True

    # Accepting

    def _accept_for_ever(self, listener: socket.socket) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(self._stop_reading, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll()
            self._accept_all(listener)

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            self._a_connection_ended.clear()
            try:
                transport, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._events.accepting_paused(error)
                self._a_connection_ended.wait(_ACCEPT_PAUSE_SECONDS)
                return
            self._admit(transport, address)

    def _admit(self, transport: socket.socket, address: tuple[str, int]) -> None:
        now = time.monotonic()
        key = client_key(str(address[0]))
        with self._lock:
            refusal = self._ledger.admit(key, now)
        if refusal is not None:
            refuse_politely(transport)
            self._events.refused(address, refusal)
            return
        lifetime = self._limits.lifetime_seconds
        visit = _Visit(
            transport,
            Client(address, self._state),
            key,
            now,
            None if lifetime is None else now + lifetime,
        )
        self._events.meter.opened()
        visit.thread = threading.Thread(target=self._run, args=(visit,), daemon=True)
        with self._lock:
            self._visits.add(visit)
        try:
            visit.thread.start()
        except RuntimeError:  # no more threads to be had
            transport.close()
            self._end(visit)
            self._events.accepting_paused(OSError(errno.EAGAIN, "no thread can be started"))

    # One connection

    def _run(self, visit: _Visit) -> None:
        try:
            self._serve(visit)
        except Exception as error:  # noqa: BLE001 - a handler is anybody's code
            if visit.client.cut_reason is None:
                self._events.connection_failed(visit.client.address, error)
        finally:
            self._end(visit)

    def _serve(self, visit: _Visit) -> None:
        address = visit.client.address
        try:
            stream = TLSSocket(
                visit.transport,
                self._identity.endpoint,
                handshake_timeout_seconds=self._limits.handshake_timeout_seconds,
            )
        except OSError as error:
            visit.transport.close()
            self._events.handshake_failed(address, error, time.monotonic() - visit.started)
            return
        try:
            with stream:  # left by an exception, it says no close_notify
                self._shake_hands(stream)
                now = time.monotonic()
                self._events.handshake_done(address, stream.negotiated, now - visit.started)
                visit.stream = stream
                self._watch(visit, now)
                self._handler(stream, visit.client)
        except _NotAdmitted as refusal:
            elapsed = time.monotonic() - visit.started
            self._events.handshake_failed(address, refusal.error, elapsed)

    def _shake_hands(self, stream: TLSSocket) -> None:
        try:
            stream.do_handshake()
            if self._settings.authorize is not None:
                self._settings.authorize(stream.negotiated)
        except OSError as error:
            raise _NotAdmitted(error) from error

    def _end(self, visit: _Visit) -> None:
        with self._lock:
            visit.ended = True
            visit.stream = None  # the heap may keep the visit for a while, but not all that memory
            self._deadlines.item_ended()
            self._visits.discard(visit)
            self._ledger.release(visit.key)
        self._events.meter.closed()
        self._a_connection_ended.set()

    # Deadlines and files

    def _watch(self, visit: _Visit, now: float) -> None:
        idle = self._limits.idle_timeout_seconds
        due = min(
            float("inf") if idle is None else now + idle,
            float("inf") if visit.lives_until is None else visit.lives_until,
        )
        if due < float("inf"):
            with self._lock:
                self._deadlines.push(due, visit)

    def _look_after(self) -> None:
        interval = self._settings.reload_check_seconds
        files_due = time.monotonic() + (interval or 0.0)
        while not self._stopping.wait(_SWEEP_SECONDS):
            now = time.monotonic()
            for visit in self._due_visits(now):
                self._look_at(visit, now)
            if interval is not None and now >= files_due:
                files_due = now + interval
                if self._identity.has_changed():
                    self.reload()

    def _due_visits(self, now: float) -> list[_Visit]:
        due: list[_Visit] = []
        with self._lock:
            while (visit := self._deadlines.pop_due(now)) is not None:
                due.append(visit)
        return due

    def _look_at(self, visit: _Visit, now: float) -> None:
        if visit.lives_until is not None and now >= visit.lives_until:
            self._cut(visit, "lifetime is over")
            return
        limit = self._limits.idle_timeout_seconds
        idle = idle_seconds(visit.transport)
        if limit is not None and idle is not None and idle >= limit:
            self._cut(visit, "idle for too long")
            return
        self._watch(visit, now - (idle or 0.0))

    def _cut(self, visit: _Visit, reason: str) -> None:
        visit.client.cut_reason = reason
        self._events.connection_cut(visit.client.address, reason)
        with suppress(OSError):  # it ended meanwhile
            visit.transport.shutdown(socket.SHUT_RDWR)

    # Stopping

    def drain(self) -> None:
        """Stop accepting, let open requests finish within the drain deadline, end the others."""
        deadline = time.monotonic() + self._limits.drain_seconds
        self._stopping.set()
        self._stop_writing.close()
        for thread in self._threads:
            thread.join(self._limits.shutdown_timeout_seconds)
        for listener in self._listeners:
            self._accept_all(listener)
            listener.close()
        self._stop_reading.close()
        self._state.draining = True
        for visit in self._open_visits():
            stream = visit.stream  # its own thread may end it meanwhile
            if visit.client.is_idle and stream is not None:
                visit.client.cut_reason = "drained while idle"
                stream.close()
        self._join_until(deadline)
        for visit in self._open_visits():
            if visit.client.cut_reason is None:
                self._cut(visit, "not finished when draining ended")
        self._join_until(time.monotonic() + self._limits.shutdown_timeout_seconds)

    def _open_visits(self) -> list[_Visit]:
        with self._lock:
            return list(self._visits)

    def _join_until(self, deadline: float) -> None:
        for visit in self._open_visits():
            if visit.thread is not None:
                visit.thread.join(max(deadline - time.monotonic(), 0.0))
