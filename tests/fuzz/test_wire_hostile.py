"""Hostile recordings: any bytes give a value, and plaintext is true or absent, never wrong.

Each property runs a little in the plain tests and long under ``-m fuzz``.
"""

from __future__ import annotations

import hmac
import random
import time
import tomllib
import tracemalloc
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interop.capture.files import read_streams
from interop.capture.streams import (
    CloseReason,
    Connection,
    Endpoint,
    StreamClosed,
    StreamData,
)
from interop.errors import DissectError
from interop.proof.attacker import Attacker
from interop.wire import handshake as hs
from interop.wire.key_log import KeyLog
from interop.wire.key_schedule import next_traffic_secret, traffic_keys
from interop.wire.learned import LearnedSecrets
from interop.wire.prf import KeyBlock, key_block
from interop.wire.registry import HandshakeType
from interop.wire.session import Direction, KeyMaterial, TLSSession
from interop.wire.suites import KeyExchange
from interop.wire.tickets import TICKET_KEY_LENGTHS, TicketKey

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT, SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
VECTORS = Path(__file__).parents[1] / "vectors" / "rfc8448"

QUICK = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=50_000, deadline=None, suppress_health_check=list(HealthCheck))


Pieces = list[tuple[Direction, bytes]]


class Recorded(NamedTuple):
    """A session as recorded, the keys that open it, and what it truly carries."""

    pieces: tuple[tuple[Direction, bytes], ...]
    keys: KeyMaterial
    truth: dict[Direction, bytes]


def as_record(content_type: int, fragment: bytes) -> bytes:
    return bytes((content_type, 3, 3)) + len(fragment).to_bytes(2, "big") + fragment


def rfc8448(section: int) -> Recorded:
    (path,) = VECTORS.glob(f"section-{section}-*.toml")
    data = tomllib.loads(path.read_text())
    names = {"client": CLIENT, "server": SERVER}
    private = x25519.X25519PrivateKey.from_private_bytes(
        bytes.fromhex(data["private_keys"]["client_x25519"])
    )
    psk = data["private_keys"].get("pre_shared_key")
    sent = {name: bytes.fromhex(value) for name, value in data["application_data"].items()}
    return Recorded(
        tuple((names[r["sender"]], bytes.fromhex(r["bytes"])) for r in data["records"]),
        KeyMaterial(
            ephemeral_private_keys=(private,),
            pre_shared_keys=(bytes.fromhex(psk),) if psk else (),
        ),
        {CLIENT: sent.get("early", b"") + sent["client"], SERVER: sent["server"]},
    )


def protect13(secret: bytes, inners: list[bytes]) -> list[bytes]:
    key, iv = traffic_keys("sha256", secret, 16)
    records = []
    for sequence, inner in enumerate(inners):
        nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        records.append(header + AESGCM(key).encrypt(nonce, inner, header))
    return records


def long_tls13() -> Recorded:
    """A TLS 1.3 session with many records, padding, alerts and key updates."""
    numbers = random.Random(9846)
    hello = as_record(22, client_hello_of(numbers, b"\x13\x01"))
    answer = as_record(22, server_hello_of(numbers, b"\x13\x01", tls13=True))
    secrets = {
        label: numbers.randbytes(32)
        for label in (
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
            "SERVER_HANDSHAKE_TRAFFIC_SECRET",
            "CLIENT_TRAFFIC_SECRET_0",
            "SERVER_TRAFFIC_SECRET_0",
        )
    }
    finished = b"\x14\0\0\x20" + numbers.randbytes(32)
    flights = {
        CLIENT: protect13(secrets["CLIENT_HANDSHAKE_TRAFFIC_SECRET"], [finished + b"\x16"]),
        SERVER: protect13(
            secrets["SERVER_HANDSHAKE_TRAFFIC_SECRET"],
            [b"\x08\0\0\x02\0\0\x16", finished[:9] + b"\x16", finished[9:] + b"\x16" + bytes(9)],
        ),
    }
    truth = {}
    for way, label in ((CLIENT, "CLIENT_TRAFFIC_SECRET_0"), (SERVER, "SERVER_TRAFFIC_SECRET_0")):
        secret, sent = secrets[label], b""
        for _ in range(3):
            chunks = [numbers.randbytes(numbers.randrange(0, 400)) for _ in range(6)]
            inners = [chunk + b"\x17" + bytes(numbers.randrange(3)) for chunk in chunks]
            flights[way] += protect13(secret, [*inners, b"\x18\0\0\x01\0\x16"])
            sent += b"".join(chunks)
            secret = next_traffic_secret("sha256", secret)
        flights[way] += protect13(secret, [b"\x01\0\x15"])
        truth[way] = sent
    pieces = ((CLIENT, hello), (SERVER, answer))
    mixed = [(way, piece) for way in (SERVER, CLIENT) for piece in flights[way]]
    keys = KeyMaterial(key_log=KeyLog({hello[11:43]: secrets}))
    return Recorded((*pieces, *mixed), keys, truth)


