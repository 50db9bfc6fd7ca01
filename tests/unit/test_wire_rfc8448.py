"""The traces of RFC 8448, from the ephemeral private keys alone (and, resumed, the PSK)."""

from __future__ import annotations

import hmac
import tomllib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from interop.wire import key_schedule
from interop.wire.handshake import parse_client_hello
from interop.wire.key_log import KeyLog
from interop.wire.protection import TLS13Opener
from interop.wire.registry import AlertDescription, ContentType, HandshakeType, NamedGroup
from interop.wire.session import Direction, KeyMaterial, TLSSession
from interop.wire.suites import CipherSuite, parameters_of

if TYPE_CHECKING:
    from interop.wire.groups import EphemeralPrivateKey

CLIENT, SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT
SIDES = {"client": CLIENT, "server": SERVER}
TRACES = sorted((Path(__file__).parents[1] / "vectors" / "rfc8448").glob("*.toml"))
HASH = "sha256"


class Trace:
    """One section of RFC 8448."""

    def __init__(self, path: Path) -> None:
        data = tomllib.loads(path.read_text())
        self.title: str = data["title"]
        self.section: int = data["section"]
        keys = dict(data["private_keys"])
        psk = keys.pop("pre_shared_key", None)
        self.pre_shared_keys = () if psk is None else (bytes.fromhex(psk),)
        self.private_keys = {name: self.private_key(name, value) for name, value in keys.items()}
        self.secrets = {name: bytes.fromhex(value) for name, value in data["secrets"].items()}
        self.messages = {name: bytes.fromhex(value) for name, value in data["messages"].items()}
        self.application_data = {
            name: bytes.fromhex(value) for name, value in data["application_data"].items()
        }
        self.records = [
            (SIDES[record["sender"]], bytes.fromhex(record["bytes"])) for record in data["records"]
        ]

    @staticmethod
    def private_key(name: str, value: str) -> EphemeralPrivateKey:
        raw = bytes.fromhex(value)
        if name.endswith("x25519"):
            return x25519.X25519PrivateKey.from_private_bytes(raw)
        return ec.derive_private_key(int.from_bytes(raw, "big"), ec.SECP256R1())

    def keys(self, side: str) -> KeyMaterial:
        return KeyMaterial(
            ephemeral_private_keys=tuple(
                key for name, key in self.private_keys.items() if name.startswith(side)
            ),
            pre_shared_keys=self.pre_shared_keys,
        )

    def stream(self, direction: Direction) -> bytes:
        return b"".join(record for way, record in self.records if way is direction)

    @property
    def expected(self) -> dict[Direction, bytes]:
        data = self.application_data
        return {CLIENT: data.get("early", b"") + data["client"], SERVER: data["server"]}


@cache
def trace_of(section: int) -> Trace:
    (trace,) = (trace for trace in map(Trace, TRACES) if trace.section == section)
    return trace


def feed_all(
    session: TLSSession, pieces: list[tuple[Direction, bytes]]
) -> dict[Direction, bytearray]:
    recovered = {CLIENT: bytearray(), SERVER: bytearray()}
    for direction, data in pieces:
        for way, plaintext in session.feed(direction, data):
            recovered[way] += plaintext
    for way, plaintext in session.finish():
        recovered[way] += plaintext
    return recovered


sections = pytest.mark.parametrize("section", [3, 4, 5, 6, 7])
sides = pytest.mark.parametrize("side", ["client", "server"])


def test_all_five_traces_are_there() -> None:
    assert [trace_of(section).title for section in (3, 4, 5, 6, 7)] == [
        "Simple 1-RTT Handshake",
        "Resumed 0-RTT Handshake",
        "HelloRetryRequest",
        "Client Authentication",
        "Compatibility Mode",
    ]


@sections
@sides
def test_either_sides_ephemeral_key_opens_the_trace(section: int, side: str) -> None:
    trace = trace_of(section)
    session = TLSSession(trace.keys(side))
    assert feed_all(session, trace.records) == trace.expected
    assert session.undecryptable is None
    assert session.damage is None
    assert session.opened
    assert [alert.description for alert in session.alerts] == [AlertDescription.CLOSE_NOTIFY] * 2
    assert all(alert.protected for alert in session.alerts)
    for name, secret in session.secrets.items():
        if name in trace.secrets:  # one main secret is not printed
            assert secret == trace.secrets[name], name
    derived = set(session.secrets) & set(trace.secrets)
    assert len(derived) >= 7
    assert {"client_application_traffic_secret_0", "resumption_secret"} <= derived


