"""Sessions that no polite peer produces on request: scripted ones, built record by record.

The script seals records with cryptography's AEADs and takes its secrets either at random, for a key
log, or by the key schedule, which the traces of RFC 8448 hold to account elsewhere.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import mlkem, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interop.wire import key_schedule as ks
from interop.wire.handshake import HELLO_RETRY_REQUEST_RANDOM
from interop.wire.key_log import KeyLog
from interop.wire.prf import key_block, main_secret
from interop.wire.session import Direction, KeyMaterial, TLSSession

if TYPE_CHECKING:
    from interop.wire.groups import EphemeralPrivateKey

CLIENT, SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
HASH = "sha256"
CHANGE_CIPHER_SPEC = b"\x14\x03\x03\0\x01\x01"
FINISHED = b"\x14\0\0\x20" + bytes(32)
KEY_UPDATE = b"\x18\0\0\x01\0"
HANDSHAKE, ALERT, APPLICATION_DATA = 22, 21, 23


def record(content_type: int, fragment: bytes) -> bytes:
    return bytes((content_type, 3, 3)) + len(fragment).to_bytes(2, "big") + fragment


def extension(number: int, data: bytes) -> bytes:
    return number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def message(kind: int, body: bytes) -> bytes:
    return bytes((kind,)) + len(body).to_bytes(3, "big") + body


def with_length(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def client_hello(random_: bytes, *extensions: bytes, suites: bytes = b"\x13\x01") -> bytes:
    body = b"\x03\x03" + random_ + b"\0" + with_length(suites) + b"\x01\0"
    return message(1, body + with_length(b"".join(extensions)))


def server_hello(random_: bytes, *extensions: bytes, suite: bytes = b"\x13\x01") -> bytes:
    body = b"\x03\x03" + random_ + b"\0" + suite + b"\0"
    return message(2, body + with_length(b"".join(extensions)))


class Sealer:
    """Seals one direction's records under one TLS 1.3 secret."""

    def __init__(self, secret: bytes) -> None:
        self.key, iv = ks.traffic_keys(HASH, secret, 16)
        self.iv = int.from_bytes(iv, "big")
        self.sequence = 0

    def __call__(self, content: bytes, content_type: int = APPLICATION_DATA) -> bytes:
        inner = content + bytes((content_type,))
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self.iv ^ self.sequence).to_bytes(12, "big")
        self.sequence += 1
        return header + AESGCM(self.key).encrypt(nonce, inner, header)


class Script:
    """Secrets of a TLS 1.3 session at random, and its hellos with made-up key shares."""

    versions = extension(43, b"\x02\x03\x04")
    version = extension(43, b"\x03\x04")
    early = extension(42, b"")

    def __init__(self) -> None:
        numbers = random.Random(8446)
        self.random = numbers.randbytes(32)
        self.secrets = {
            label: numbers.randbytes(32)
            for label in (
                "CLIENT_EARLY_TRAFFIC_SECRET",
                "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
                "SERVER_HANDSHAKE_TRAFFIC_SECRET",
                "CLIENT_TRAFFIC_SECRET_0",
                "SERVER_TRAFFIC_SECRET_0",
            )
        }
        share = b"\0\x1d" + with_length(numbers.randbytes(32))
        self.shares, self.share = extension(51, with_length(share)), extension(51, share)
        self.pieces: list[tuple[Direction, bytes]] = []

    def seal(self, label: str) -> Sealer:
        return Sealer(self.secrets[label])

    def client(self, *pieces: bytes) -> Script:
        self.pieces += ((CLIENT, piece) for piece in pieces)
        return self

    def server(self, *pieces: bytes) -> Script:
        self.pieces += ((SERVER, piece) for piece in pieces)
        return self

    def hello(self, *extensions: bytes) -> bytes:
        return record(22, client_hello(self.random, self.versions, self.shares, *extensions))

    def answer(self, *extensions: bytes) -> bytes:
        hello = server_hello(bytes(range(32)), self.version, self.share, *extensions)
        return record(22, hello)

    @property
    def retry(self) -> bytes:
        group = extension(51, b"\0\x1d")
        return record(22, server_hello(HELLO_RETRY_REQUEST_RANDOM, self.version, group))

    def server_flight(self) -> list[bytes]:
        seal = self.seal("SERVER_HANDSHAKE_TRAFFIC_SECRET")
        return [seal(b"\x08\0\0\x02\0\0" + FINISHED, HANDSHAKE)]

    def begin(self) -> Script:
        """Script the whole handshake, without ornaments."""
        finish = self.seal("CLIENT_HANDSHAKE_TRAFFIC_SECRET")(FINISHED, HANDSHAKE)
        self.client(self.hello()).server(self.answer(), *self.server_flight())
        return self.client(finish)

    def keys(self, *without: str, **more: bytes) -> KeyMaterial:
        kept = {k: v for k, v in self.secrets.items() if k not in without}
        return KeyMaterial(key_log=KeyLog({self.random: kept | more}))

    def play(
        self, keys: KeyMaterial, *, in_order: bool = True
    ) -> tuple[TLSSession, dict[Direction, bytes]]:
        return play(self.pieces, keys, in_order=in_order)


