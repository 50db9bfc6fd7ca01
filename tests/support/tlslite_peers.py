"""tlslite-ng in memory, recorded as `wire_peers` records OpenSSL.

It is Python, so that its ephemeral keys can be taken out of it.
"""

from __future__ import annotations

import contextlib
import errno
import random
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x448, x25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from OpenSSL import SSL
from wire_peers import (
    CLIENT,
    SERVER,
    Options,
    PrivateKey,
    Recording,
    certificate,
    context,
    private_key,
)

from interop.wire.groups import EphemeralPrivateKey, FiniteFieldPrivateKey, ffdhe_prime
from interop.wire.registry import NamedGroup
from interop.wire.session import Direction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

# It knows these names only with the library that it wants for ML-KEM; see CryptographyKEM.
for _name in ("x25519mlkem768", "secp256r1mlkem768", "secp384r1mlkem1024"):
    if _name not in handshakesettings.ALL_CURVE_NAMES:
        handshakesettings.ALL_CURVE_NAMES.append(_name)

TLS12_ONLY: dict[str, object] = {"minVersion": (3, 3), "maxVersion": (3, 3)}
TLS13_ONLY: dict[str, object] = {"minVersion": (3, 4), "maxVersion": (3, 4)}


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
