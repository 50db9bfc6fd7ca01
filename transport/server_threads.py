"""The blocking engine of a worker: a thread for each connection, the same rules as the other.

For handlers that block. What `transport.server_engine` says about the order of events, deadlines
and drain holds here too; what differs:

**Threads.** Whoever accepts a connection serves it. A thread waits at the listening sockets, takes
a connection, serves it to its end, and waits again. Nothing is handed from thread to thread, and
none is made while there are enough (see docs/benchmarks.md for what that costs). Before a thread
waits for its client the first time, it starts another one if nobody is left who accepts, so a
handshake that stalls holds up nobody. It does not start one before that: of many clients that
connect and are gone at once each would leave a thread behind that has to be heard, and the threads
would come faster than they end. Of those that have nothing to do a few are kept. Each waits at an
epoll of its own with ``EPOLLEXCLUSIVE``, by which the kernel wakes one of them for a connection.

One more thread looks at deadlines and files. All tables are under one lock, held for a few lines at
a time and never around a call into TLS.

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
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from transport.accepting import (
    ACCEPT_PAUSE_SECONDS,
    MOST_QUEUED,
    NoRoom,
    accept_next,
    refuse_politely,
)
from transport.server_limits import ConnectionLedger, DeadlineHeap
from transport.server_settings import BlockingHandler, ServerSettings, WorkerState
from transport.tls_socket import TLSSocket, WantRead, WantWrite
from transport.visits import Visit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transport.credentials import LiveIdentity, ServedCredential
    from transport.server_events import ServerEvents

__all__ = ["ThreadedEngine"]

_SWEEP_SECONDS: Final = 0.25
_MOST_WAITING: Final = 4  # threads for the next connections


class _NotAdmitted(Exception):
    """A handshake failed, or its peer is not authorized."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


_Visit = Visit[TLSSocket]


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
        self._a_connection_ended = threading.Condition(self._lock)
        self._paused_until = 0.0
        self._stopping = threading.Event()
        self._stop_reading, self._stop_writing = socket.socketpair()
        self._places = [self._place() for _ in range(_MOST_WAITING)]  # where nobody waits
        self._threads: set[threading.Thread] = set()

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
        self._start_thread(self._look_after)
        self._start_thread(self._accept_for_ever)

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

    def _place(self) -> select.epoll:
        """Return a place for one thread to wait at."""
        place = select.epoll()
        for listener in self._listeners:
            place.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        place.register(self._stop_reading, select.EPOLLIN)
        return place

    def _start_thread(self, target: Callable[[], None]) -> None:
        def run() -> None:
            thread = threading.current_thread()
            with self._lock:
                self._threads.add(thread)
            try:
                target()
            finally:
                with self._lock:
                    self._threads.discard(thread)

        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError:
            self._events.accepting_paused(OSError(errno.EAGAIN, "no thread can be started"))

    def _accept_for_ever(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                if not self._places:
                    return  # enough wait
                place = self._places.pop()
            try:
                visit = self._next_visit(place)
            finally:
                with self._lock:
                    self._places.append(place)
            if visit is None:
                return
            self._run(visit)

    def _let_somebody_accept(self) -> None:
        with self._lock:
            nobody_waits = len(self._places) == _MOST_WAITING
        if nobody_waits and not self._stopping.is_set():
            self._start_thread(self._accept_for_ever)

    def _next_visit(self, place: select.epoll) -> _Visit | None:
        """Wait for a connection that is admitted; None when the engine stops."""
        while True:
            place.poll()
            for listener in self._listeners:
                if self._stopping.is_set():
                    return None
                accepted = self._accept(listener)
                visit = None if accepted is None else self._admit(*accepted)
                if visit is not None:
                    return visit

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, tuple[str, int]] | None:
        """Accept a connection if there is one; where there is no room, pause first."""
        try:
            return accept_next(listener)
        except NoRoom as error:
            now = time.monotonic()
            with self._a_connection_ended:
                first = now >= self._paused_until
                self._paused_until = now + ACCEPT_PAUSE_SECONDS
            if first:  # of the threads that wait, one says so
                self._events.accepting_paused(error)
            with self._a_connection_ended:
                self._a_connection_ended.wait(ACCEPT_PAUSE_SECONDS)
            return None
        except OSError:
            if self._stopping.is_set():  # it was closed meanwhile
                return None
            raise

    def _admit(self, transport: socket.socket, address: tuple[str, int]) -> _Visit | None:
        now = time.monotonic()
        visit = _Visit(transport, address, self._state, self._limits, now)
        with self._lock:
            refusal = self._ledger.admit(visit.key, now)
            if refusal is None:
                self._visits.add(visit)
        if refusal is not None:
            refuse_politely(transport)
            self._events.refused(address, refusal)
            return None
        self._events.meter.opened()
        return visit

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
                self._watch(visit, visit.due(now))
                self._handler(stream, visit.client)
        except _NotAdmitted as refusal:
            elapsed = time.monotonic() - visit.started
            self._events.handshake_failed(address, refusal.error, elapsed)

    def _shake_hands(self, stream: TLSSocket) -> None:
        try:
            stream.settimeout(0)
            with suppress(WantRead, WantWrite):
                stream.do_handshake()
            stream.settimeout(None)
            self._let_somebody_accept()
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
            self._a_connection_ended.notify_all()
        self._events.meter.closed()

    # Deadlines and files

    def _watch(self, visit: _Visit, due: float) -> None:
        if due < float("inf"):
            with self._lock:
                self._deadlines.push(due, visit)

    def _look_after(self) -> None:
        interval = self._settings.reload_check_seconds
        files_due = time.monotonic() + (interval or 0.0)
        while not self._stopping.wait(_SWEEP_SECONDS):
            now = time.monotonic()
            for visit in self._due_visits(now):
                reason, due = visit.look(now)
                if reason:
                    self._cut(visit, reason)
                else:
                    self._watch(visit, due)
            self._let_somebody_accept()  # if no thread could be started before
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
        for listener in self._listeners:
            self._accept_all_queued(listener)
            listener.close()
        self._state.draining = True
        for visit in self._open_visits():
            stream = visit.stream  # its own thread may end it meanwhile
            if visit.client.is_idle and stream is not None:
                visit.client.cut_reason = "drained while idle"
                stream.close()
        self._wait_until(deadline)
        for visit in self._open_visits():
            if visit.client.cut_reason is None:
                self._cut(visit, "not finished when draining ended")
        self._wait_until(time.monotonic() + self._limits.shutdown_timeout_seconds)
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(self._limits.shutdown_timeout_seconds)
        for place in self._places:
            place.close()
        self._stop_reading.close()

    def _accept_all_queued(self, listener: socket.socket) -> None:
        for _ in range(MOST_QUEUED):
            accepted = self._accept(listener)
            if accepted is None:
                return
            visit = self._admit(*accepted)
            if visit is not None:
                self._start_thread(partial(self._run, visit))

    def _open_visits(self) -> list[_Visit]:
        with self._lock:
            return list(self._visits)

    def _wait_until(self, deadline: float) -> None:
        """Wait for all connections to end."""
        with self._a_connection_ended:
            self._a_connection_ended.wait_for(
                lambda: not self._visits, max(deadline - time.monotonic(), 0.0)
            )
