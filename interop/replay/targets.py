"""The endpoints of a run: our own servers, one row a version and engine, and the controls.

A `Target` is what an experiment needs of an endpoint, whoever runs it: how to connect to it as an
attacker does (`dial`) and as an honest client (`connect`), how to wait until it is done (`settle`),
and what it has executed (`count`). `local_targets` starts ours; `interop.replay.foreign` has those
of somebody else's server.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypedDict

import transport
from interop.identity import SERVER_NAME
from interop.peers.early_data import EarlyDataClient
from interop.replay.application import make_request
from interop.replay.cases import EARLY_DATA, PLAIN, UNPROTECTED
from interop.replay.controls import (
    RecordStream,
    early_data_server,
    plain_server,
    unprotected_server,
)
from interop.replay.servers import asyncio_server, blocking_server
from transport.policy import Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager, ExitStack

    from certs.credential import TrustAnchors
    from interop.http_exchange import ByteStream
    from interop.identity import Identity
    from interop.replay.application import Request
    from interop.replay.flights import Framing
    from interop.replay.model import Execution
    from interop.replay.servers import CountingServer
    from transport import SecurityPolicy

__all__ = [
    "Count",
    "MakeRequest",
    "Target",
    "control_targets",
    "local_targets",
    "own_target",
]

_DEADLINE_SECONDS: Final = 20.0
_RESUMING_POLICY: Final = "2026-11-tls13-resumption"

Address = tuple[str, int]


class MakeRequest(Protocol):
    """Makes a request that a target executes; `close` asks the server to end after it."""

    def __call__(self, body: bytes = b"", *, close: bool = False) -> Request:
        """Return a request with an identifier of its own."""


class Count(NamedTuple):
    """What an endpoint has executed so far; None for what it cannot tell.

    `total` counts executions; `executed` lists them in order; `connections` counts those that
    reached the application.
    """

    total: int | None = None
    executed: tuple[Execution, ...] | None = None
    connections: int | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """One endpoint as experiments see it; see the module.

    `tickets` is a client that resumes and sends 0-RTT data, None where neither exists. `resumes`
    says whether the endpoint means to resume, None where that is to be found out. `control` marks
    the endpoints at which attacks have to succeed.
    """

    name: str
    title: str
    framing: Framing
    dial: Callable[[], socket.socket]
    connect: Callable[[Address], AbstractContextManager[ByteStream]]
    settle: Callable[[], tuple[str, ...]]
    count: Callable[[], Count]
    request: MakeRequest
    method: str = "POST"
    tickets: EarlyDataClient | None = None
    resumes: bool | None = False
    control: bool = False
    deadline_seconds: float = _DEADLINE_SECONDS


def local_targets(stack: ExitStack, identity: Identity) -> Iterator[Target]:
    """Start our own servers, and yield a target for each engine, version and resumption policy."""
    policies = (transport.DEFAULT_POLICY, transport.get_policy(_RESUMING_POLICY))
    for engine, start in (("blocking", blocking_server), ("asyncio", asyncio_server)):
        for policy in policies:
            for version in policy.versions:
                server = stack.enter_context(start(identity.credential, policy))
                yield own_target(server, identity, policy, version, engine=engine)


def own_target(
    server: CountingServer,
    identity: Identity,
    policy: SecurityPolicy,
    version: str,
    *,
    engine: str,
) -> Target:
    """Return one of our servers, with clients of one version, as a target."""
    resumes = policy.resumption is not Resumption.OFF
    number = version.removeprefix("TLS ")
    suffix = "-resumption" if resumes else ""
    client_policy = policy.narrowed(versions=(version,))
    new = version == "TLS 1.3"
    return Target(
        name=f"{engine}-tls{number.replace('.', '')}{suffix}",
        title=f"pfs, {engine} engine, {version}, {'resuming' if resumes else 'no resumption'}",
        framing="TLS 1.3" if new else "TLS 1.2",
        connect=lambda address: _connect_tls(address, identity.trust_anchors, client_policy),
        tickets=EarlyDataClient(identity.trust_anchors.pem(), SERVER_NAME) if new else None,
        resumes=resumes,
        **_counted(server),
    )


def control_targets(stack: ExitStack, identity: Identity) -> Iterator[Target]:
    """Start the controls and yield them as targets."""
    plain = stack.enter_context(plain_server())
    yield Target(
        name=PLAIN,
        title="control: HTTP on bare TCP",
        framing="plain",
        connect=_connect_plain,
        control=True,
        **_counted(plain),
    )
    unprotected = stack.enter_context(unprotected_server())
    yield Target(
        name=UNPROTECTED,
        title="control: records without protection",
        framing="unprotected records",
        connect=_connect_unprotected,
        control=True,
        **_counted(unprotected),
    )
    early = stack.enter_context(early_data_server(identity.credential))
    policy = transport.DEFAULT_POLICY.narrowed(versions=("TLS 1.3",))
    yield Target(
        name=EARLY_DATA,
        title="control: TLS 1.3 with 0-RTT data and no anti-replay",
        framing="TLS 1.3",
        connect=lambda address: _connect_tls(address, identity.trust_anchors, policy),
        tickets=EarlyDataClient(identity.trust_anchors.pem(), SERVER_NAME),
        resumes=True,
        control=True,
        **_counted(early),
    )


class _Counted(TypedDict):
    dial: Callable[[], socket.socket]
    settle: Callable[[], tuple[str, ...]]
    count: Callable[[], Count]
    request: MakeRequest


def _counted(server: CountingServer) -> _Counted:
    application = server.application

    def count() -> Count:
        executed = application.results
        return Count(len(executed), executed, application.connections)

    return {
        "dial": server.dial,
        "settle": server.settle,
        "count": count,
        "request": partial(make_request, host=SERVER_NAME),
    }


@contextlib.contextmanager
def _connect_tls(
    address: Address, trust_anchors: TrustAnchors, policy: SecurityPolicy
) -> Iterator[ByteStream]:
    with transport.connect(
        address,
        trust_anchors=trust_anchors,
        server_hostname=SERVER_NAME,
        policy=policy,
        timeout_seconds=_DEADLINE_SECONDS,
    ) as connection:
        connection.settimeout(_DEADLINE_SECONDS)
        yield connection


@contextlib.contextmanager
def _connect_plain(address: Address) -> Iterator[ByteStream]:
    with socket.create_connection(address, _DEADLINE_SECONDS) as connection:
        yield connection


@contextlib.contextmanager
def _connect_unprotected(address: Address) -> Iterator[ByteStream]:
    with _connect_plain(address) as connection:
        yield RecordStream(connection)
