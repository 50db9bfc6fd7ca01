"""A server's Prometheus metrics, for one process or several, through prometheus_client.

**Several processes.** Workers cannot be asked one by one, since a scrape reaches whichever the
kernel picks. prometheus_client's answer is a folder of memory-mapped files, one set a worker, that
any process can add up. Two things differ here from its manual. Files go by the worker's *number*,
not its process id, so a respawned worker goes on counting where its predecessor was killed, and a
worker that is killed every minute does not fill the folder. And the choice of files over plain
memory is made in the worker, after the fork, not by an environment variable before the first
import: a program may have imported the library long before it starts a server.

The endpoint is a process of its own, which holds no credential. It speaks plain HTTP without
authentication, so it is for loopback addresses alone.

Label values come from closed tables (versions, suites and groups of a policy, names of error
classes and limits), so no peer can make the number of series grow.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    start_http_server,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from pathlib import Path

    from transport.negotiated import NegotiatedSession

__all__ = ["PrometheusMeter", "count_in_files", "serve_metrics"]

_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_HANDSHAKE_BUCKETS_SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class PrometheusMeter:
    """Counts in `registry`, the library's own unless given; one of these a registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._open = Gauge(
            "pfs_connections_open",
            "Connections that are open, their handshakes included.",
            registry=registry,
            multiprocess_mode="sum",
        )
        self._handshakes = Counter(
            "pfs_handshakes",
            "Handshakes that passed the check of what they negotiated.",
            ("version", "suite", "group"),
            registry=registry,
        )
        self._seconds = Histogram(
            "pfs_handshake_seconds",
            "From accepting a connection to the end of its handshake.",
            registry=registry,
            buckets=_HANDSHAKE_BUCKETS_SECONDS,
        )
        self._failures = Counter(
            "pfs_handshake_failures",
            "Handshakes that failed, by the kind of error.",
            ("reason",),
            registry=registry,
        )
        self._refused = Counter(
            "pfs_connections_refused",
            "Connections turned away before their handshake, by the limit that was reached.",
            ("reason",),
            registry=registry,
        )
        self._failed = Counter(
            "pfs_connections_failed",
            "Connections cut at a deadline or ended by an error, after their handshake.",
            ("reason",),
            registry=registry,
        )
        self._loads = Counter(
            "pfs_credential_loads",
            "Attempts to load the credentials, by whether they were taken.",
            ("taken",),
            registry=registry,
        )
        self._open.set(0)  # a file of a worker that was killed still has what was open then

    def opened(self) -> None:
        """Count a connection in."""
        self._open.inc()

    def closed(self) -> None:
        """Count a connection out."""
        self._open.dec()

    def handshake_done(self, session: NegotiatedSession, seconds: float) -> None:
        """Count a handshake that passed its check."""
        self._handshakes.labels(str(session.version), session.suite, session.group).inc()
        self._seconds.observe(seconds)

    def handshake_failed(self, reason: str) -> None:
        """Count a handshake that did not."""
        self._failures.labels(reason).inc()

    def refused(self, reason: str) -> None:
        """Count a connection turned away before its handshake."""
        self._refused.labels(reason).inc()

    def connection_failed(self, reason: str) -> None:
        """Count a connection that ended otherwise than its handler meant it to."""
        self._failed.labels(reason).inc()

    def credentials_loaded(self, *, taken: bool) -> None:
        """Count an attempt to load the credentials."""
        self._loads.labels("yes" if taken else "no").inc()


def count_in_files(folder: Path, worker: int) -> None:
    """Let metrics made in this process from now on live in `folder`, as those of `worker`."""
    os.environ[_FOLDER_VARIABLE] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def serve_metrics(folder: Path, address: tuple[str, int]) -> int:
    """Serve the sum of all workers' metrics over HTTP on a thread; return the port.

    Raises `OSError` if the address is taken.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    host, port = address
    server, _thread = start_http_server(port, host, registry)
    return int(server.server_port)
