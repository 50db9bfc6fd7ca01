"""Worker processes: a supervisor that forks them, feeds them signals, and replaces the dead.

**Fork of a single-threaded supervisor.** The supervisor never makes a context, never reads a key
file and never starts a thread, so a fork copies no lock in mid-air, no key and no random state in
use. Each worker makes everything after the fork. (A `Credential` object in the settings is in the
supervisor's memory by the caller's choice; `CredentialFiles` and callables are not.)

**Sockets.** The supervisor binds one listening socket for each worker (``SO_REUSEPORT``: the kernel
spreads connections over them) and keeps it open. When a worker is killed, its socket's queue
lives on, and the port never refuses: what arrives waits the few milliseconds until the worker's
successor accepts it. Only when a worker keeps dying and others live is its socket closed until the
next attempt, so that nobody waits in a queue without a reader. ``SO_REUSEPORT`` would also
let a second server of the same user share the port unnoticed, so the port is first bound without
it, which fails if anybody has it.

**Starting.** Each child says on its control socket, in a line of JSON, that it serves, or why it
cannot. If one cannot at the start, all are stopped and `run` raises what it said: a wrong
password or a taken port is told to whoever started the server. Later it is a line in the log, and
another attempt after a pause that doubles up to half a minute; the pause is forgotten once a worker
has lived ten seconds.

**The other direction of the control socket carries no data, only its end**: when the supervisor
dies, even by SIGKILL, every worker reads the end of it and drains. No orphan holds the port.

**Signals.** SIGTERM and SIGINT drain, a second one kills; SIGHUP reloads the credentials. They
are caught by handlers that do nothing, and seen through a wake-up socket in the same `select` as
the children, so none is lost between two looks. Around a fork all signals are blocked: a child that
still has our handlers would write what it catches into *our* wake-up socket. Workers ignore SIGINT,
since Ctrl-C in a terminal reaches the whole group, and the supervisor decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from transport.errors import APIMisuse
from transport.server_events import failure_facts
from transport.server_worker import report, run_metrics, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import FrameType

    from transport.server_settings import ServerSettings

__all__ = ["Supervisor"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0
_HEALTHY_SECONDS: Final = 10.0
_PAUSE_WITHOUT_QUEUE_SECONDS: Final = 1.0
_KILL_GRACE_SECONDS: Final = 5.0
_MAX_REPORT_BYTES: Final = 4096
_CAUGHT: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place for one child, and who is in it."""

    name: str
    index: int
    body: Callable[[_Slot, socket.socket], int]
    listeners: tuple[socket.socket, ...] = ()
    pid: int | None = None
    control: socket.socket | None = None
    heard: bytes = b""
    ready: bool = False
    started: float = 0.0
    early_deaths: int = 0
    pause_seconds: float = 0.0
    next_start: float = 0.0


