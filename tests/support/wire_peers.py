"""A real TLS stack in memory, recorded byte for byte, for the tests of the decryptor.

OpenSSL (by pyOpenSSL) here, others beside: each pair makes a `Recording`, and `assert_opened` and
`assert_closed` hand the decryptor nothing but that and what was stolen, however the recording is
cut and interleaved.
"""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from interop.capture.streams import Endpoint
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from interop.wire.key_log import KeyLog
from interop.wire.session import Direction, KeyMaterial, TLSSession
from interop.wire.tickets import openssl_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.wire.learned import LearnedSecrets


CLIENT, SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
NO_EXTENDED_MAIN_SECRET = 1 << 0  # SSL_OP_NO_EXTENDED_MASTER_SECRET, which pyOpenSSL does not name
NO_ENCRYPT_THEN_MAC = 1 << 19
ALLOW_CLIENT_RENEGOTIATION = 1 << 8
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@cache
def private_key(kind: str) -> PrivateKey:
    if kind == "ECDSA":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65537, 2048)


@cache
def certificate(kind: str) -> x509.Certificate:
    key = private_key(kind)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind} peer")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(now - dt.timedelta(hours=1))
    return builder.not_valid_after(now + dt.timedelta(hours=1)).sign(key, hashes.SHA256())


@dataclass
class Recording:
    """A recorded session: bytes in order of capture, what was sent, and the key log."""

    wire: list[tuple[Direction, bytes]] = field(default_factory=list)
    sent: dict[Direction, bytes] = field(default_factory=lambda: {CLIENT: b"", SERVER: b""})
    lines: list[bytes] = field(default_factory=list)

    @property
    def key_log(self) -> KeyLog:
        return KeyLog.parse(b"\n".join(self.lines))

    def stream(self, direction: Direction) -> bytes:
        return b"".join(data for way, data in self.wire if way is direction)


def whole(recording: Recording) -> Iterator[tuple[Direction, bytes]]:
    yield from recording.wire


def one_after_the_other(recording: Recording) -> Iterator[tuple[Direction, bytes]]:
    yield CLIENT, recording.stream(CLIENT)
    yield SERVER, recording.stream(SERVER)


def server_first(recording: Recording) -> Iterator[tuple[Direction, bytes]]:
    yield SERVER, recording.stream(SERVER)
    yield CLIENT, recording.stream(CLIENT)


def in_crumbs(recording: Recording) -> Iterator[tuple[Direction, bytes]]:
    numbers = random.Random(8448)
    for direction, data in recording.wire:
        offset = 0
        while offset < len(data):
            size = numbers.choice((1, 2, 3, 5, 17, 100, 1460, 9000))
            yield direction, data[offset : offset + size]
            offset += size


CHUNKINGS = (whole, one_after_the_other, server_first, in_crumbs)


def write_capture(path: Path, *recordings: Recording) -> Path:
    """Write recordings as a capture, each as a TCP connection, one after the other."""
    writer = PcapngWriter()
    packets = []
    for number, recording in enumerate(recordings):
        ends = Endpoint("127.0.0.1", 40_000 + number), Endpoint("127.0.0.1", 443)
        conversation = Conversation(*ends, initial_sequences=(1000, 2000))
        packets += conversation.request() + conversation.accept()
        for direction, data in recording.wire:
            packets += conversation.data(direction, data)
        packets += conversation.finish(CLIENT) + conversation.finish(SERVER)
    blocks = [writer.packet(at, packet) for at, packet in enumerate(packets)]
    path.write_bytes(writer.start() + b"".join(blocks))
    return path


def decrypt(
    recording: Recording,
    keys: KeyMaterial,
    chunking: Callable[[Recording], Iterator[tuple[Direction, bytes]]] = whole,
    learned: LearnedSecrets | None = None,
) -> tuple[TLSSession, dict[Direction, bytes]]:
    session = TLSSession(keys, learned=learned)
    recovered = {CLIENT: bytearray(), SERVER: bytearray()}
    for direction, data in chunking(recording):
        for way, plaintext in session.feed(direction, data):
            recovered[way] += plaintext
    for way, plaintext in session.finish():
        recovered[way] += plaintext
    return session, {way: bytes(data) for way, data in recovered.items()}


def assert_opened(
    recording: Recording,
    keys: KeyMaterial,
    opened_by: str = "key log",
    learned: LearnedSecrets | None = None,
) -> TLSSession:
    session = None
    for chunking in CHUNKINGS:
        session, recovered = decrypt(recording, keys, chunking, learned)
        assert session.undecryptable is None, chunking.__name__
        assert recovered == recording.sent, chunking.__name__
        assert session.opened
        assert session.opened_by == opened_by
        assert session.plaintext_bytes == {way: len(data) for way, data in recording.sent.items()}
    assert session is not None
    return session


