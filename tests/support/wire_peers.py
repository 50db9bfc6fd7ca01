"""Real TLS stacks in memory, recorded byte for byte, for the tests of the decryptor.

OpenSSL (by pyOpenSSL) and tlslite-ng, whose insides can be read: each pair makes a `Recording`, and
`assert_opened` and `assert_closed` hand the decryptor nothing but that and what was stolen, however
the recording is cut and interleaved.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import errno
import random
import warnings
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, rsa, x448, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from interop.capture.streams import Endpoint
from interop.capture.synthesis import Conversation
from interop.capture.writer import PcapngWriter
from interop.wire.groups import EphemeralPrivateKey, FiniteFieldPrivateKey, ffdhe_prime
from interop.wire.key_log import KeyLog
from interop.wire.registry import NamedGroup
from interop.wire.session import Direction, KeyMaterial, TLSSession
from interop.wire.tickets import openssl_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from interop.wire.learned import LearnedSecrets

with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite import handshakesettings
    from tlslite.api import (
        X509,
        HandshakeSettings,
        SessionCache,
        TLSConnection,
        X509CertChain,
        parsePEMKey,
    )

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


# OpenSSL


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


# tlslite-ng


class Pipe:
    """A socket-like end of a recorded, in-memory, never blocking connection."""

    def __init__(self, recording: Recording, way: Direction) -> None:
        self.recording = recording
        self.way = way
        self.inbox = bytearray()
        self.peer: Pipe | None = None

    def send(self, data: bytes) -> int:
        assert self.peer is not None
        self.peer.inbox += data
        self.recording.wire.append((self.way, bytes(data)))
        return len(data)

    def sendall(self, data: bytes) -> None:
        self.send(data)

    def recv(self, size: int) -> bytes:
        if not self.inbox:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing there")
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data

    def close(self) -> None:
        pass


def _pem(key: PrivateKey) -> str:
    encoded = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return encoded.decode()


# It knows these names only with the library that it wants for ML-KEM; see CryptographyKEM.
for _name in ("x25519mlkem768", "secp256r1mlkem768", "secp384r1mlkem1024"):
    if _name not in handshakesettings.ALL_CURVE_NAMES:
        handshakesettings.ALL_CURVE_NAMES.append(_name)


class CryptographyKEM:
    """tlslite-ng's hybrid key exchange of a client, on cryptography's ML-KEM and ECDH.

    tlslite-ng itself wants a library for ML-KEM that is not at hand.
    """

    HYBRIDS: ClassVar[dict[int, tuple[str, type, int]]] = {
        NamedGroup.X25519MLKEM768: ("x25519", mlkem.MLKEM768PrivateKey, 1088),
        NamedGroup.SECP256R1MLKEM768: ("secp256r1", mlkem.MLKEM768PrivateKey, 1088),
        NamedGroup.SECP384R1MLKEM1024: ("secp384r1", mlkem.MLKEM1024PrivateKey, 1568),
    }

    def __init__(self, group: int) -> None:
        self.classical, self.kem, self.ciphertext_length = self.HYBRIDS[group]
        self.kem_first = self.classical == "x25519"

    def get_random_private_key(self) -> tuple[Any, Any]:
        curves = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1()}
        if self.classical == "x25519":
            return self.kem.generate(), x25519.X25519PrivateKey.generate()  # type: ignore[attr-defined]
        return self.kem.generate(), ec.generate_private_key(curves[self.classical])  # type: ignore[attr-defined]

    def calc_public_value(self, private: tuple[Any, Any]) -> bytearray:
        kem, classical = private
        parts = [kem.public_key().public_bytes_raw(), self._point(classical)]
        return bytearray(b"".join(parts if self.kem_first else reversed(parts)))

    def calc_shared_key(self, private: tuple[Any, Any], share: bytearray) -> bytearray:
        kem, classical = private
        at = self.ciphertext_length if self.kem_first else len(share) - self.ciphertext_length
        halves = bytes(share[:at]), bytes(share[at:])
        sealed, point = halves if self.kem_first else reversed(halves)
        if self.classical == "x25519":
            agreed = classical.exchange(x25519.X25519PublicKey.from_public_bytes(point))
        else:
            peer = ec.EllipticCurvePublicKey.from_encoded_point(classical.curve, point)
            agreed = classical.exchange(ec.ECDH(), peer)
        secrets = [kem.decapsulate(sealed), agreed]
        return bytearray(b"".join(secrets if self.kem_first else reversed(secrets)))

    @staticmethod
    def _point(classical: Any) -> bytes:
        if isinstance(classical, x25519.X25519PrivateKey):
            return classical.public_key().public_bytes_raw()
        form = PublicFormat.UncompressedPoint
        encoded: bytes = classical.public_key().public_bytes(Encoding.X962, form)
        return encoded


_CURVES = {
    NamedGroup.SECP192R1: ec.SECP192R1(),
    NamedGroup.SECP224R1: ec.SECP224R1(),
    NamedGroup.BRAINPOOLP384R1: ec.BrainpoolP384R1(),
    NamedGroup.SECP256R1: ec.SECP256R1(),
    NamedGroup.SECP384R1: ec.SECP384R1(),
    NamedGroup.SECP521R1: ec.SECP521R1(),
    NamedGroup.BRAINPOOLP256R1TLS13: ec.BrainpoolP256R1(),
    NamedGroup.BRAINPOOLP384R1TLS13: ec.BrainpoolP384R1(),
    NamedGroup.BRAINPOOLP512R1TLS13: ec.BrainpoolP512R1(),
}


def ephemeral_keys(group: int, private: Any) -> tuple[EphemeralPrivateKey, ...]:
    """Take a private value of tlslite-ng: one key, or the two halves of a hybrid's."""
    if isinstance(private, tuple):
        return private
    if NamedGroup.FFDHE2048 <= group <= NamedGroup.FFDHE8192:
        return (FiniteFieldPrivateKey(ffdhe_prime(NamedGroup(group)), 2, int(private)),)
    if group == NamedGroup.X25519:
        return (x25519.X25519PrivateKey.from_private_bytes(bytes(private)),)
    if group == NamedGroup.X448:
        return (x448.X448PrivateKey.from_private_bytes(bytes(private)),)
    number = private.privkey.secret_multiplier if hasattr(private, "privkey") else int(private)
    return (ec.derive_private_key(number, _CURVES[NamedGroup(group)]),)


