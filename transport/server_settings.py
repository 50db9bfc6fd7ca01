"""What a server is told to do: its settings, its limits, and what its handler learns of a client.

All of it is plain data, read by the supervisor (`transport.server_workers`) and by the engine in
each worker (`transport.server_engine`, `transport.server_threads`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Self

from transport.context import EndpointContext, require_client_anchors, server_context
from transport.credentials import (
    ContextBuilder,
    LiveIdentity,
    ServedCredential,
    UnknownName,
)
from transport.errors import APIMisuse
from transport.negotiated import NegotiatedSession
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.server_limits import Limits
from transport.server_log import EventLog, SilentLog
from transport.tls_socket import TLSSocket
from transport.tls_stream import TLSStream

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.key_log import KeyLog

__all__ = [
    "Authorize",
    "BlockingHandler",
    "Client",
    "Engine",
    "Handler",
    "ServerSettings",
    "WorkerState",
]

Authorize = Callable[[NegotiatedSession], object]  # what it returns is not looked at
_DEFAULT_RELOAD_CHECK_SECONDS: Final = 2.0


class Engine(StrEnum):
    """How a worker drives its connections: in one event loop, or each on a thread of its own."""

    ASYNCIO = "asyncio"
    BLOCKING = "blocking"


class WorkerState:
    """What all connections of one worker share."""

    __slots__ = ("draining",)

    def __init__(self) -> None:
        self.draining = False


class Client:
    """What a handler knows of the connection it serves, beside the stream itself.

    `address` is the peer's, as `socket.accept` gives it. `cut_reason` says why the server ended the
    connection, None while it has not.
    """

    __slots__ = ("_state", "address", "cut_reason", "is_idle")

    def __init__(self, address: tuple[str, int], state: WorkerState) -> None:
        self.address = address
        self.cut_reason: str | None = None
        self.is_idle = False
        self._state = state

    @property
    def draining(self) -> bool:
        """Whether the server is stopping: finish the open request, take no other."""
        return self._state.draining

    def idle(self) -> Self:
        """Say that the peer owes us something and is owed nothing, for a ``with`` block.

        A server that drains closes an idle connection at once and lets all others finish.
        """
        return self

    def __enter__(self) -> Self:
        self.is_idle = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.is_idle = False


Handler = Callable[[TLSStream, Client], Awaitable[None]]
BlockingHandler = Callable[[TLSSocket, Client], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Everything about a server but its sockets; the first credential is the default one.

    `handler` fits `engine`: a coroutine function of a `TLSStream` and a `Client` for asyncio, a
    function of a `TLSSocket` and a `Client` for blocking. It runs in a worker process, and the
    connection is closed after it. `client_anchors` may be a PEM file, which is watched.
    `client_crls` are lists of revoked clients, or files of them (PEM or DER), which are watched
    too; each authority above a client then needs one that is of now (see `transport.revocation`).
    `authorization` says which clients are wanted, and refuses the others with an alert;
    `authorize` is for rules that data cannot say: called with each negotiated session before the
    handler, it raises `PolicyViolation` or another `TransportError`, and the connection ends
    without one. `build_context`, if given, makes the context of a credential instead of
    `transport.context.server_context`, for what the fields here cannot say.

    Raises `APIMisuse` for what cannot work.
    """

    handler: Handler | BlockingHandler
    credentials: tuple[ServedCredential, ...]
    engine: Engine = Engine.ASYNCIO
    workers: int = 1
    policy: SecurityPolicy = DEFAULT_POLICY
    client_anchors: TrustAnchors | Path | None = None
    client_crls: RevocationLists | tuple[Path, ...] = ()
    authorization: Authorization | None = None
    authorize: Authorize | None = None
    alpn_protocols: tuple[str, ...] = ()
    key_log: KeyLog | None = None
    build_context: ContextBuilder | None = None
    unknown_name: UnknownName = UnknownName.DEFAULT
    limits: Limits = field(default_factory=Limits)
    log: EventLog = field(default_factory=SilentLog)
    log_connections: bool = False
    metrics_address: tuple[str, int] | None = None
    reload_check_seconds: float | None = _DEFAULT_RELOAD_CHECK_SECONDS
    backlog: int = 511

    def __post_init__(self) -> None:
        if not self.credentials:
            raise APIMisuse("a server needs a credential", advice="give at least one")
        if self.workers < 1:
            raise APIMisuse(f"{self.workers} workers serve nobody", advice="give 1 or more")
        if self.metrics_address is not None and not _is_loopback(self.metrics_address[0]):
            raise APIMisuse(
                f"metrics on {self.metrics_address[0]} would be open to the network, unencrypted",
                advice="give a loopback address, such as 127.0.0.1",
            )
        if self.metrics_address is not None and find_spec("prometheus_client") is None:
            raise APIMisuse(
                "metrics need the package prometheus_client",
                advice="pip install 'pfs-transport[server]'",
            )
        require_client_anchors(
            self.client_anchors,
            authorization=self.authorization,
            client_crls=self.client_crls or None,
        )

    def make_identity(
        self, report_staple: Callable[[Exception], None] | None = None
    ) -> LiveIdentity:
        """Return the server's credentials, nothing of them read yet.

        `report_staple` is told what goes wrong with staples; by default it is logged.
        """
        return LiveIdentity(
            self.credentials,
            self.build_context or partial(_build_context, self),
            client_anchors=self.client_anchors,
            client_crls=self.client_crls,
            unknown_name=self.unknown_name,
            report_staple=report_staple,
        )


def _build_context(
    settings: ServerSettings, credential: Credential, anchors: TrustAnchors | None
) -> EndpointContext:
    return server_context(
        credential,
        settings.policy,
        client_anchors=anchors,
        authorization=settings.authorization,
        alpn_protocols=settings.alpn_protocols,
        key_log=settings.key_log,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