def client_hello_of(numbers: random.Random, suite: bytes) -> bytes:
    extensions = b"\0\x2b\0\x03\x02\x03\x04" + b"\0\x33\0\x26\0\x24\0\x1d\0\x20"
    extensions += numbers.randbytes(32)
    body = b"\x03\x03" + numbers.randbytes(32) + b"\0" + b"\0\x02" + suite + b"\x01\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def server_hello_of(
    numbers: random.Random, suite: bytes, *, tls13: bool, extensions: bytes = b""
) -> bytes:
    share = numbers.randbytes(32)
    if tls13:
        extensions = b"\0\x2b\0\x02\x03\x04\0\x33\0\x24\0\x1d\0\x20" + share
    body = b"\x03\x03" + numbers.randbytes(32) + b"\0" + suite + b"\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    return b"\x02" + len(body).to_bytes(3, "big") + body


def seal12(mode: str, keys: KeyBlock, way: Direction, contents: list[tuple[int, bytes]]) -> Pieces:
    """Protect records as a TLS 1.2 peer does, in one of the ways that there are."""
    is_client = way is CLIENT
    mac_key = keys.client_mac_key if is_client else keys.server_mac_key
    key = keys.client_key if is_client else keys.server_key
    iv = keys.client_iv if is_client else keys.server_iv
    numbers, pieces = random.Random(mode), []
    for sequence, (kind, sent) in enumerate(contents):
        content = sent
        header = sequence.to_bytes(8, "big") + bytes((kind, 3, 3))
        additional = header + len(content).to_bytes(2, "big")
        explicit = numbers.randbytes(16 if mode.startswith("CBC") else 8)
        if mode == "GCM":
            fragment = explicit + AESGCM(key).encrypt(iv + explicit, content, additional)
        elif mode == "CCM_8":
            sealed = AESCCM(key, tag_length=8).encrypt(iv + explicit, content, additional)
            fragment = explicit + sealed
        elif mode == "CHACHA20":
            nonce = (int.from_bytes(iv, "big") ^ sequence).to_bytes(12, "big")
            fragment = ChaCha20Poly1305(key).encrypt(nonce, content, additional)
        else:
            inside = mode == "CBC, MAC inside"
            if inside:
                content += hmac.digest(mac_key, additional + content, "sha1")
            padding = 15 - len(content) % 16
            encryptor = Cipher(AES(key), CBC(explicit)).encryptor()
            fragment = explicit + encryptor.update(content + bytes((padding,)) * (padding + 1))
            if not inside:
                additional = header + len(fragment).to_bytes(2, "big")
                fragment += hmac.digest(mac_key, additional + fragment, "sha1")
        pieces.append((way, as_record(kind, fragment)))
    return pieces


# Suite, and lengths of MAC key, key and IV
TLS12_MODES = {
    "GCM": (b"\xc0\x2f", 0, 16, 4),
    "CCM_8": (b"\xc0\xae", 0, 16, 4),
    "CHACHA20": (b"\xcc\xa8", 0, 32, 12),
    "CBC, MAC inside": (b"\xc0\x13", 20, 16, 0),
    "CBC, MAC outside": (b"\xc0\x13", 20, 16, 0),
}