@sections
def test_a_strangers_ephemeral_key_opens_nothing(section: int) -> None:
    trace = trace_of(section)
    stranger = x25519.X25519PrivateKey.generate()
    session = TLSSession(KeyMaterial(ephemeral_private_keys=(stranger,)))
    assert feed_all(session, trace.records) == {CLIENT: b"", SERVER: b""}
    assert not session.opened
    assert session.undecryptable is not None
    assert session.opened_by is None
    assert session.secrets == {}


@sections
def test_facts(section: int) -> None:
    trace = trace_of(section)
    session = TLSSession(trace.keys("server"))
    feed_all(session, trace.records)
    group = NamedGroup.SECP256R1 if section == 5 else NamedGroup.X25519
    assert session.version_name == "TLS 1.3"
    assert session.suite == CipherSuite.TLS_AES_128_GCM_SHA256
    assert session.group == group
    assert session.server_name == "server"
    assert session.hello_retry_request is (section == 5)
    assert session.resumed is (section == 4)
    assert session.early_data_accepted is (section == 4)
    assert session.forward_secret is True
    assert len(session.server_certificates) == (0 if section == 4 else 1)
    assert len(session.client_certificates) == (1 if section == 6 else 0)
    server_flight = {
        HandshakeType(message.handshake_type)
        for message in session.handshake_messages
        if message.direction is SERVER
    }
    assert {HandshakeType.SERVER_HELLO, HandshakeType.FINISHED} <= server_flight


def test_the_ticket_of_section_3_gives_the_psk_of_section_4() -> None:
    first, second = trace_of(3), trace_of(4)
    session = TLSSession(first.keys("client"))
    feed_all(session, first.records)
    (ticket,) = session.tickets
    assert ticket.pre_shared_key == first.secrets["resumption_psk"]
    assert (ticket.pre_shared_key,) == second.pre_shared_keys
    resumed = TLSSession(KeyMaterial(pre_shared_keys=(ticket.pre_shared_key,)))
    recovered = feed_all(resumed, second.records)
    assert resumed.offered_psk_identities == (ticket.ticket,)
    # 0-RTT data is not forward secret; the rest of a psk_dhe_ke session is (RFC 9846 section 2.3).
    assert recovered == {CLIENT: second.application_data["early"], SERVER: b""}
    assert resumed.opened_by == "pre-shared key"
    assert "needs both" in str(resumed.undecryptable)


def messages_in_the_clear(trace: Trace) -> list[bytes]:
    return [record[5:] for _, record in trace.records if record[0] == ContentType.HANDSHAKE]


@sections
@sides
def test_keys_and_ivs_as_printed(section: int, side: str) -> None:
    secrets = trace_of(section).secrets
    for epoch in ("handshake", "application"):
        generation = "_0" if epoch == "application" else ""
        secret = secrets[f"{side}_{epoch}_traffic_secret{generation}"]
        keys = key_schedule.traffic_keys(HASH, secret, 16)
        key_name = f"{side}_{epoch}_key"
        if key_name in secrets:
            assert keys.key == secrets[key_name]
            assert keys.iv == secrets[f"{side}_{epoch}_iv"]


@sections
def test_the_derived_values_between_secrets_as_printed(section: int) -> None:
    secrets = trace_of(section).secrets
    empty = key_schedule.transcript_hash(HASH)
    early = secrets.get("early_secret")
    if early is not None and "derived_for_handshake" in secrets:
        derived = key_schedule.derive_secret(HASH, early, b"derived", empty)
        assert derived == secrets["derived_for_handshake"]
    if "derived_for_main" in secrets:
        handshake = secrets["handshake_secret"]
        derived = key_schedule.derive_secret(HASH, handshake, b"derived", empty)
        assert derived == secrets["derived_for_main"]