def instrumented_client(seen: list[EphemeralPrivateKey]) -> type[TLSConnection]:
    """Make a class of tlslite-ng client that tells its key shares' private keys."""

    class Instrumented(TLSConnection):  # type: ignore[misc]
        @classmethod
        def _getKEX(cls, group: int, version: object) -> object:  # noqa: N802
            if group in CryptographyKEM.HYBRIDS:
                return CryptographyKEM(group)
            return super()._getKEX(group, version)

        @classmethod
        def _genKeyShareEntry(cls, group: int, version: object) -> object:  # noqa: N802
            entry = super()._genKeyShareEntry(group, version)
            seen.extend(ephemeral_keys(group, entry.private))
            return entry

    return Instrumented


def lite_settings(values: dict[str, object]) -> HandshakeSettings:
    made = HandshakeSettings()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def run_steps(
    steps: dict[Direction, Iterator[object]], between: Callable[[], object] = lambda: None
) -> dict[Direction, object]:
    """Advance tlslite-ng's generators in turn until each has ended or given a value."""
    results: dict[Direction, object] = {}
    for _ in range(20_000):
        for way, step in steps.items():
            if way in results:
                continue
            try:
                value = next(step)
            except StopIteration:
                results[way] = None
                continue
            if value not in (0, 1):
                results[way] = value
        if len(results) == len(steps):
            return results
        between()
    pytest.fail("the peers are stuck")


