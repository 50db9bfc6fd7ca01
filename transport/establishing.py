"""From a connected socket to a TLS stream in the event loop: made, and its handshake awaited.

A client waits for the handshake with `establish`; a server has it call back
(`TLSStream.begin_handshake`) and gives only those a task whose handshake is done and checked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from transport.connection import TLSCore
from transport.sockets import prepare_socket
from transport.tls_stream import TLSStream

if TYPE_CHECKING:
    import socket

    from transport.context import EndpointContext
    from transport.sessions import ConnectionTickets

__all__ = ["establish", "open_stream"]


def open_stream(
    transport: socket.socket,
    endpoint: EndpointContext,
    *,
    server_hostname: str | None = None,
    tickets: ConnectionTickets | None = None,
    shutdown_timeout_seconds: float,
    limit_bytes: int,
) -> TLSStream:
    """Return the stream of a connected socket, which becomes non-blocking; its handshake is next.

    Raises `APIMisuse` and `OSError`; the socket is closed then.
    """
    try:
        prepare_socket(transport)
        core = TLSCore(endpoint, transport, server_hostname=server_hostname, tickets=tickets)
        return TLSStream(
            transport,
            core,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            limit_bytes=limit_bytes,
        )
    except BaseException:
        transport.close()
        raise


async def establish(stream: TLSStream, handshake_timeout_seconds: float) -> None:
    """Do the handshake of a new stream and wait for its end.

    Raises `HandshakeTimeout` and every other `TransportError`; the connection is closed then.
    """
    ended = asyncio.get_running_loop().create_future()
    try:
        stream.begin_handshake(handshake_timeout_seconds, partial(_settle, ended))
        await ended
    except BaseException:
        stream.abort()
        raise
    finally:
        del ended  # it has the error, and that refers to this frame


def _settle(ended: asyncio.Future[None], error: Exception | None) -> None:
    if ended.cancelled():
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