def long_tls12(mode: str = "GCM") -> Recorded:
    """A TLS 1.2 session with ECDHE, opened by its main secret."""
    numbers = random.Random(5246)
    suite, mac_key_length, key_length, iv_length = TLS12_MODES[mode]
    hello = as_record(22, client_hello_of(numbers, suite))
    extensions = b"\0\x16\0\0" if mode == "CBC, MAC outside" else b""
    answer = server_hello_of(numbers, suite, tls13=False, extensions=extensions)
    exchange = b"\x03\0\x1d\x20" + numbers.randbytes(32) + b"\x08\x04\0\x04abcd"
    exchange = b"\x0c" + len(exchange).to_bytes(3, "big") + exchange
    server = as_record(22, answer + exchange + b"\x0e\0\0\0")
    client = as_record(22, b"\x10\0\0\x21\x20" + numbers.randbytes(32))
    main = numbers.randbytes(48)
    block = key_block(
        "sha256",
        main,
        hello[11:43],
        answer[6:38],
        mac_key_length=mac_key_length,
        key_length=key_length,
        iv_length=iv_length,
    )
    change = b"\x14\x03\x03\0\x01\x01"
    pieces, truth = [(CLIENT, hello), (SERVER, server), (CLIENT, client)], {}
    for way in (CLIENT, SERVER):
        chunks = [numbers.randbytes(numbers.randrange(0, 400)) for _ in range(12)]
        contents = [(22, b"\x14\0\0\x0c" + bytes(12)), *((23, c) for c in chunks), (21, b"\1\0")]
        pieces += [(way, change), *seal12(mode, block, way, contents)]
        truth[way] = b"".join(chunks)
    return Recorded(
        tuple(pieces), KeyMaterial(key_log=KeyLog({hello[11:43]: {"CLIENT_RANDOM": main}})), truth
    )


GO_TICKET_KEY = TicketKey((VECTORS.parent / "go-tickets" / "ticket-key.bin").read_bytes())


@cache
def go_sessions() -> tuple[Recorded, Recorded]:
    """A session of a Go server that issued a ticket, and the one that resumed it."""
    pieces: dict[int, Pieces] = {0: [], 1: []}
    for event in read_streams(VECTORS.parent / "go-tickets" / "go-1.19-tls12.pcapng"):
        if isinstance(event, StreamData):
            pieces[event.connection.index].append((event.direction, bytes(event.data)))
    first, second = (
        Recorded(
            tuple(pieces[number]),
            KeyMaterial.of(GO_TICKET_KEY),
            {
                CLIENT: b"go asks, number %d" % number,
                SERVER: b'go answers "go asks, number %d"' % number,
            },
        )
        for number in range(2)
    )
    return first, second


@cache
def corpus() -> tuple[Recorded, ...]:
    rfc = (rfc8448(section) for section in (3, 4, 6, 7))
    return (*rfc, long_tls13(), *map(long_tls12, TLS12_MODES), *go_sessions())


def run(session: TLSSession, pieces: list[tuple[Direction, bytes]]) -> dict[Direction, bytes]:
    recovered = {CLIENT: bytearray(), SERVER: bytearray()}
    for direction, data in pieces:
        for way, plaintext in session.feed(direction, data):
            recovered[way] += plaintext
    for way, plaintext in session.finish():
        recovered[way] += plaintext
    return {way: bytes(data) for way, data in recovered.items()}


def assert_sane(session: TLSSession) -> None:
    assert session.opened or session.undecryptable is not None
    assert repr(session)
    assert len(session.handshake_messages) <= 256


def test_the_corpus_opens_untouched() -> None:
    for recorded in corpus():
        session = TLSSession(recorded.keys)
        assert run(session, list(recorded.pieces)) == recorded.truth
        assert session.undecryptable is None


# Mutations: each takes a session's pieces and gives others.