def test_early_secrets_and_binder_as_printed() -> None:
    trace = trace_of(4)
    secrets = trace.secrets
    (psk,) = trace.pre_shared_keys
    early = key_schedule.early_secret(HASH, psk)
    assert early == secrets["early_secret"]
    base = key_schedule.binder_key(HASH, early, external=False)
    assert base == secrets["binder_key"]
    assert key_schedule.finished_key(HASH, base) == secrets["binder_finished_key"]
    raw = messages_in_the_clear(trace)[0]
    hello = parse_client_hello(raw)
    assert hello.pre_shared_keys is not None
    truncated = raw[: -hello.pre_shared_keys.binders_length]
    digest = key_schedule.transcript_hash(HASH, truncated)
    assert digest == secrets["binder_transcript_hash"]
    assert key_schedule.verify_data(HASH, base, digest) == secrets["binder"]
    assert hello.pre_shared_keys.identities[0].binder == secrets["binder"]
    digest = key_schedule.transcript_hash(HASH, raw)
    for name, label in (
        ("client_early_traffic_secret", b"c e traffic"),
        ("early_exporter_secret", b"e exp master"),
    ):
        assert key_schedule.derive_secret(HASH, early, label, digest) == secrets[name]
    keys = key_schedule.traffic_keys(HASH, secrets["client_early_traffic_secret"], 16)
    assert keys == (secrets["client_early_key"], secrets["client_early_iv"])


def opener(trace: Trace, side: str, epoch: str) -> TLS13Opener:
    generation = "_0" if epoch == "application" else ""
    secret = trace.secrets[f"{side}_{epoch}_traffic_secret{generation}"]
    suite = parameters_of(CipherSuite.TLS_AES_128_GCM_SHA256)
    assert suite is not None
    assert suite.cipher is not None
    return TLS13Opener(suite.cipher, key_schedule.traffic_keys(HASH, secret, 16))


@sections
def test_the_servers_flight_is_the_messages_printed_and_its_finished_verifies(section: int) -> None:
    trace = trace_of(section)
    flight = next(r for way, r in trace.records if way is SERVER and r[0] == 23)
    opened = opener(trace, "server", "handshake").open(memoryview(flight))
    assert opened is not None
    content_type, content = opened
    assert content_type == ContentType.HANDSHAKE
    for name in (
        "encrypted_extensions",
        "certificate_request",
        "server_certificate",
        "server_certificate_verify",
        "server_finished",
    ):
        if name in trace.messages:
            assert trace.messages[name] in content
    hellos = messages_in_the_clear(trace)
    if section == 5:
        hellos[0] = key_schedule.message_hash(HASH, hellos[0])
    digest = key_schedule.transcript_hash(HASH, *hellos)
    if "hello_transcript_hash" in trace.secrets:
        assert digest == trace.secrets["hello_transcript_hash"]
    base = trace.secrets["server_handshake_traffic_secret"]
    digest = key_schedule.transcript_hash(HASH, *hellos, content[:-36])
    expected = key_schedule.verify_data(HASH, base, digest)
    assert hmac.compare_digest(content[-32:], expected)
    # And the client's, over all that.
    base = trace.secrets["client_handshake_traffic_secret"]
    before = b"\x05\0\0\0" if section == 4 else b""
    client = opener(trace, "client", "handshake")
    finished = next(
        opened
        for way, record in trace.records
        if way is CLIENT and record[0] == 23
        if (opened := client.open(memoryview(record))) is not None
    ).content
    digest = key_schedule.transcript_hash(HASH, *hellos, content, before, finished[:-36])
    assert finished[-32:] == key_schedule.verify_data(HASH, base, digest)


@sections
def test_split_at_every_byte(section: int) -> None:
    trace = trace_of(section)
    crumbs = [(way, record[i : i + 1]) for way, record in trace.records for i in range(len(record))]
    session = TLSSession(trace.keys("client"))
    assert feed_all(session, crumbs) == trace.expected
    assert session.undecryptable is None


@sections
def test_cut_in_two_at_every_place(section: int) -> None:
    trace = trace_of(section)
    streams = {way: trace.stream(way) for way in Direction}
    for way in Direction:
        for cut in range(0, len(streams[way]) + 1, 7 if section == 4 else 13):
            head, tail = (way, streams[way][:cut]), (way, streams[way][cut:])
            other = (way.opposite, streams[way.opposite])
            session = TLSSession(trace.keys("server"))
            assert feed_all(session, [head, other, tail]) == trace.expected
            assert session.undecryptable is None


