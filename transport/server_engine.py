"""The asyncio engine of a worker: accepting, limits, deadlines, credentials, drain.

`ServerEngine` takes listening sockets and serves them in the running loop until it is drained. It
is what each worker process of `transport.server_workers` runs, and it can be used by itself in a
loop that exists already, where `reload` and `replace_credentials` swap what new connections use.

**A connection's way.** It is accepted (`transport.acceptor`), and the ledger is asked. For whom it
admits the handshake begins, under its deadline, in callbacks of the loop; then comes the check of
what was negotiated (`transport.negotiated`), authorization, and a task for the handler. `_end` is
the only place where a place in the ledger is given back.

A connection that is idle for too long or too old (`transport.visits`) ends without close_notify,
since nobody can say that what was sent was complete.

**Drain.** Listening stops first. Connections that are idle (`Client.idle`) close, with
close_notify; the others have until the drain deadline to finish what they do.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, cast

from transport.accepting import refuse_politely
from transport.acceptor import Acceptor
from transport.attendance import Attendance
from transport.establishing import open_stream
from transport.server_limits import ConnectionLedger, DeadlineHeap
from transport.server_settings import Client, Handler, ServerSettings, WorkerState
from transport.tls_stream import DEFAULT_LIMIT_BYTES, TLSStream
from transport.visits import Visit

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from transport.credentials import LiveIdentity, ServedCredential
    from transport.server_events import ServerEvents

__all__ = ["ServerEngine"]

_SWEEP_SECONDS: Final = 0.25


_Visit = Visit[TLSStream]


class ServerEngine:
    """Serves listening sockets in the running event loop; see the module's top.

    `listeners` must be listening; the engine owns them from now on. The identity must be loaded.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        settings: ServerSettings,
        identity: LiveIdentity,
        events: ServerEvents,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._limits = settings.limits
        self._handler = cast("Handler", settings.handler)
        self._identity = identity
        self._events = events
        self._ledger = ConnectionLedger(settings.limits, self._loop.time())
        self._deadlines: DeadlineHeap[_Visit] = DeadlineHeap(attrgetter("ended"))
        self._visits: Attendance[_Visit] = Attendance()
        self._handling: dict[_Visit, asyncio.Task[None]] = {}
        self._state = WorkerState()
        self._acceptor = Acceptor(listeners, take=self._admit, paused=events.accepting_paused)
        self._load_lock = asyncio.Lock()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reloading: asyncio.Task[bool] | None = None

    def __repr__(self) -> str:
        return f"<ServerEngine with {self.open_connections} connections>"

    @property
    def open_connections(self) -> int:
        """How many connections are open, those in their handshake included."""
        return self._ledger.open_connections

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once draining."""
        return self._acceptor.sockets

    def start(self) -> None:
        """Begin to accept."""
        self._acceptor.start()
        self._sweep()
        if self._settings.reload_check_seconds is not None:
            self._look_at_files(self._settings.reload_check_seconds)

    # Credentials

    async def reload(self) -> bool:
        """Load all credentials anew; False if they are bad and the old ones stay."""
        return await self._load(None)

    async def replace_credentials(self, served: Sequence[ServedCredential]) -> bool:
        """Serve with other credentials from now on; False if they are bad and the old ones stay."""
        return await self._load(served)

    async def _load(self, served: Sequence[ServedCredential] | None) -> bool:
        async with self._load_lock:
            try:
                # On a thread: a key may come from a slow store, and an RSA key takes its time.
                loaded = await asyncio.to_thread(self._identity.load, served)
            except Exception as error:  # noqa: BLE001 - a source may be anybody's code
                self._events.credentials_kept(error)
                return False
            self._events.credentials_loaded(loaded)
            return True

    def _look_at_files(self, interval_seconds: float) -> None:
        self._timers["files"] = self._loop.call_later(
            interval_seconds, self._look_at_files, interval_seconds
        )
        idle = self._reloading is None or self._reloading.done()
        if idle and self._identity.has_changed():
            self._reloading = self._loop.create_task(self.reload())

    # One connection

    def _admit(self, transport: socket.socket, address: tuple[str, int]) -> None:
        now = self._loop.time()
        visit = _Visit(transport, address, self._state, self._limits, now)
        refusal = self._ledger.admit(visit.key, now)
        if refusal is not None:
            refuse_politely(transport)
            self._events.refused(address, refusal)
            return
        self._visits.add(visit)
        self._events.meter.opened()
        try:
            stream = open_stream(
                transport,
                self._identity.endpoint,
                shutdown_timeout_seconds=self._limits.shutdown_timeout_seconds,
                limit_bytes=DEFAULT_LIMIT_BYTES,
            )
        except Exception as error:  # noqa: BLE001 - or its place in the ledger would be lost
            self._not_established(visit, error)
            return
        visit.stream = stream
        stream.begin_handshake(
            self._limits.handshake_timeout_seconds, partial(self._handshake_ended, visit, stream)
        )

    def _handshake_ended(self, visit: _Visit, stream: TLSStream, error: Exception | None) -> None:
        error = error or self._refusal(stream)
        if error is not None:
            stream.abort()
            self._not_established(visit, error)
            return
        now = self._loop.time()
        self._events.handshake_done(visit.client.address, stream.negotiated, now - visit.started)
        self._watch(visit, visit.due(now))
        task = self._loop.create_task(self._serve(stream, visit.client))
        self._handling[visit] = task
        task.add_done_callback(partial(self._ended, visit))

    def _refusal(self, stream: TLSStream) -> Exception | None:
        if self._settings.authorize is not None:
            try:
                self._settings.authorize(stream.negotiated)
            except Exception as refusal:  # noqa: BLE001 - it may be anybody's code
                return refusal
        return None

    def _not_established(self, visit: _Visit, error: Exception) -> None:
        address = visit.client.address
        if isinstance(error, OSError):
            self._events.handshake_failed(address, error, self._loop.time() - visit.started)
        else:
            self._events.connection_failed(address, error)
        self._end(visit)

    async def _serve(self, stream: TLSStream, client: Client) -> None:
        async with stream:
            await self._handler(stream, client)

    def _ended(self, visit: _Visit, task: asyncio.Task[None]) -> None:
        if visit.stream is not None:
            visit.stream.abort()  # a task that is cancelled before it begins closes nothing
        self._end(visit)
        if visit.client.cut_reason is not None or task.cancelled():
            return  # already reported
        error = task.exception()
        if error is not None:
            self._events.connection_failed(visit.client.address, error)

    def _end(self, visit: _Visit) -> None:
        visit.ended = True
        visit.stream = None  # the heap may keep the visit for a while, but not all that memory
        self._visits.discard(visit)
        self._handling.pop(visit, None)
        self._deadlines.item_ended()
        self._ledger.release(visit.key)
        self._events.meter.closed()
        self._acceptor.end_pause()  # a descriptor is free

    # Deadlines

    def _watch(self, visit: _Visit, due: float) -> None:
        if due < float("inf"):
            self._deadlines.push(due, visit)

    def _sweep(self) -> None:
        self._timers["deadlines"] = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        now = self._loop.time()
        while (visit := self._deadlines.pop_due(now)) is not None:
            reason, due = visit.look(now)
            if reason:
                self._cut(visit, reason)
            else:
                self._watch(visit, due)

    def _cut(self, visit: _Visit, reason: str) -> None:
        visit.client.cut_reason = reason
        self._events.connection_cut(visit.client.address, reason)
        if visit.stream is not None:
            visit.stream.abort()

    # Stopping

    async def drain(self) -> None:
        """Stop accepting, let open requests finish within the drain deadline, end the others."""
        self._acceptor.stop()
        self._state.draining = True
        for visit in self._visits:
            if visit.client.is_idle and visit.stream is not None:
                visit.client.cut_reason = "drained while idle"
                visit.stream.close()
        await self._visits.until_empty(self._limits.drain_seconds)
        for visit in self._visits:
            if visit.client.cut_reason is None:
                self._cut(visit, "not finished when draining ended")
            if (task := self._handling.get(visit)) is not None:
                task.cancel()
            else:  # in its handshake
                self._end(visit)
        await self._visits.until_empty()
        for timer in self._timers.values():
            timer.cancel()
        if self._reloading is not None:
            await asyncio.wait((self._reloading,))