def play(
    pieces: list[tuple[Direction, bytes]], keys: KeyMaterial, *, in_order: bool = True
) -> tuple[TLSSession, dict[Direction, bytes]]:
    if not in_order:
        pieces = sorted(pieces, key=lambda piece: piece[0].value, reverse=True)
    session = TLSSession(keys)
    recovered = {CLIENT: b"", SERVER: b""}
    for way, data in pieces:
        for direction, plaintext in session.feed(way, data):
            recovered[direction] += plaintext
    for direction, plaintext in session.finish():
        recovered[direction] += plaintext
    return session, recovered


orders = pytest.mark.parametrize("in_order", [True, False])


@orders
def test_the_plain_script_opens(in_order: bool) -> None:  # noqa: FBT001 - a parametrised fact
    script = Script().begin()
    script.client(script.seal("CLIENT_TRAFFIC_SECRET_0")(b"question"))
    script.server(script.seal("SERVER_TRAFFIC_SECRET_0")(b"answer"))
    session, recovered = script.play(script.keys(), in_order=in_order)
    assert recovered == {CLIENT: b"question", SERVER: b"answer"}
    assert session.undecryptable is None


# 0-RTT that a server rejects


@orders
@pytest.mark.parametrize("known", [True, False])
def test_rejected_early_data_ends_without_a_word(
    known: bool,  # noqa: FBT001 - a parametrised fact
    in_order: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    script = Script()
    early = script.seal("CLIENT_EARLY_TRAFFIC_SECRET")
    script.client(script.hello(script.early), CHANGE_CIPHER_SPEC, early(b"early"), early(b"bird"))
    script.server(script.answer(), CHANGE_CIPHER_SPEC, *script.server_flight())
    script.client(script.seal("CLIENT_HANDSHAKE_TRAFFIC_SECRET")(FINISHED, HANDSHAKE))
    script.client(script.seal("CLIENT_TRAFFIC_SECRET_0")(b"late"))
    without = () if known else ("CLIENT_EARLY_TRAFFIC_SECRET",)
    session, recovered = script.play(script.keys(*without), in_order=in_order)
    assert recovered[CLIENT] == (b"earlybird" if known else b"") + b"late"
    assert session.early_records_skipped == (0 if known else 2)
    assert session.early_data_accepted is False
    assert session.opened
    assert (session.undecryptable is None) is known


def retried(*, damage: bool) -> Script:
    script = Script()
    early = script.seal("CLIENT_EARLY_TRAFFIC_SECRET")
    script.client(script.hello(script.early), early(b"early"))
    script.server(script.retry, CHANGE_CIPHER_SPEC)
    script.client(CHANGE_CIPHER_SPEC, script.hello())
    script.server(script.answer(), *script.server_flight())
    finish = bytearray(script.seal("CLIENT_HANDSHAKE_TRAFFIC_SECRET")(FINISHED, HANDSHAKE))
    finish[-1] ^= damage
    script.client(bytes(finish), script.seal("CLIENT_TRAFFIC_SECRET_0")(b"late"))
    return script


@orders
def test_a_retry_ends_early_data(in_order: bool) -> None:  # noqa: FBT001 - a parametrised fact
    script = retried(damage=False)
    session, recovered = script.play(script.keys(), in_order=in_order)
    assert recovered[CLIENT] == b"earlylate"
    assert session.hello_retry_request
    assert session.undecryptable is None
    script = retried(damage=True)
    session, recovered = script.play(script.keys(), in_order=in_order)
    assert recovered[CLIENT] == b"early"
    assert "does not open this session's records" in str(session.undecryptable_in(CLIENT))


# Key logs that begin in mid-session


def test_a_key_log_that_begins_with_a_later_generation() -> None:
    script = Script().begin()
    secret = script.secrets["CLIENT_TRAFFIC_SECRET_0"]
    for generation in range(4):
        seal = Sealer(secret)
        script.client(seal(b"%d" % generation), seal(KEY_UPDATE, HANDSHAKE))
        secret = ks.next_traffic_secret(HASH, secret)
    script.client(Sealer(secret)(b"4"))
    second = ks.next_traffic_secret(
        HASH, ks.next_traffic_secret(HASH, script.secrets["CLIENT_TRAFFIC_SECRET_0"])
    )
    session, recovered = script.play(script.keys())
    assert recovered[CLIENT] == b"01234"
    keys = script.keys("CLIENT_TRAFFIC_SECRET_0", CLIENT_TRAFFIC_SECRET_2=second)
    for in_order in (True, False):
        session, recovered = script.play(keys, in_order=in_order)
        assert recovered[CLIENT] == b"234"
        assert session.opened
        assert "4 protected records precede the first secret" in str(session.undecryptable)


# What is refused


def refusals() -> dict[str, tuple[Script, Direction, str]]:
    made: dict[str, tuple[Script, Direction, str]] = {}

    def add(name: str, script: Script, way: Direction, reason: str) -> None:
        made[name] = (script, way, reason)

    script = Script().begin()
    add("long", script.server(b"\x17\x03\x03\x41\x01"), SERVER, "at most 16640")
    script = Script()
    script.client(script.hello()).server(script.answer(), record(20, b"\x02"))
    add("change_cipher_spec", script, SERVER, "unexpected change_cipher_spec")
    script = Script().begin().server(CHANGE_CIPHER_SPEC)
    add("late change_cipher_spec", script, SERVER, "unexpected change_cipher_spec")
    script = Script().begin().server(record(22, FINISHED))
    add("clear text again", script, SERVER, "in the clear, after protected records")
    script = Script()
    half = script.seal("SERVER_HANDSHAKE_TRAFFIC_SECRET")(FINISHED + b"\x04\0", HANDSHAKE)
    script.client(script.hello()).server(script.answer(), half)
    add("across keys", script, SERVER, "spans a change of keys")
    script = Script().begin()
    update = script.seal("CLIENT_TRAFFIC_SECRET_0")(KEY_UPDATE + b"\x18", HANDSHAKE)
    add("across update", script.client(update), CLIENT, "spans a change of keys")
    script = Script().begin()
    bad = script.seal("CLIENT_TRAFFIC_SECRET_0")(b"\x18\0\0\x01\x07", HANDSHAKE)
    add("bad update", script.client(bad), CLIENT, "neither update_not_requested nor")
    script = Script()
    script.client(script.hello()).server(script.retry, script.retry)
    add("two retries", script.client(script.hello()), SERVER, "a second HelloRetryRequest")
    script = Script()
    hello = server_hello(bytes(32), script.version, script.share, suite=b"\xc0\x2f")
    script.client(script.hello()).server(record(22, hello))
    add("suite", script, SERVER, "is no suite of TLS 1.3")
    script = Script()
    data = script.seal("SERVER_HANDSHAKE_TRAFFIC_SECRET")(b"data")
    script.client(script.hello()).server(script.answer(), data)
    add("early answer", script, SERVER, "application_data under handshake keys")
    script = Script().begin()
    inner = script.seal("SERVER_TRAFFIC_SECRET_0")(b"\x01", 20)
    add("inner", script.server(inner), SERVER, "inside a protected record")
    script = Script().begin()
    alert = script.seal("SERVER_TRAFFIC_SECRET_0")(b"\x01", ALERT)
    add("alert", script.server(alert), SERVER, "an alert has 2 bytes")
    return made


REFUSALS = refusals()


@pytest.mark.parametrize("name", REFUSALS)
def test_what_breaks_the_protocol_ends_its_direction_with_the_reason(name: str) -> None:
    script, way, reason = REFUSALS[name]
    for in_order in (True, False):
        session, recovered = script.play(script.keys(), in_order=in_order)
        assert recovered == {CLIENT: b"", SERVER: b""}
        assert session.damage is not None
        assert reason in str(session.damage)
        assert str(session.undecryptable_in(way)).startswith("damaged: ")
        assert session.feed(way, record(23, bytes(40))) == []


def test_what_came_before_the_damage_in_the_same_feed_is_kept() -> None:
    script = Script().begin()
    seal = script.seal("SERVER_TRAFFIC_SECRET_0")
    script.server(seal(b"good") + seal(b"\x01", 20) + seal(b"ignored"))
    _, recovered = script.play(script.keys())
    assert recovered[SERVER] == b"good"


# Sessions that never come to protected records


def test_a_refused_handshake_has_its_alert_and_nothing_to_open() -> None:
    script = Script()
    script.client(script.hello()).server(record(21, b"\x02\x28"))
    session, _ = script.play(script.keys())
    assert [str(alert) for alert in session.alerts] == ["server to client: fatal handshake_failure"]
    assert not session.opened
    assert str(session.undecryptable) == "no protected record was seen"


@pytest.mark.parametrize(("kept", "reason"), [(CLIENT, "no ServerHello"), (SERVER, "no Client")])
def test_half_a_capture_says_what_is_missing(kept: Direction, reason: str) -> None:
    script = Script().begin()
    script.client(script.seal("CLIENT_TRAFFIC_SECRET_0")(b"question"))
    pieces = [(way, data) for way, data in script.pieces if way is kept]
    session, recovered = play(pieces, script.keys())
    assert recovered == {CLIENT: b"", SERVER: b""}
    assert reason in str(session.undecryptable)


def test_a_capture_that_begins_in_mid_session_is_no_damage() -> None:
    script = Script()
    session, _ = play([(SERVER, script.seal("SERVER_TRAFFIC_SECRET_0")(b"x"))], script.keys())
    assert "begins in mid-session" in str(session.undecryptable)
    assert session.damage is None
    assert not session.not_tls


@pytest.mark.parametrize("suite", [b"\xc0\xb4", b"\xc0\xb5"])
def test_a_suite_of_integrity_only_is_never_called_forward_secret(suite: bytes) -> None:
    script = Script()
    answer = server_hello(bytes(32), script.version, script.share, suite=suite)
    script.client(script.hello()).server(record(22, answer), *script.server_flight())
    session, _ = script.play(KeyMaterial())
    assert session.forward_secret is False
    assert "integrity only, so that anybody can read its records" in str(session.undecryptable)


def test_a_stream_that_ends_within_a_record_says_so() -> None:
    script = Script().begin()
    script.client(script.seal("CLIENT_TRAFFIC_SECRET_0")(b"question")[:-1])
    session, _ = script.play(script.keys())
    assert "ends within a record" in str(session.undecryptable_in(CLIENT))


# What only informs

NOTHING = extension(0, b"\xff"), extension(16, b"\xff"), extension(10, b"\xff")


@orders
def test_what_only_informs_ends_nothing_where_it_cannot_be_read(
    in_order: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    script = Script()
    shares = extension(51, b"\xff")
    hello = client_hello(script.random, script.versions, shares, *NOTHING)
    broken = message(8, b"\xff"), message(11, b"\xff"), message(15, b"\xff")
    seal = script.seal("SERVER_HANDSHAKE_TRAFFIC_SECRET")
    script.client(record(22, hello))
    script.server(script.answer(), seal(b"".join(broken) + FINISHED, HANDSHAKE))
    seal = script.seal("CLIENT_HANDSHAKE_TRAFFIC_SECRET")
    script.client(seal(message(11, b"\xff") + FINISHED, HANDSHAKE))
    seal = script.seal("CLIENT_TRAFFIC_SECRET_0")
    script.client(seal(message(11, b"\xff"), HANDSHAKE), seal(b"question"))
    seal = script.seal("SERVER_TRAFFIC_SECRET_0")
    script.server(seal(message(4, b"\xff"), HANDSHAKE), seal(b"answer"))
    session, recovered = script.play(script.keys(), in_order=in_order)
    assert recovered == {CLIENT: b"question", SERVER: b"answer"}
    assert session.undecryptable is None
    assert session.damage is not None
    assert session.server_name is None


def test_a_raw_public_key_is_no_damage_and_no_certificate() -> None:
    script = Script()
    agreed = with_length(extension(20, b"\x02"))
    seal = script.seal("SERVER_HANDSHAKE_TRAFFIC_SECRET")
    key = b"\0\0\x03key\0\0"
    certificate = message(11, b"\0" + len(key).to_bytes(3, "big") + key)
    script.client(script.hello())
    script.server(script.answer(), seal(message(8, agreed) + certificate + FINISHED, HANDSHAKE))
    script.server(script.seal("SERVER_TRAFFIC_SECRET_0")(b"answer"))
    session, recovered = script.play(script.keys())
    assert recovered[SERVER] == b"answer"
    assert session.damage is None
    assert session.server_certificates == ()


# Harvest now, decrypt later


def test_a_recorded_hybrid_stays_closed_to_its_classical_keys() -> None:
    numbers = random.Random(11)
    client, server = (x25519.X25519PrivateKey.generate() for _ in range(2))
    decapsulator = mlkem.MLKEM768PrivateKey.generate()
    kem_secret, sealed = decapsulator.public_key().encapsulate()
    publics = [key.public_key().public_bytes_raw() for key in (client, server)]
    shared = kem_secret + client.exchange(server.public_key())
    offered = decapsulator.public_key().public_bytes_raw() + publics[0]
    share = b"\x11\xec" + with_length(offered)
    hello = client_hello(numbers.randbytes(32), Script.versions, extension(51, with_length(share)))
    answered = extension(51, b"\x11\xec" + with_length(sealed + publics[1]))
    answer = server_hello(numbers.randbytes(32), Script.version, answered)
    secret = ks.handshake_secret(HASH, ks.early_secret(HASH), shared)
    digest = ks.transcript_hash(HASH, hello, answer)
    flight = b"\x08\0\0\x02\0\0" + FINISHED
    main = ks.main_secret(HASH, secret)
    whole = ks.transcript_hash(HASH, hello, answer, flight)
    seal = Sealer(ks.derive_secret(HASH, secret, b"s hs traffic", digest))
    speak = Sealer(ks.derive_secret(HASH, main, b"s ap traffic", whole))
    pieces = [
        (CLIENT, record(22, hello)),
        (SERVER, record(22, answer) + seal(flight, HANDSHAKE) + speak(b"for later")),
    ]

    def steal(*keys: EphemeralPrivateKey) -> tuple[TLSSession, bytes]:
        session, recovered = play(pieces, KeyMaterial(ephemeral_private_keys=keys))
        return session, recovered[SERVER]

    for classical in (client, server):
        session, recovered = steal(classical, decapsulator)
        assert recovered == b"for later"
        assert session.opened_by == "ephemeral key"
    session, recovered = steal(client, server)
    assert recovered == b""
    assert str(session.undecryptable) == (
        "ECDHE with X25519MLKEM768: the classical half is known, but the client's ML-KEM-768 key "
        "is not at hand"
    )
    session, recovered = steal(decapsulator)
    assert recovered == b""
    assert "no ephemeral x25519 key" in str(session.undecryptable)


# TLS 1.2


def rsa_session(
    key: rsa.RSAPrivateKey, *, exchange: bytes | None = None
) -> tuple[list[tuple[Direction, bytes]], bytes]:
    """Script a static-RSA session whose server changes keys; give it and its main secret."""
    numbers = random.Random(12)
    randoms = numbers.randbytes(32), numbers.randbytes(32)
    premaster = b"\x03\x03" + numbers.randbytes(46)
    main = main_secret(HASH, premaster, *randoms)
    block = key_block(HASH, main, *randoms, mac_key_length=0, key_length=16, iv_length=4)
    if exchange is None:
        exchange = with_length(key.public_key().encrypt(premaster, PKCS1v15()))
    speech = []
    for sequence, (kind, content) in enumerate([(22, FINISHED), (23, b"secret words")]):
        explicit = numbers.randbytes(8)
        header = sequence.to_bytes(8, "big") + bytes((kind, 3, 3)) + len(content).to_bytes(2, "big")
        sealed = AESGCM(block.server_key).encrypt(block.server_iv + explicit, content, header)
        speech.append(record(kind, explicit + sealed))
    hello = client_hello(randoms[0], suites=b"\x00\x9c")
    answer = server_hello(randoms[1], suite=b"\x00\x9c") + message(14, b"")
    pieces = [
        (CLIENT, record(22, hello)),
        (SERVER, record(22, answer)),
        (SERVER, CHANGE_CIPHER_SPEC + b"".join(speech)),
        (CLIENT, record(22, message(16, exchange))),
    ]
    return pieces, main


def test_a_server_may_be_captured_ahead_of_its_client() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pieces, main = rsa_session(key)
    session, recovered = play(pieces, KeyMaterial(server_private_keys=(key,)))
    assert recovered[SERVER] == b"secret words"
    assert session.secrets["main_secret"] == main
    log = KeyLog({pieces[0][1][11:43]: {"CLIENT_RANDOM": session.secrets["main_secret"]}})
    again, recovered = play(pieces, KeyMaterial(key_log=log))
    assert recovered[SERVER] == b"secret words"
    assert again.opened_by == "key log"


@pytest.mark.parametrize(
    ("suite", "flight", "extensions"),
    [
        (b"\x00\x9c", message(11, b"\0\x01\x23key"), (extension(20, b"\x02"),)),
        (b"\x00\x9c", message(11, b"\xff"), ()),
        (b"\x00\x9c", b"", (extension(16, b"\xff"),)),
        (b"\xc0\x2f", message(12, b"\x01\x20" + bytes(80)), ()),  # a curve of the server's own
        (b"\x00\x9c", message(4, b"\xff"), (extension(35, b""),)),
    ],
)
def test_what_only_informs_ends_nothing_in_tls12_either(
    suite: bytes, flight: bytes, extensions: tuple[bytes, ...]
) -> None:
    pieces, main = rsa_session(rsa.generate_private_key(65537, 2048))
    client_random = pieces[0][1][11:43]
    hello = client_hello(client_random, suites=suite)
    answer = server_hello(pieces[1][1][11:43], *extensions, suite=suite) + flight
    pieces[:2] = (CLIENT, record(22, hello)), (SERVER, record(22, answer + message(14, b"")))
    log = KeyLog({client_random: {"CLIENT_RANDOM": main}})
    session, recovered = play(pieces, KeyMaterial(key_log=log))
    assert recovered[SERVER] == b"secret words"
    assert session.undecryptable is None


@pytest.mark.parametrize("exchange", [b"\x01", b"\0\x05abc", b"\0\x03abcd", b"\0\x03abc", b""])
def test_a_malformed_key_exchange_is_a_result(exchange: bytes) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pieces, _ = rsa_session(key, exchange=exchange)
    session, recovered = play(pieces, KeyMaterial(server_private_keys=(key,)))
    assert recovered == {CLIENT: b"", SERVER: b""}
    assert not session.opened
    assert session.undecryptable is not None


def test_plaintext_application_data_is_refused() -> None:
    pieces, _ = rsa_session(rsa.generate_private_key(65537, 2048))
    session, recovered = play([*pieces[:2], (SERVER, record(23, b"open"))], KeyMaterial())
    assert recovered[SERVER] == b""
    assert "application_data in the clear" in str(session.damage)