@given(data=st.data(), section=st.sampled_from([3, 4, 5, 6, 7]))
@settings(max_examples=60, deadline=None)
def test_any_chunking_and_any_interleaving_recovers_the_same(
    data: st.DataObject, section: int
) -> None:
    trace = trace_of(section)
    rest = {way: trace.stream(way) for way in Direction}
    pieces = []
    while rest[CLIENT] or rest[SERVER]:
        way = data.draw(st.sampled_from([way for way in Direction if rest[way]]))
        size = data.draw(st.integers(1, len(rest[way])))
        pieces.append((way, rest[way][:size]))
        rest[way] = rest[way][size:]
    session = TLSSession(trace.keys(data.draw(st.sampled_from(["client", "server"]))))
    assert feed_all(session, pieces) == trace.expected
    assert session.undecryptable is None


# Key logs with holes, on the traces that have something to hide

LABELS = {
    "CLIENT_EARLY_TRAFFIC_SECRET": "client_early_traffic_secret",
    "CLIENT_HANDSHAKE_TRAFFIC_SECRET": "client_handshake_traffic_secret",
    "SERVER_HANDSHAKE_TRAFFIC_SECRET": "server_handshake_traffic_secret",
    "CLIENT_TRAFFIC_SECRET_0": "client_application_traffic_secret_0",
    "SERVER_TRAFFIC_SECRET_0": "server_application_traffic_secret_0",
}


def log_of(trace: Trace, *without: str) -> KeyMaterial:
    client_random = messages_in_the_clear(trace)[0][6:38]
    secrets = {
        label: trace.secrets[name]
        for label, name in LABELS.items()
        if label not in without and name in trace.secrets
    }
    return KeyMaterial(key_log=KeyLog({client_random: secrets}))


def test_early_data_that_nobody_can_open_is_passed_over() -> None:
    trace = trace_of(4)
    session = TLSSession(log_of(trace, "CLIENT_EARLY_TRAFFIC_SECRET"))
    recovered = feed_all(session, trace.records)
    assert recovered == {CLIENT: trace.application_data["client"], SERVER: trace.expected[SERVER]}
    assert session.early_records_skipped == 2  # the data, and EndOfEarlyData
    assert session.opened
    assert "2 records of 0-RTT data stayed closed" in str(session.undecryptable)
    assert session.undecryptable_in(SERVER) is None


@pytest.mark.parametrize(
    "missing",
    [
        ("CLIENT_HANDSHAKE_TRAFFIC_SECRET",),
        ("SERVER_HANDSHAKE_TRAFFIC_SECRET",),
        ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET"),
        (
            "CLIENT_EARLY_TRAFFIC_SECRET",
            "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
            "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        ),
    ],
)
def test_missing_handshake_secrets_cost_no_application_data(missing: tuple[str, ...]) -> None:
    trace = trace_of(4)
    for pieces in (trace.records, [(way, trace.stream(way)) for way in Direction]):
        session = TLSSession(log_of(trace, *missing))
        recovered = feed_all(session, pieces)
        early = b"" if "CLIENT_EARLY_TRAFFIC_SECRET" in missing else b"ABCDEF"
        assert recovered[CLIENT] == early + trace.application_data["client"]
        assert recovered[SERVER] == trace.application_data["server"]


def test_early_data_rejected_by_a_retry_is_passed_over() -> None:
    trace = trace_of(5)
    (way, first), *rest = trace.records
    rejected = bytes.fromhex("1703030020") + bytes(32)
    records = [(way, first), (CLIENT, rejected), (CLIENT, rejected), *rest]
    for pieces in (
        records,
        [(way, b"".join(r for w, r in records if w is way)) for way in (SERVER, CLIENT)],
    ):
        session = TLSSession(trace.keys("client"))
        feed_all(session, pieces)
        assert session.early_records_skipped == 2
        assert session.opened
        assert "0-RTT data stayed closed: rejected" in str(session.undecryptable)