class Supervisor:
    """Runs a server in worker processes; see the module's top.

    `addresses` are (host, port) pairs of addresses, not names; port 0 takes a free one.
    """

    def __init__(
        self,
        settings: ServerSettings,
        addresses: Sequence[tuple[str, int]],
        *,
        on_ready: Callable[[tuple[tuple[str, int], ...]], None] | None = None,
    ) -> None:
        self._settings = settings
        self._wanted = tuple(addresses)
        self._addresses: tuple[tuple[str, int], ...] = ()
        self._on_ready = on_ready
        self._slots: list[_Slot] = []
        self._selector = selectors.DefaultSelector()
        self._metrics_folder: Path | None = None
        self._announced = False
        self._stopping_since: float | None = None
        self._kill_now = False
        self._failure: str | None = None
        self._wake_up: tuple[socket.socket, socket.socket] | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain and return; only in the main thread.

        Raises `APIMisuse` if a worker cannot start, or if there are other threads, and `OSError` if
        an address cannot be bound.
        """
        if threading.active_count() != 1:
            raise APIMisuse(
                "a process with several threads cannot fork workers safely",
                advice="start the server before any thread, or in a process of its own",
            )
        with contextlib.ExitStack() as stack:
            self._addresses = _free_addresses(self._wanted)
            if self._settings.metrics_address is not None:
                folder = tempfile.TemporaryDirectory(prefix="pfs-metrics-")
                self._metrics_folder = Path(stack.enter_context(folder))
            stack.callback(self._selector.close)
            stack.enter_context(self._caught_signals())
            stack.callback(self._close_listeners)
            stack.callback(self._kill_all)
            self._make_slots()
            self._loop()
        if self._failure is not None:
            raise APIMisuse(self._failure, advice="correct that, then start the server again")

    # Slots

    def _make_slots(self) -> None:
        for index in range(self._settings.workers):
            slot = _Slot(f"worker {index}", index, self._worker_body)
            self._slots.append(slot)
            self._open_listeners(slot)
        if self._metrics_folder is not None:
            self._slots.append(_Slot("metrics", -1, self._metrics_body))

    def _open_listeners(self, slot: _Slot) -> None:
        """Bind a slot's sockets; of the first slot the addresses get their real ports."""
        with contextlib.ExitStack() as stack:
            backlog = self._settings.backlog
            opened = [stack.enter_context(_listen(one, backlog)) for one in self._addresses]
            stack.pop_all()
        slot.listeners = tuple(opened)
        self._addresses = tuple(listener.getsockname()[:2] for listener in opened)

    def _close_listeners(self) -> None:
        for slot in self._slots:
            for listener in slot.listeners:
                listener.close()
            slot.listeners = ()

    def _worker_body(self, slot: _Slot, control: socket.socket) -> int:
        return run_worker(self._settings, slot.listeners, control, slot.index, self._metrics_folder)

    def _metrics_body(self, _slot: _Slot, control: socket.socket) -> int:
        address = self._settings.metrics_address
        if self._metrics_folder is None or address is None:
            return 0
        return run_metrics(self._metrics_folder, address, control)

    # The loop

    def _loop(self) -> None:
        while self._stopping_since is None or any(slot.pid is not None for slot in self._slots):
            now = time.monotonic()
            if self._stopping_since is None:
                self._start_due(now)
            elif self._kill_now or now >= self._kill_time():
                self._kill_all()
            elif all(slot.pid is None for slot in self._slots if slot.index >= 0):
                self._signal(self._slots, signal.SIGTERM)  # the metrics were of use until now
            for key, _events in self._selector.select(self._wait_seconds(now)):
                if isinstance(key.data, _Slot):
                    self._hear(key.data)
                else:
                    self._take_signals()
            self._reap()

    def _wait_seconds(self, now: float) -> float | None:
        if self._stopping_since is not None:
            return max(self._kill_time() - now, 0.0)
        due = [slot.next_start for slot in self._slots if slot.pid is None]
        return max(min(due) - now, 0.0) if due else None

    def _kill_time(self) -> float:
        grace = self._settings.limits.drain_seconds + _KILL_GRACE_SECONDS
        return (self._stopping_since or 0.0) + grace

    def _start_due(self, now: float) -> None:
        for slot in self._slots:
            if slot.pid is None and slot.next_start <= now:
                try:
                    if not slot.listeners and slot.index >= 0:
                        self._open_listeners(slot)
                    self._start(slot, now)
                except OSError as error:  # no process or no descriptor to be had: try again later
                    self._settings.log.write("fork_failed", child=slot.name, reason=error.strerror)
                    self._postpone(slot, now)

    def _start(self, slot: _Slot, now: float) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _CAUGHT)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_child(slot, ours, theirs, blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        ours.settimeout(0)
        slot.pid, slot.control, slot.heard, slot.ready, slot.started = pid, ours, b"", False, now
        self._selector.register(ours, selectors.EVENT_READ, slot)

    def _become_child(
        self,
        slot: _Slot,
        ours: socket.socket,
        theirs: socket.socket,
        blocked: set[int | signal.Signals],
    ) -> None:
        """Shed what is the supervisor's, do the slot's work, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in _CAUGHT:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            self._selector.close()
            ours.close()
            for end in self._wake_up or ():
                end.close()
            for other in self._slots:
                if other.control is not None:
                    other.control.close()
                if other is not slot:
                    for listener in other.listeners:
                        listener.close()
            status = slot.body(slot, theirs)
        except Exception as error:  # noqa: BLE001 - a child's only way to say what happened
            report(theirs, failure=str(failure_facts(error)["reason"]))
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(status)  # never into the supervisor's own clean-up

    # What children say, and how they end

    def _hear(self, slot: _Slot) -> None:
        if slot.control is None:
            return
        try:
            data = slot.control.recv(_MAX_REPORT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        slot.heard += data
        if not data:
            self._forget_control(slot)  # it ends, or has ended: SIGCHLD tells
        elif b"\n" in slot.heard or len(slot.heard) > _MAX_REPORT_BYTES:
            line, _newline, slot.heard = slot.heard.partition(b"\n")
            self._take_report(slot, line)

    def _take_report(self, slot: _Slot, line: bytes) -> None:
        failure = json.loads(line).get("failure")
        if failure is not None:
            self._settings.log.write("start_failed", child=slot.name, reason=failure)
            if not self._announced:
                self._fail(f"{slot.name} could not start: {failure}")
            return
        slot.ready = True
        self._settings.log.write("started", child=slot.name, child_pid=slot.pid)
        if not self._announced and all(one.ready for one in self._slots):
            self._announced = True
            for host, port in self._addresses:
                self._settings.log.write(
                    "listening", host=host, port=port, workers=self._settings.workers
                )
            if self._on_ready is not None:
                self._on_ready(self._addresses)

    def _forget_control(self, slot: _Slot) -> None:
        if slot.control is not None:
            self._selector.unregister(slot.control)
            slot.control.close()
            slot.control = None

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid == 0:
                continue
            slot.pid = None  # at once: the number may be somebody else's from now on
            self._hear(slot)  # its last words
            self._forget_control(slot)
            # A SIGTERM to the whole group ends workers too: ours came no later than its end.
            self._take_signals()
            self._bury(slot, os.waitstatus_to_exitcode(status))

    def _bury(self, slot: _Slot, code: int) -> None:
        if self._metrics_folder is not None and slot.index >= 0:
            (self._metrics_folder / f"gauge_sum_{slot.index}.db").unlink(missing_ok=True)
        if self._stopping_since is not None:
            return
        if not self._announced:
            self._fail(f"{slot.name} ended at its start with {_exit_text(code)}")
            return
        now = time.monotonic()
        self._postpone(slot, now)
        self._settings.log.write(
            "died",
            child=slot.name,
            reason=_exit_text(code),
            restart_seconds=round(slot.pause_seconds, 3),
        )

    def _postpone(self, slot: _Slot, now: float) -> None:
        """Say when a slot is to be filled again: at once the first time, then ever later."""
        if slot.ready and now - slot.started >= _HEALTHY_SECONDS:
            slot.early_deaths = 0
        slot.pause_seconds = _pause_seconds(slot.early_deaths)
        slot.early_deaths += 1
        slot.next_start = now + slot.pause_seconds
        if slot.pause_seconds > _PAUSE_WITHOUT_QUEUE_SECONDS and any(
            other.ready and other.pid is not None for other in self._slots if other.index >= 0
        ):
            for listener in slot.listeners:
                listener.close()
            slot.listeners = ()

    # Stopping

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
        self._stop()
        self._kill_now = True

    def _stop(self) -> None:
        if self._stopping_since is not None:
            self._kill_now = True
            return
        self._stopping_since = time.monotonic()
        self._settings.log.write("stopping", drain_seconds=self._settings.limits.drain_seconds)
        # Ours first: a worker accepts all that waits and then closes, and is to be the last to.
        self._close_listeners()
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: signal.Signals) -> None:
        self._signal((slot for slot in self._slots if slot.index >= 0), number)

    def _signal(self, slots: Iterable[_Slot], number: signal.Signals) -> None:
        for slot in slots:
            if slot.pid is not None:
                os.kill(slot.pid, number)  # not reaped yet, so the number is still its own

    def _kill_all(self) -> None:
        self._signal(self._slots, signal.SIGKILL)
        for slot in self._slots:
            if slot.pid is not None:
                os.waitpid(slot.pid, 0)
                slot.pid = None
            self._forget_control(slot)

    # Signals

    @contextlib.contextmanager
    def _caught_signals(self) -> Iterator[None]:
        """Catch our signals and wake the selector by them; afterwards all is as it was."""
        reading, writing = self._wake_up = socket.socketpair()
        reading.settimeout(0)
        writing.settimeout(0)
        self._selector.register(reading, selectors.EVENT_READ, None)
        before = {number: signal.signal(number, _do_nothing) for number in _CAUGHT}
        earlier = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier)
            for number, handler in before.items():
                signal.signal(number, handler)
            reading.close()
            writing.close()

    def _take_signals(self) -> None:
        if self._wake_up is None:
            return
        try:
            caught = set(self._wake_up[0].recv(_MAX_REPORT_BYTES))
        except BlockingIOError:
            return
        if signal.SIGHUP in caught and self._stopping_since is None:
            self._settings.log.write("reloading")
            self._signal_workers(signal.SIGHUP)
        if caught & {signal.SIGTERM, signal.SIGINT}:
            self._stop()


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Catch a signal, so that it wakes the selector instead of ending the process."""


def _free_addresses(addresses: Sequence[tuple[str, int]]) -> tuple[tuple[str, int], ...]:
    """Check that nobody has the addresses: see the module's top for why."""
    for address in addresses:
        with contextlib.closing(_socket_for(address)) as probe:
            probe.bind(address)
            probe.listen(1)
    return tuple(addresses)


def _listen(address: tuple[str, int], backlog: int) -> socket.socket:
    listener = _socket_for(address)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _socket_for(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        # Otherwise it would take the IPv4 address as well, which has its own socket.
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return listener


def _pause_seconds(early_deaths: int) -> float:
    if early_deaths == 0:
        return 0.0
    return float(min(_FIRST_PAUSE_SECONDS * 2 ** min(early_deaths - 1, 20), _LONGEST_PAUSE_SECONDS))


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
