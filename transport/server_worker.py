"""What runs inside a worker process, from just after the fork to its end.

A worker owns its listening sockets, loads the credentials (nothing of them was read before the
fork), serves until it is told to stop, and returns an exit status. It is told by SIGTERM, or by the
end of its control socket, which means that the supervisor is gone; SIGHUP makes it load its
credentials anew. What it says to the supervisor is one line: that it serves, or why it cannot.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from transport.server_engine import ServerEngine
from transport.server_events import NoMeter, ServerEvents, failure_facts
from transport.server_log import JSONLinesLog
from transport.server_settings import Engine
from transport.server_threads import ThreadedEngine

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence
    from pathlib import Path

    from transport.credentials import LiveIdentity
    from transport.server_events import Meter
    from transport.server_settings import ServerSettings

__all__ = ["report", "run_metrics", "run_worker"]

_SAID: Final = ("reason", "advice")  # of a failure, to the supervisor
_MAX_FAILURE_CHARACTERS: Final = 1000
_RESERVED_DESCRIPTORS: Final = 32  # listening sockets, log, files being read anew


def report(control: socket.socket, *, failure: str | None = None) -> None:
    """Tell the supervisor that this process serves, or why it cannot."""
    text = None if failure is None else " ".join(failure.split())[:_MAX_FAILURE_CHARACTERS]
    with suppress(OSError):  # nobody is there any more
        control.sendall(json.dumps({"failure": text}).encode("ascii") + b"\n")


def run_worker(
    settings: ServerSettings,
    listeners: Sequence[socket.socket],
    control: socket.socket,
    index: int,
    metrics_folder: Path | None,
) -> int:
    """Serve until told to stop; return the exit status."""
    log = settings.log
    if isinstance(log, JSONLinesLog):
        log = log.with_common(worker=index)
    try:
        events = ServerEvents(
            log, _meter(metrics_folder, index), log_connections=settings.log_connections
        )
        identity = settings.make_identity(events.staple_failed)
        events.credentials_loaded(identity.load())
        _make_room(settings, events)
    except Exception as error:  # noqa: BLE001 - a credential's source may be anybody's code
        facts = failure_facts(error)
        report(control, failure="; ".join(str(facts[name]) for name in _SAID if name in facts))
        return 1
    if settings.engine is Engine.ASYNCIO:
        asyncio.run(_serve_in_loop(settings, listeners, control, identity, events))
    else:
        _serve_on_threads(settings, listeners, control, identity, events)
    return 0


def _meter(folder: Path | None, index: int) -> Meter:
    if folder is None:
        return NoMeter()
    from transport import metrics  # noqa: PLC0415 - prometheus_client is an extra

    metrics.count_in_files(folder, index)
    return metrics.PrometheusMeter()


def _make_room(settings: ServerSettings, events: ServerEvents) -> None:
    """Raise the soft limit of descriptors as far as it goes, and say if it is below the cap."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.limits.max_connections + _RESERVED_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    if target < wanted:
        events.log.write(
            "few_descriptors",
            reason=f"{target} descriptors are fewer than {settings.limits.max_connections} "
            "connections need",
            advice="raise the limit (ulimit -Hn), or lower the connection cap",
        )


async def _serve_in_loop(
    settings: ServerSettings,
    listeners: Sequence[socket.socket],
    control: socket.socket,
    identity: LiveIdentity,
    events: ServerEvents,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_report_stray_error, events))
    stop = asyncio.Event()
    reload_wanted = asyncio.Event()
    engine = ServerEngine(listeners, settings, identity, events)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload_wanted.set)
    control.settimeout(0)
    loop.add_reader(control, stop.set)  # the only thing to be read there is its end
    reloading = loop.create_task(_reload_whenever(reload_wanted, engine))
    engine.start()
    report(control)
    await stop.wait()
    loop.remove_reader(control)
    events.log.write("draining", connections=engine.open_connections)
    await engine.drain()
    reloading.cancel()
    # The loop takes its handlers away when it closes, and another SIGTERM may be on its way.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGHUP})
    events.flush()
    events.log.write("drained")


async def _reload_whenever(wanted: asyncio.Event, engine: ServerEngine) -> None:
    while True:
        await wanted.wait()
        wanted.clear()
        await engine.reload()


def _report_stray_error(
    events: ServerEvents, _loop: asyncio.AbstractEventLoop, context: dict[str, object]
) -> None:
    error = context.get("exception")
    facts = failure_facts(error) if isinstance(error, BaseException) else {}
    events.log.write("internal_error", what=str(context.get("message")), **facts)


def _serve_on_threads(
    settings: ServerSettings,
    listeners: Sequence[socket.socket],
    control: socket.socket,
    identity: LiveIdentity,
    events: ServerEvents,
) -> None:
    # No thread exists yet; those made below inherit the mask, so that this one gets the signals.
    numbers = {signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    engine = ThreadedEngine(listeners, settings, identity, events)
    engine.start()
    told = threading.Thread(target=_terminate_at_end, args=(control,), daemon=True)
    told.start()
    report(control)
    while signal.sigwait(numbers) == signal.SIGHUP:
        engine.reload()
    events.log.write("draining", connections=engine.open_connections)
    engine.drain()
    events.flush()
    events.log.write("drained")


def _terminate_at_end(control: socket.socket) -> None:
    with suppress(OSError):
        control.recv(1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def run_metrics(folder: Path, address: tuple[str, int], control: socket.socket) -> int:
    """Serve the workers' metrics until told to stop; return the exit status."""
    from transport import metrics  # noqa: PLC0415 - prometheus_client is an extra

    try:
        metrics.serve_metrics(folder, address)
    except OSError as error:
        report(control, failure=f"metrics on {address[0]}:{address[1]}: {error.strerror}")
        return 1
    report(control)
    control.settimeout(None)
    control.recv(1)  # the end of the supervisor; SIGTERM ends this process by itself
    return 0