def flip(data: st.DataObject, pieces: Pieces) -> Pieces:
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(pieces) - 1))
        way, piece = pieces[index]
        if not piece:
            continue
        changed = bytearray(piece)
        changed[data.draw(st.integers(0, len(piece) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        pieces[index] = (way, bytes(changed))
    return pieces


def truncate(data: st.DataObject, pieces: Pieces) -> Pieces:
    index = data.draw(st.integers(0, len(pieces) - 1))
    way, piece = pieces[index]
    pieces[index] = (way, piece[: data.draw(st.integers(0, len(piece)))])
    return pieces


def drop(data: st.DataObject, pieces: Pieces) -> Pieces:
    del pieces[data.draw(st.integers(0, len(pieces) - 1))]
    return pieces


def duplicate(data: st.DataObject, pieces: Pieces) -> Pieces:
    index = data.draw(st.integers(0, len(pieces) - 1))
    pieces.insert(data.draw(st.integers(0, len(pieces))), pieces[index])
    return pieces


def reorder(data: st.DataObject, pieces: Pieces) -> Pieces:
    first, second = (data.draw(st.integers(0, len(pieces) - 1)) for _ in range(2))
    pieces[first], pieces[second] = pieces[second], pieces[first]
    return pieces


def turn_round(data: st.DataObject, pieces: Pieces) -> Pieces:
    index = data.draw(st.integers(0, len(pieces) - 1))
    way, piece = pieces[index]
    pieces[index] = (way.opposite, piece)
    return pieces


def splice(data: st.DataObject, pieces: Pieces) -> Pieces:
    stranger = data.draw(st.sampled_from(corpus())).pieces
    index = data.draw(st.integers(0, len(pieces) - 1))
    return pieces[:index] + list(stranger[data.draw(st.integers(0, len(stranger) - 1)) :])


def insert(data: st.DataObject, pieces: Pieces) -> Pieces:
    way = data.draw(st.sampled_from(Direction))
    junk = data.draw(
        st.binary(max_size=80)
        | st.builds(as_record, st.sampled_from([20, 21, 22, 23, 24]), st.binary(max_size=60))
    )
    pieces.insert(data.draw(st.integers(0, len(pieces))), (way, junk))
    return pieces


MUTATIONS: tuple[Callable[[st.DataObject, Pieces], Pieces], ...] = (
    flip,
    truncate,
    drop,
    duplicate,
    reorder,
    turn_round,
    splice,
    insert,
)


def is_true(recovered: bytes, truths: list[bytes]) -> bool:
    """Whether bytes are the beginning of something that was truly sent."""
    return any(truth.startswith(recovered) for truth in truths)


def check_mutated(data: st.DataObject) -> None:
    recorded = data.draw(st.sampled_from(corpus()))
    pieces = list(recorded.pieces)
    for _ in range(data.draw(st.integers(1, 3))):
        if pieces:
            pieces = data.draw(st.sampled_from(MUTATIONS))(data, pieces)
    rechunk = data.draw(st.integers(0, 3))
    if rechunk:
        pieces = [
            (way, piece[at : at + size])
            for way, piece in pieces
            for size in (data.draw(st.integers(1, 600)) if rechunk == 1 else rechunk * 700,)
            for at in range(0, len(piece), size)
        ]
    session = TLSSession(recorded.keys)
    recovered = run(session, pieces)
    for way in Direction:
        early = recorded.truth[way][6:]  # of section 4, should its early data be lost
        # One key opens both of Go's sessions, and a splice may make one into the other.
        kin = go_sessions() if recorded in go_sessions() else (recorded,)
        assert is_true(recovered[way], [early, *(each.truth[way] for each in kin)])
    assert_sane(session)


@given(st.data())
@QUICK
def test_mutated_sessions_give_true_plaintext_or_none(data: st.DataObject) -> None:
    check_mutated(data)


@pytest.mark.fuzz
@pytest.mark.long
@given(st.data())
@LONG
def test_mutated_sessions_give_true_plaintext_or_none_at_length(data: st.DataObject) -> None:
    check_mutated(data)


@given(st.data())
@QUICK
def test_what_a_damaged_session_taught_opens_no_other_wrongly(data: st.DataObject) -> None:
    """The original is damaged, the session that resumes it is genuine."""
    first, second = go_sessions()
    secret = main_secret_of(first.pieces)
    log = KeyLog({first.pieces[0][1][11:43]: {"CLIENT_RANDOM": secret}})
    keys, learned = KeyMaterial(key_log=log), LearnedSecrets()
    pieces = list(first.pieces)
    mutations = data.draw(st.integers(0, 2))
    for _ in range(mutations):
        pieces = data.draw(st.sampled_from(MUTATIONS))(data, pieces)
    run(TLSSession(keys, learned=learned), pieces)
    session = TLSSession(keys, learned=learned)
    recovered = run(session, list(second.pieces))
    assert recovered in ({CLIENT: b"", SERVER: b""}, second.truth)
    assert session.opened is (recovered == second.truth)
    assert mutations or session.opened_by == "earlier session"


def main_secret_of(pieces: tuple[tuple[Direction, bytes], ...]) -> bytes:
    """The main secret in the ticket that a session issues, found as a thief of its key finds it."""
    session = TLSSession(KeyMaterial.of(GO_TICKET_KEY))
    run(session, list(pieces))
    return session.secrets["main_secret"]


# Bytes of no session at all

RECORDS = st.builds(as_record, st.sampled_from([20, 21, 22, 23, 24]), st.binary(max_size=200))
MESSAGES = st.builds(
    lambda kind, body: as_record(22, bytes((kind,)) + len(body).to_bytes(3, "big") + body),
    st.sampled_from([int(kind) for kind in HandshakeType]),
    st.binary(max_size=200),
)
STREAMS = st.lists(
    st.tuples(st.sampled_from(Direction), st.binary(max_size=200) | RECORDS | MESSAGES), max_size=12
)


def keys_of_every_kind() -> KeyMaterial:
    return KeyMaterial(
        server_private_keys=(an_rsa_key(),),
        key_log=corpus()[4].keys.key_log | corpus()[5].keys.key_log,
        ephemeral_private_keys=corpus()[0].keys.ephemeral_private_keys,
        pre_shared_keys=(bytes(32), bytes(48)),
        ticket_keys=(GO_TICKET_KEY, *(TicketKey(bytes(length)) for length in TICKET_KEY_LENGTHS)),
    )


@cache
def an_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def check_arbitrary(pieces: Pieces, start: int) -> None:
    session = TLSSession(keys_of_every_kind())
    prefix = list(corpus()[start].pieces[:2]) if start < len(corpus()) else []
    assert run(session, prefix + pieces) == {CLIENT: b"", SERVER: b""}
    assert_sane(session)


@given(STREAMS, st.integers(0, 12))
@QUICK
def test_arbitrary_bytes_give_a_result(pieces: Pieces, start: int) -> None:
    check_arbitrary(pieces, start)


@pytest.mark.fuzz
@pytest.mark.long
@given(STREAMS, st.integers(0, 12))
@LONG
def test_arbitrary_bytes_give_a_result_at_length(pieces: Pieces, start: int) -> None:
    check_arbitrary(pieces, start)


def refusal(parse: Callable[[bytes], object], message: bytes) -> DissectError | None:
    try:
        parse(message)
    except DissectError as error:
        return error
    return None


def offers_of(message: bytes) -> tuple[object, ...]:
    hello = hs.parse_client_hello(message)
    offered = (hello.server_name, hello.supported_versions, hello.key_shares)
    return (*offered, hello.psk_key_exchange_modes, hello.pre_shared_keys)


@given(st.binary(max_size=300), st.sampled_from(KeyExchange), st.booleans())
@QUICK
def test_parsers_give_a_value_or_a_dissect_error(
    body: bytes,
    exchange: KeyExchange,
    tls13: bool,  # noqa: FBT001 - drawn
) -> None:
    parsers: tuple[tuple[HandshakeType, Callable[[bytes], object]], ...] = (
        (HandshakeType.CLIENT_HELLO, offers_of),
        (HandshakeType.SERVER_HELLO, hs.parse_server_hello),
        (HandshakeType.ENCRYPTED_EXTENSIONS, hs.encrypted_extensions),
        (HandshakeType.CERTIFICATE, lambda m: hs.certificate_chain(m, tls13=tls13)),
        (HandshakeType.CERTIFICATE_VERIFY, hs.certificate_verify),
        (HandshakeType.FINISHED, hs.finished),
        (HandshakeType.KEY_UPDATE, hs.key_update),
        (HandshakeType.NEW_SESSION_TICKET, hs.new_session_ticket_tls12),
        (HandshakeType.NEW_SESSION_TICKET, hs.new_session_ticket_tls13),
        (HandshakeType.SERVER_KEY_EXCHANGE, lambda m: hs.server_key_exchange(m, exchange)),
        (HandshakeType.CLIENT_KEY_EXCHANGE, lambda m: hs.client_key_exchange(m, exchange)),
    )
    for kind, parse in parsers:
        for message in (body, bytes((kind,)) + len(body).to_bytes(3, "big") + body):
            if (error := refusal(parse, message)) is not None:
                assert 0 <= error.offset <= len(message)
                assert error.path


# Time and memory


@pytest.mark.parametrize(
    ("kind", "fragment"),
    [(22, b"\x01"), (21, b"\x01\x5a"), (22, b""), (23, bytes(17)), (20, b"\x01"), (24, b"")],
)
def test_floods_of_small_records_take_linear_time_and_no_memory(kind: int, fragment: bytes) -> None:
    for recorded in corpus()[4:]:
        for direction in Direction:
            flood = as_record(kind, fragment) * 20_000
            session = TLSSession(recorded.keys)
            for way, piece in recorded.pieces[:4]:
                session.feed(way, piece)
            started = time.process_time()
            session.feed(direction, flood)
            for at in range(0, len(flood), 1000):
                session.feed(direction, flood[at : at + 1000])
            session.finish()
            assert time.process_time() - started < 5
            assert len(session.alerts) <= 256
            assert_sane(session)


@pytest.mark.parametrize("kind", [HandshakeType.SERVER_HELLO_DONE, 99])
def test_a_half_that_waits_costs_the_same_however_many_messages_the_other_sent(kind: int) -> None:
    numbers = random.Random(12)
    suite = b"\xc0\x2f"
    session = TLSSession(KeyMaterial())
    session.feed(CLIENT, as_record(22, client_hello_of(numbers, suite)))
    session.feed(SERVER, as_record(22, server_hello_of(numbers, suite, tls13=False)))
    messages = (bytes((99, 0, 0, 0)) * 999 + bytes((kind, 0, 0, 0))) * 4
    for _ in range(30):
        session.feed(SERVER, as_record(22, messages))
    session.feed(CLIENT, as_record(20, b"\x01") + as_record(22, bytes(40)))
    started = time.process_time()
    for _ in range(5000):
        session.feed(CLIENT, b"\0")
    assert time.process_time() - started < 5
    assert "handshake messages" in str(session.undecryptable_in(SERVER))
    assert_sane(session)


def test_any_number_of_connections_of_one_direction_only_hold_a_bounded_memory() -> None:
    attacker = Attacker(KeyMaterial())
    piece = memoryview(as_record(22, bytes(16_379)) * 64)
    ends = Endpoint("10.0.0.1", 50_000), Endpoint("10.0.0.2", 443)
    tracemalloc.start()
    for index in range(40):
        connection = Connection(index, *ends, 0, client_known=True)
        for _ in range(3):
            attacker.feed(StreamData(connection, SERVER, piece))
        attacker.feed(StreamClosed(connection, SERVER, CloseReason.FIN))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 80 * 2**20


def test_an_endless_handshake_message_is_refused_at_its_header() -> None:
    session = TLSSession(KeyMaterial())
    session.feed(CLIENT, as_record(22, b"\x01\xff\xff\xff" + bytes(1000)))
    assert session.damage is not None
    assert "at most 131072" in str(session.damage)
    assert "damaged" in str(session.undecryptable)


def test_endless_key_updates_and_tickets_stay_bounded() -> None:
    recorded = corpus()[4]
    (client_random,) = recorded.keys.key_log
    secret = recorded.keys.key_log[client_random]["SERVER_TRAFFIC_SECRET_0"]
    ticket = b"\x04\0\0\x10" + bytes(8) + b"\0\0\x01x" + b"\0\0" + b"yy"
    session = TLSSession(recorded.keys)
    for way, piece in recorded.pieces[:5]:
        session.feed(way, piece)
    for record in protect13(secret, [ticket[:-2] + b"\x16"] * 1000):
        session.feed(SERVER, record)
    assert len(session.tickets) <= 256
    for _ in range(500):
        (record,) = protect13(secret, [b"\x18\0\0\x01\0\x16"])
        session.feed(SERVER, record)
        secret = next_traffic_secret("sha256", secret)
    assert_sane(session)
