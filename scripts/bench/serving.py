"""The servers that are measured, each as a process of its own: ours, and others in Python.

Called as ``serving.py KIND CHAIN KEY VERSION``, it prints its port and serves until it is killed.
A server reads what comes and answers nothing, except the bulk ones: see `bulk.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transport
from certs.credential import Credential

if TYPE_CHECKING:
    from collections.abc import Callable

BACKLOG = 1024
STALLED_SECONDS = 600.0  # longer than any benchmark
BLOCK_BYTES = 1 << 20
REQUEST_BYTES = 9  # a direction and a length


def listen() -> socket.socket:
    """Listen on a free port of loopback and announce it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    print(listener.getsockname()[1], flush=True)
    return listener


def ours(chain: Path, key: Path, version: str) -> dict[str, Any]:
    """Return the options of our servers."""
    return {
        "credential": Credential.from_pem(chain.read_bytes(), key.read_bytes()),
        "policy": transport.DEFAULT_POLICY.narrowed(versions=[f"TLS {version}"]),
        "handshake_timeout_seconds": STALLED_SECONDS,
    }


def theirs(chain: Path, key: Path, version: str) -> ssl.SSLContext:
    """Return the context of Python's own TLS, which sends the same messages as ours.

    Those of TLS 1.3 end in two tickets that are the names of states.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.options |= ssl.OP_NO_TICKET
    wanted = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = wanted
    return context


def serve_one_by_one(
    accept: Callable[[], tuple[Any, object]], handle: Callable[[Any], None]
) -> None:
    """Serve on one thread, as the client that measures has one connection at a time."""
    while True:
        with contextlib.suppress(OSError):
            connection, _ = accept()
            with connection:
                handle(connection)


def read_all(connection: Any) -> None:
    """Read to the end."""
    while connection.recv(BLOCK_BYTES):
        pass


def carry(connection: Any) -> None:
    """Receive or send as many bytes as the client asks for."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    while request := connection.recv(REQUEST_BYTES):
        remaining = int.from_bytes(request[1:], "big")
        upwards = request[:1] == b"U"
        while remaining > 0:
            part = buffer[: min(remaining, BLOCK_BYTES)]
            if upwards:
                remaining -= connection.recv_into(part)
            else:
                connection.sendall(part)
                remaining -= len(part)
        if upwards:
            connection.sendall(b"K")


def serve_blocking(handle: Callable[[Any], None], *identity: Any) -> None:
    """Our blocking engine."""
    serve_one_by_one(transport.wrap_listener(listen(), **ours(*identity)).accept, handle)


def serve_ssl(handle: Callable[[Any], None], *identity: Any) -> None:
    """Python's ssl module, with a blocking socket for each connection."""
    wrapped = theirs(*identity).wrap_socket(listen(), server_side=True)
    serve_one_by_one(wrapped.accept, handle)


async def serve_asyncio(*identity: Any) -> None:
    """Our asyncio engine."""

    async def handle(stream: transport.TLSStream) -> None:
        with contextlib.suppress(OSError):
            while await stream.read(BLOCK_BYTES):
                pass

    server = await transport.start_server(
        handle, "127.0.0.1", 0, backlog=BACKLOG, **ours(*identity)
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def serve_asyncio_ssl(*identity: Any) -> None:
    """Python's asyncio: its own streams and TLS."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(BLOCK_BYTES):
                pass
        writer.close()

    server = await asyncio.start_server(
        handle,
        sock=listen(),
        ssl=theirs(*identity),
        ssl_handshake_timeout=STALLED_SECONDS,
        backlog=BACKLOG,
    )
    async with server:
        await asyncio.Event().wait()


async def serve_uvicorn(*identity: Any) -> None:
    """Run uvicorn as people do, with an application that is never asked."""
    import uvicorn  # noqa: PLC0415 - an extra that one kind alone needs

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        raise NotImplementedError

    config = uvicorn.Config(
        application,
        lifespan="off",
        log_level="critical",
        loop="asyncio",
        ssl_certfile=identity[0],
        ssl_keyfile=identity[1],
    )
    config.load()
    config.ssl = theirs(*identity)
    await uvicorn.Server(config).serve([listen()])


def main() -> None:
    """Serve."""
    kind, chain, key, version = sys.argv[1:]
    identity = (Path(chain), Path(key), version)
    match kind:
        case "blocking":
            serve_blocking(read_all, *identity)
        case "blocking-bulk":
            serve_blocking(carry, *identity)
        case "ssl-bulk":
            serve_ssl(carry, *identity)
        case "asyncio":
            asyncio.run(serve_asyncio(*identity))
        case "asyncio-ssl":
            asyncio.run(serve_asyncio_ssl(*identity))
        case "uvicorn":
            asyncio.run(serve_uvicorn(*identity))
        case _:
            sys.exit(f"no such server: {kind}")


if __name__ == "__main__":
    main()
