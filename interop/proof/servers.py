"""The live servers of a run, by what scenarios call them, with all that is read off them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import transport
from interop.peers.telltale_server import TelltaleServer
from interop.peers.weak import WeakServer
from interop.proof.application import Application
from interop.proof.endpoints import AsyncioEndpoint, BlockingEndpoint
from transport import KeyLogBuffer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from certs.credential import Credential, TrustAnchors
    from interop.proof.endpoints import Endpoint
    from interop.proof.scenarios import ServerKind

__all__ = ["Identity", "Server", "start_servers"]


@dataclass(frozen=True)
class Identity:
    """What was issued for a run: credentials of both sides, and the anchors that all trust."""

    server: Credential
    control: Credential
    client: Credential
    trust_anchors: TrustAnchors


@dataclass(frozen=True)
class Server:
    """A live server; `telltale` is the same server where it tells its keys."""

    title: str
    address: tuple[str, int]
    application: Application
    key_log: KeyLogBuffer
    telltale: TelltaleServer | None = None


def start_servers(stack: ExitStack, identity: Identity) -> dict[ServerKind, Server]:
    """Start one server of each kind, to be stopped with `stack`."""
    blocking = stack.enter_context(BlockingEndpoint(identity.server, Application()))
    asynchronous = stack.enter_context(AsyncioEndpoint(identity.server, Application()))
    resuming = stack.enter_context(
        BlockingEndpoint(
            identity.server,
            Application(),
            policy=transport.get_policy("2026-11-tls13-resumption"),
            client_anchors=identity.trust_anchors,
        )
    )
    return {
        "blocking": _ours("blocking", blocking),
        "asyncio": _ours("asyncio", asynchronous),
        "resuming": _ours("mutual TLS, resuming", resuming),
        "static-rsa": _start(stack, "weak control", identity.control, WeakServer),
        "tickets": _start(stack, "weak (tells its ticket key)", identity.server, TelltaleServer),
        "reusing": _start(
            stack, "weak (reuses its key)", identity.server, TelltaleServer, reuse_key=True
        ),
    }


def _ours(kind: str, endpoint: Endpoint) -> Server:
    return Server(f"pfs ({kind})", endpoint.address, endpoint.application, endpoint.key_log)


def _start(
    stack: ExitStack,
    title: str,
    credential: Credential,
    kind: Callable[..., WeakServer] | Callable[..., TelltaleServer],
    **options: bool,
) -> Server:
    application, key_log = Application(), KeyLogBuffer()
    server = kind(
        credential.certificates_pem(),
        credential.private_key_pem(),
        application.serve,
        key_log=key_log.write_line,
        **options,
    )
    stack.enter_context(server)
    telltale = server if isinstance(server, TelltaleServer) else None
    return Server(title, server.address, application, key_log, telltale)