class TLSLitePair:
    """tlslite-ng at both ends; both tell their ephemeral keys.

    `resume` is an earlier pair whose session the client shows; `cache` where the server keeps
    sessions for TLS 1.2's session ids.
    """

    def __init__(
        self,
        settings: dict[str, object],
        client_settings: dict[str, object] | None = None,
        *,
        resume: TLSLitePair | None = None,
        cache: SessionCache | None = None,
    ) -> None:
        seen: list[object] = []

        class Instrumented(TLSConnection):  # type: ignore[misc]
            def _serverCertKeyExchange(self, *args: object) -> Iterator[object]:  # noqa: N802
                seen.append(args[4])
                yield from super()._serverCertKeyExchange(*args)

        self.recording = Recording()
        pipes = {way: Pipe(self.recording, way) for way in Direction}
        pipes[CLIENT].peer, pipes[SERVER].peer = pipes[SERVER], pipes[CLIENT]
        self.exchanges = seen
        self.client_ephemeral_keys: list[EphemeralPrivateKey] = []
        client = instrumented_client(self.client_ephemeral_keys)
        self.ends = {CLIENT: client(pipes[CLIENT]), SERVER: Instrumented(pipes[SERVER])}
        self.settings = {
            CLIENT: lite_settings(settings | (client_settings or {})),
            SERVER: lite_settings(settings),
        }
        self.shown = None if resume is None else resume.ends[CLIENT].session
        if resume is not None and resume.ends[CLIENT].tickets:
            self.shown.tickets = resume.ends[CLIENT].tickets
        self.cache = cache

    def handshake(self) -> None:
        parsed = X509()
        parsed.parse(certificate("RSA").public_bytes(Encoding.PEM).decode())
        key = parsePEMKey(_pem(private_key("RSA")), private=True, implementations=["python"])
        server = self.ends[SERVER].handshakeServerAsync(
            certChain=X509CertChain([parsed]),
            privateKey=key,
            settings=self.settings[SERVER],
            sessionCache=self.cache,
        )
        client = self.ends[CLIENT].handshakeClientCert(
            settings=self.settings[CLIENT], session=self.shown, async_=True
        )
        run_steps({CLIENT: client, SERVER: server})

    def run(self, steps: dict[Direction, Iterator[object]]) -> None:
        run_steps(steps)

    def send(self, way: Direction, data: bytes) -> None:
        sender, receiver = self.ends[way], self.ends[way.opposite]
        steps = {
            way: sender.writeAsync(data),
            way.opposite: receiver.readAsync(max=None, min=len(data)),
        }
        result = run_steps(steps)[way.opposite]
        assert isinstance(result, bytes | bytearray)
        assert result == data
        self.recording.sent[way] += data

    def talk(self, size: int = 20_000) -> Recording:
        self.handshake()
        self.send(CLIENT, b"hello")
        self.send(SERVER, random.Random(size).randbytes(size))
        self.send(CLIENT, b"bye")
        return self.recording

    @property
    def server_ephemeral_key(self) -> EphemeralPrivateKey:
        """The key of the last TLS 1.2 handshake's exchange."""
        exchange: Any = self.exchanges[-1]
        if (exponent := getattr(exchange, "dh_Xs", None)) is not None:
            return FiniteFieldPrivateKey(exchange.dh_p, exchange.dh_g, exponent)
        return ephemeral_keys(exchange.group_id, exchange.ecdhXs)[0]


class LiteToOpenSSL:
    """A tlslite-ng client that tells its ephemeral keys, and an OpenSSL server, in memory."""

    def __init__(self, client_settings: dict[str, object], server: Options) -> None:
        self.recording = Recording()
        self.client_ephemeral_keys: list[EphemeralPrivateKey] = []
        self._pipe = Pipe(self.recording, CLIENT)
        self._sink = Pipe(Recording(), SERVER)
        self._pipe.peer = self._sink
        self._client = instrumented_client(self.client_ephemeral_keys)(self._pipe)
        made = context(server, self.recording.lines, server=True)
        self._server = SSL.Connection(made, None)
        self._server.set_accept_state()
        self._settings = lite_settings(client_settings)

    def _carry(self) -> None:
        if self._sink.inbox:
            self._server.bio_write(bytes(self._sink.inbox))
            self._sink.inbox.clear()
        with contextlib.suppress(SSL.WantReadError):
            self._server.do_handshake()
        with contextlib.suppress(SSL.WantReadError):
            while True:
                data = self._server.bio_read(2**16)
                self.recording.wire.append((SERVER, data))
                self._pipe.inbox += data

    def talk(self, size: int = 20_000) -> Recording:
        client = self._client.handshakeClientCert(settings=self._settings, async_=True)
        run_steps({CLIENT: client}, self._carry)
        sent = random.Random(size).randbytes(size)
        run_steps({CLIENT: self._client.writeAsync(sent)})
        self._carry()
        received = b""
        while len(received) < size:
            received += self._server.recv(2**16)
        assert received == sent
        self._server.send(b"thank you")
        self._carry()
        answer = run_steps({CLIENT: self._client.readAsync(max=None, min=9)}, self._carry)
        assert answer[CLIENT] == b"thank you"
        self.recording.sent = {CLIENT: sent, SERVER: b"thank you"}
        return self.recording


TLS12_ONLY: dict[str, object] = {"minVersion": (3, 3), "maxVersion": (3, 3)}
TLS13_ONLY: dict[str, object] = {"minVersion": (3, 4), "maxVersion": (3, 4)}