def assert_closed(
    recording: Recording, keys: KeyMaterial, reason: str, learned: LearnedSecrets | None = None
) -> TLSSession:
    session = None
    for chunking in CHUNKINGS:
        session, recovered = decrypt(recording, keys, chunking, learned)
        assert recovered == {CLIENT: b"", SERVER: b""}
        assert not session.opened
        assert session.undecryptable is not None
        assert reason in session.undecryptable.reason, chunking.__name__
    assert session is not None
    return session


@dataclass
class Options:
    """How an OpenSSL peer is set up."""

    version: int = SSL.TLS1_3_VERSION
    suites: str | None = None
    groups: bytes | None = None
    key: str = "RSA"
    options: int = 0
    client_certificate: bool = False


def context(options: Options, lines: list[bytes], *, server: bool) -> SSL.Context:
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(options.version)
    made.set_max_proto_version(options.version)
    made.set_options(options.options)
    if options.suites and options.version == SSL.TLS1_3_VERSION:
        made.set_tls13_ciphersuites(options.suites.encode())
        made.set_cipher_list(b"ALL:@SECLEVEL=0")  # for the short tags of CCM_8
    elif options.suites:
        made.set_cipher_list(f"{options.suites}:@SECLEVEL=0".encode())
    if options.groups:
        assert SSL._lib.SSL_CTX_set1_curves_list(made._context, options.groups) == 1
    if server or options.client_certificate:
        made.use_certificate(certificate(options.key))
        made.use_privatekey(private_key(options.key))
    if server:
        made.set_keylog_callback(lambda _, line: lines.append(line))
        made.set_session_id(b"test")
        if options.client_certificate:
            mode = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
            made.set_verify(mode, lambda *_: True)
    return made


class Pair:
    """Two OpenSSL peers in memory, and what crosses between them."""

    def __init__(
        self, client: SSL.Context, server: SSL.Context, recording: Recording | None = None
    ) -> None:
        self.recording = recording or Recording()
        self.peers = {CLIENT: SSL.Connection(client, None), SERVER: SSL.Connection(server, None)}
        self.peers[CLIENT].set_connect_state()
        self.peers[CLIENT].set_tlsext_host_name(b"wire.test")
        self.peers[SERVER].set_accept_state()

    def carry(self) -> bool:
        moved = False
        for way, sender in self.peers.items():
            while True:
                try:
                    data = sender.bio_read(2**18)
                except SSL.WantReadError:
                    break
                self.peers[way.opposite].bio_write(data)
                self.recording.wire.append((way, data))
                moved = True
        return moved

    def handshake(self) -> None:
        for _ in range(20):
            waiting = False
            for peer in self.peers.values():
                try:
                    peer.do_handshake()
                except SSL.WantReadError:
                    waiting = True
            if not self.carry() and not waiting:
                return
        pytest.fail("the peers did not agree")

    def send(self, way: Direction, data: bytes) -> None:
        receiver = self.peers[way.opposite]
        view = memoryview(data)
        while view:
            written = self.peers[way].send(bytes(view[: 2**16]))
            self.carry()
            received = b""
            while len(received) < written:
                received += receiver.recv(2**16)
            assert received == view[:written]
            view = view[written:]
        self.recording.sent[way] += data

    def close(self) -> None:
        for peer in self.peers.values():
            peer.shutdown()
        self.carry()


def converse(client: Options, server: Options | None = None, size: int = 70_000) -> Recording:
    recording = Recording()
    lines = recording.lines
    pair = Pair(
        context(client, lines, server=False),
        context(server or client, lines, server=True),
        recording,
    )
    pair.handshake()
    numbers = random.Random(size)
    pair.send(CLIENT, b"GET / HTTP/1.1\r\n\r\n")
    pair.send(SERVER, numbers.randbytes(size))
    pair.send(CLIENT, numbers.randbytes(size))
    pair.close()
    return recording


def resumed(version: int, options: int, suites: str | None = None) -> tuple[Recording, Recording]:
    first, second = Recording(), Recording()
    lines: list[bytes] = []
    client = context(Options(version=version, options=options, suites=suites), lines, server=False)
    server = context(Options(version=version, options=options, suites=suites), lines, server=True)
    pair = Pair(client, server, first)
    pair.handshake()
    pair.send(SERVER, b"first")
    ticket = pair.peers[CLIENT].get_session()
    pair.close()
    first.lines[:], lines[:] = lines, []
    again = Pair(client, server, second)
    assert ticket is not None
    again.peers[CLIENT].set_session(ticket)
    again.handshake()
    again.send(CLIENT, b"second")
    again.close()
    second.lines[:] = lines
    return first, second


def pre_shared_key_of(session: SSL.Session) -> bytes:
    """Take the pre-shared key out of a TLS 1.3 session as OpenSSL's client keeps it."""
    lib, ffi = SSL._lib, SSL._ffi
    size = lib.i2d_SSL_SESSION(session._session, ffi.NULL)
    holder = ffi.new("unsigned char[]", size)
    lib.i2d_SSL_SESSION(session._session, ffi.new("unsigned char **", holder))
    return openssl_session(ffi.buffer(holder, size)[:]).secret
