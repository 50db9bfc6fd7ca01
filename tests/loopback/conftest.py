"""Identities and live servers of both engines, made per run."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import transport
from certs.credential import Credential, TrustAnchors
from certs.key_types import require_private_key
from certs.ocsp import build_ocsp_response
from certs.revocation import build_crl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 20.0


class Identities(NamedTuple):
    """Credentials of two authorities that know nothing of each other."""

    ec: Credential
    rsa: Credential
    anchors: TrustAnchors
    foreign: Credential
    foreign_anchors: TrustAnchors
    crl: bytes
    staple: bytes


class Echo(NamedTuple):
    """A live echo server, and what became of each connection: a proof, then "end", or an error."""

    address: tuple[str, int]
    outcomes: queue.Queue[object]

    def outcome(self) -> object:
        return self.outcomes.get(timeout=DEADLINE_SECONDS)


def issue(authority: trustme.CA, kind: trustme.KeyType) -> Credential:
    issued = authority.issue_cert("localhost", "127.0.0.1", key_type=kind)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return Credential.from_pem(chain, issued.private_key_pem.bytes())


@pytest.fixture(scope="session")
def identities() -> Identities:
    ours, foreign = (trustme.CA(key_type=trustme.KeyType.ECDSA) for _ in range(2))
    ec = issue(ours, trustme.KeyType.ECDSA)
    authority = x509.load_pem_x509_certificate(ours.cert_pem.bytes())
    key = require_private_key(load_pem_private_key(ours.private_key_pem.bytes(), None))
    now = datetime.now(UTC)
    times = {"now": now, "next_update": now + timedelta(days=7)}
    return Identities(
        ec=ec,
        rsa=issue(ours, trustme.KeyType.RSA),
        anchors=TrustAnchors.from_pem(ours.cert_pem.bytes()),
        foreign=issue(foreign, trustme.KeyType.ECDSA),
        foreign_anchors=TrustAnchors.from_pem(foreign.cert_pem.bytes()),
        crl=build_crl(authority, key, [], number=1, **times).public_bytes(Encoding.PEM),
        staple=build_ocsp_response(ec.leaf, authority, key, **times),
    )


@contextmanager
def blocking_echo(credential: Credential, **options: Any) -> Iterator[Echo]:
    outcomes: queue.Queue[object] = queue.Queue()
    threads: list[threading.Thread] = []

    def serve(connection: transport.TLSSocket) -> None:
        try:
            with connection:
                connection.settimeout(DEADLINE_SECONDS)
                connection.do_handshake()
                outcomes.put(connection.negotiated)
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            outcomes.put("end")
        except OSError as error:
            outcomes.put(error)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    raw = socket.create_server(("127.0.0.1", 0))
    listener = transport.wrap_listener(raw, credential=credential, **options)
    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield Echo(listener.getsockname(), outcomes)
    finally:
        listener.close()
        for thread in (acceptor, *threads):
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()


@contextmanager
def asyncio_echo(credential: Credential, **options: Any) -> Iterator[Echo]:
    outcomes: queue.Queue[object] = queue.Queue()
    started: queue.Queue[tuple[tuple[str, int], Callable[[], object]]] = queue.Queue()

    async def handle(stream: transport.TLSStream) -> None:
        outcomes.put(stream.negotiated)
        try:
            while data := await stream.read(1 << 16):
                stream.write(data)
                await stream.drain()
        except OSError as error:
            outcomes.put(error)
            raise
        outcomes.put("end")

    async def main() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        server = await transport.start_server(
            handle,
            "127.0.0.1",
            0,
            credential=credential,
            on_handshake_failure=lambda _address, error: outcomes.put(error),
            **options,
        )
        async with server:
            address = server.sockets[0].getsockname()
            started.put((address, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    address, stop = started.get(timeout=DEADLINE_SECONDS)
    try:
        yield Echo(address, outcomes)
    finally:
        stop()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture(params=["blocking", "asyncio"])
def echo(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Start an echo server of one engine: ``with echo(credential, **options) as server``."""
    return blocking_echo if request.param == "blocking" else asyncio_echo


class Exchange(NamedTuple):
    """What a client saw: the proof, and what came back until the end."""

    negotiated: transport.NegotiatedSession
    received: bytes


def blocking_exchange(address: tuple[str, int], payload: bytes, **options: Any) -> Exchange:
    with transport.connect(address, **options) as connection:
        connection.settimeout(DEADLINE_SECONDS)

        def send() -> None:
            with suppress(OSError):  # receiving raises the same
                connection.sendall(payload)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while len(received) < len(payload) and (data := connection.recv(1 << 20)):
            received += data
        sender.join(DEADLINE_SECONDS)
        return Exchange(connection.negotiated, bytes(received))


def asyncio_exchange(address: tuple[str, int], payload: bytes, **options: Any) -> Exchange:
    async def main() -> Exchange:
        async with await transport.open_connection(*address, **options) as stream:
            received, _ = await asyncio.gather(
                stream.readexactly(len(payload)), stream.send_all(payload)
            )
            return Exchange(stream.negotiated, received)

    return asyncio.run(asyncio.wait_for(main(), DEADLINE_SECONDS))


@pytest.fixture(params=["blocking", "asyncio"])
def exchange(request: pytest.FixtureRequest) -> Callable[..., Exchange]:
    """Connect with a client of one engine, send a payload and receive as much."""
    return blocking_exchange if request.param == "blocking" else asyncio_exchange
