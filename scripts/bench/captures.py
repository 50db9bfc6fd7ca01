"""Captures for benchmarks: real TLS 1.3 sessions, made in memory, in packets of many connections.

Client and server are two OpenSSL connections that pass bytes to one another; what they exchanged is
written as the packets of a TCP conversation. That makes a thousand sessions a second and any number
of bytes, into a file or a pipe.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from OpenSSL import SSL

import transport
from certs.authority import CertificateAuthority
from certs.keystore import KeyStore
from certs.keystore.kek import create_kek
from interop.capture.streams import Direction, Endpoint
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from transport.context import client_context, server_context

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

__all__ = ["Pair", "Turn", "long_session", "repeated", "short_sessions", "write_capture"]

_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
_READ_BYTES = 1 << 16  # as much as a host reads at a time
_PACKET_INTERVAL_NS = 1000
_SERVER_END = Endpoint("192.0.2.1", 443)


class Turn(NamedTuple):
    """What one side sent before the other spoke."""

    direction: Direction
    data: bytes


class Pair:
    """A client's and a server's configuration; `key_log` takes the secrets of their sessions."""

    def __init__(self, key_log: transport.KeyLogFile) -> None:
        policy = transport.DEFAULT_POLICY.narrowed(versions=[transport.ProtocolVersion.TLS_1_3])
        with tempfile.TemporaryDirectory() as name:
            create_kek(f"file:{name}/kek").close()
            with KeyStore.create(Path(name, "store"), f"file:{name}/kek") as store:
                now = datetime.now(UTC)
                root = CertificateAuthority.create_root(store, "root", "benchmark", now)
                issuing = root.issue_subordinate("issuing", "issuing", now)
                credential = issuing.issue_server(
                    key_name="server", dns_names=["localhost"], now=now
                )
        self._client = client_context(root.trust_anchors, policy).context
        self._server = server_context(credential, policy, key_log=key_log).context

    def session(self, pieces: Iterable[tuple[Direction, bytes]]) -> Iterator[Turn]:
        """Shake hands, send the pieces of application data, close; yield what was exchanged."""
        client, server = SSL.Connection(self._client), SSL.Connection(self._server)
        client.set_connect_state()
        server.set_accept_state()
        ends = {_CLIENT: (client, server), _SERVER: (server, client)}
        for direction in (_CLIENT, _SERVER, _CLIENT, _SERVER):
            sender, receiver = ends[direction]
            with suppress(SSL.WantReadError):
                sender.do_handshake()
            yield from _pass_on(direction, sender, receiver)
        for direction, data in pieces:
            sender, receiver = ends[direction]
            sender.sendall(data)
            yield from _pass_on(direction, sender, receiver)
            _read(receiver)
        for direction in (_CLIENT, _SERVER):
            sender, receiver = ends[direction]
            sender.shutdown()
            yield from _pass_on(direction, sender, receiver)


def _pass_on(
    direction: Direction, sender: SSL.Connection, receiver: SSL.Connection
) -> Iterator[Turn]:
    while True:
        try:
            data = sender.bio_read(_READ_BYTES)
        except SSL.WantReadError:
            return
        receiver.bio_write(data)
        yield Turn(direction, data)


def _read(receiver: SSL.Connection) -> None:
    with suppress(SSL.WantReadError, SSL.ZeroReturnError):
        while receiver.recv(_READ_BYTES):
            pass


def short_sessions(pair: Pair, count: int, size_bytes: int) -> Iterator[list[Turn]]:
    """Yield sessions of so many bytes: a request of at most 1,000, and its answer."""
    request = os.urandom(min(1000, size_bytes // 2))
    answer = os.urandom(size_bytes - len(request))
    for _ in range(count):
        yield list(pair.session(((_CLIENT, request), (_SERVER, answer))))


def long_session(pair: Pair, size_bytes: int) -> Iterator[Turn]:
    """Yield one session in which the client sends so many bytes."""
    block = os.urandom(min(size_bytes, 1_000_000))
    return pair.session((_CLIENT, block) for _ in range(size_bytes // len(block)))


def write_capture(
    file: BinaryIO,
    sessions: Iterable[Iterable[Turn]],
    *,
    segment_bytes: int,
    concurrent: int = 100,
) -> int:
    """Write the sessions as connections, so many of them interleaved; return the bytes written."""
    writer, written, now = PcapngWriter(), 0, 0
    waiting = (_packets(session, number, segment_bytes) for number, session in enumerate(sessions))
    active = deque(islice(waiting, concurrent))
    written += file.write(writer.start())
    while active:
        talk = active.popleft()
        packets = next(talk, None)
        if packets is None:
            active.extend(islice(waiting, 1))
            continue
        active.append(talk)
        for packet in packets:
            now += _PACKET_INTERVAL_NS
            written += file.write(writer.packet(now, packet))
    return written


def _packets(session: Iterable[Turn], number: int, segment_bytes: int) -> Iterator[list[bytes]]:
    """Yield the packets of one connection, a turn at a time."""
    host, port = divmod(number, 60_000)
    talk = Conversation(
        Endpoint(f"10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}", 5000 + port),
        _SERVER_END,
        initial_sequences=(number, ~number & 0xFFFFFFFF),
        segment_bytes=segment_bytes,
    )
    yield [*talk.request(), *talk.accept()]
    for turn in session:
        yield talk.data(turn.direction, turn.data)
    yield [*talk.finish(_CLIENT), *talk.finish(_SERVER)]


def repeated(sessions: Iterable[list[Turn]], count: int) -> Iterator[list[Turn]]:
    """Yield the same few sessions over and over: what is read does not know it read them before."""
    return islice(cycle(sessions), count)
