"""The decryptor against real peers in memory: what OpenSSL and tlslite-ng really send.

Each test records both directions of a session byte for byte, hands the decryptor nothing but the
recording and one kind of stolen secret, and compares what it recovers with what was sent.
"""

from __future__ import annotations

import contextlib
import random
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from tlslite_peers import TLS12_ONLY, TLS13_ONLY, TLSLitePair
from wire_peers import (
    ALLOW_CLIENT_RENEGOTIATION,
    CHUNKINGS,
    CLIENT,
    NO_ENCRYPT_THEN_MAC,
    NO_EXTENDED_MAIN_SECRET,
    SERVER,
    Options,
    Pair,
    Recording,
    assert_closed,
    assert_opened,
    certificate,
    context,
    converse,
    decrypt,
    private_key,
    resumed,
    whole,
)

from interop.wire.held import HeldBytes
from interop.wire.key_log import KeyLog
from interop.wire.key_schedule import exporter_value
from interop.wire.prf import exporter_value as tls12_exporter_value
from interop.wire.registry import HandshakeType, NamedGroup, ProtocolVersion
from interop.wire.session import Direction, KeyMaterial, TLSSession
from interop.wire.suites import CipherSuite, parameters_of

with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.constants import KeyUpdateMessageType

TLS13_SUITES = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_CCM_SHA256",
    "TLS_AES_128_CCM_8_SHA256",
)


@pytest.mark.parametrize("suite", TLS13_SUITES)
def test_every_tls13_suite_opens_by_key_log(suite: str) -> None:
    recording = converse(Options(suites=suite))
    session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
    assert session.version == ProtocolVersion.TLS_1_3
    assert session.suite == CipherSuite[suite]
    assert session.server_name == "wire.test"
    assert session.forward_secret is True
    assert session.resumed is False
    der = certificate("RSA").public_bytes(Encoding.DER)
    assert session.server_certificates == (der,)
    closed = [alert.direction for alert in session.alerts if alert.description == 0]
    assert sorted(closed, key=str) == [CLIENT, SERVER]


GROUPS = {
    b"X25519": NamedGroup.X25519,
    b"P-256": NamedGroup.SECP256R1,
    b"P-384": NamedGroup.SECP384R1,
    b"P-521": NamedGroup.SECP521R1,
    b"X448": NamedGroup.X448,
    b"ffdhe2048": NamedGroup.FFDHE2048,
    b"brainpoolP256r1tls13": NamedGroup.BRAINPOOLP256R1TLS13,
    b"MLKEM512": NamedGroup.MLKEM512,
    b"MLKEM768": NamedGroup.MLKEM768,
    b"MLKEM1024": NamedGroup.MLKEM1024,
    b"X25519MLKEM768": NamedGroup.X25519MLKEM768,
    b"SecP256r1MLKEM768": NamedGroup.SECP256R1MLKEM768,
    b"SecP384r1MLKEM1024": NamedGroup.SECP384R1MLKEM1024,
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_is_named_and_its_shares_are_kept(group: bytes) -> None:
    recording = converse(Options(groups=group), size=10)
    session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
    assert session.group == GROUPS[group]
    assert session.group_name is not None
    assert session.group_name.lower() == group.decode().lower().replace("p-", "secp") + (
        "r1" if group.startswith(b"P-") else ""
    )
    assert set(session.client_key_shares) == set(session.server_key_shares) == {GROUPS[group]}


def test_hello_retry_request_is_followed() -> None:
    recording = converse(Options(groups=b"X25519:P-384"), Options(groups=b"P-384"))
    session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
    assert session.hello_retry_request
    assert session.group == NamedGroup.SECP384R1


def test_client_certificates_are_read_in_both_versions() -> None:
    for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        options = Options(version=version, key="ECDSA", client_certificate=True)
        recording = converse(options)
        session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
        assert session.client_certificates == (certificate("ECDSA").public_bytes(Encoding.DER),)


TLS12_AEAD = (
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-CCM",
    "ECDHE-ECDSA-AES256-CCM8",
    "DHE-RSA-AES128-GCM-SHA256",
    "DHE-RSA-AES256-CCM",
)
TLS12_CBC = (
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA256",
    "ECDHE-ECDSA-AES256-SHA384",
    "DHE-RSA-AES256-SHA256",
)
RSA_SUITES = (
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-CCM",
    "AES256-CCM8",
    "AES128-SHA",
    "AES256-SHA256",
)


def tls12(suite: str, *, options: int = 0) -> Options:
    key = "ECDSA" if "ECDSA" in suite else "RSA"
    return Options(version=SSL.TLS1_2_VERSION, suites=suite, key=key, options=options)


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("suite", TLS12_AEAD + TLS12_CBC)
def test_tls12_forward_secret_suites_open_by_key_log_and_not_by_server_key(
    suite: str,
    extended: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    recording = converse(tls12(suite, options=0 if extended else NO_EXTENDED_MAIN_SECRET))
    session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
    assert session.version == ProtocolVersion.TLS_1_2
    assert session.extended_main_secret is extended
    assert session.forward_secret is True
    assert session.group_name is not None
    keys = KeyMaterial(server_private_keys=(private_key("RSA"), private_key("ECDSA")))
    closed = assert_closed(recording, keys, "the server key only signs")
    assert closed.encrypted_application_bytes == session.encrypted_application_bytes
    assert closed.encrypted_application_bytes[CLIENT] > len(recording.sent[CLIENT])


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize("suite", RSA_SUITES)
def test_static_rsa_opens_by_the_server_key_alone(
    suite: str,
    extended: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    recording = converse(tls12(suite, options=0 if extended else NO_EXTENDED_MAIN_SECRET))
    other = rsa.generate_private_key(65537, 2048)
    keys = KeyMaterial(server_private_keys=(other, private_key("ECDSA"), private_key("RSA")))
    session = assert_opened(recording, keys, "server RSA key")
    assert session.forward_secret is False
    assert session.extended_main_secret is extended
    assert_closed(
        recording, KeyMaterial(server_private_keys=(other,)), "static RSA, but no matching"
    )


@pytest.mark.parametrize("suite", TLS12_CBC)
def test_cbc_opens_with_its_mac_inside_and_outside(suite: str) -> None:
    for option, outside in ((0, True), (NO_ENCRYPT_THEN_MAC, False)):
        recording = converse(tls12(suite, options=option))
        session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
        assert session.encrypt_then_mac is outside


def test_a_suite_that_nobody_here_opens_is_named() -> None:
    recording = converse(tls12("CAMELLIA128-SHA"))
    session = assert_closed(
        recording,
        KeyMaterial(key_log=recording.key_log, server_private_keys=(private_key("RSA"),)),
        "TLS_RSA_WITH_CAMELLIA_128_CBC_SHA: this suite is not opened here",
    )
    assert session.forward_secret is False


NULL_SUITES = ("ECDHE-RSA-NULL-SHA", "ECDHE-ECDSA-NULL-SHA", "NULL-SHA256", "NULL-MD5")
NEVER_ENCRYPTED = "no key, as it was never encrypted"


@pytest.mark.parametrize("suite", NULL_SUITES)
def test_a_session_without_encryption_is_read_with_nothing_stolen(suite: str) -> None:
    recording = converse(tls12(suite))
    session = assert_opened(recording, KeyMaterial(), NEVER_ENCRYPTED)
    assert session.forward_secret is False
    assert "main_secret" not in session.secrets
    other = converse(tls12(suite), size=10)
    (secret,) = other.key_log.values()
    (client_random,) = recording.key_log
    for keys in (
        KeyMaterial(key_log=recording.key_log),
        KeyMaterial(key_log=KeyLog({client_random: secret})),  # which no MAC of it fits
        KeyMaterial(server_private_keys=(private_key("RSA"),)),
    ):
        assert_opened(recording, keys, NEVER_ENCRYPTED)


@pytest.mark.parametrize("known", [True, False])
def test_the_mac_of_a_session_without_encryption_is_checked_where_its_secret_is_known(
    known: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    recording = converse(tls12("ECDHE-RSA-NULL-SHA"), size=100)
    keys = KeyMaterial(key_log=recording.key_log) if known else KeyMaterial()
    session, _ = decrypt(recording, keys)
    assert ("main_secret" in session.secrets) is known
    index = max(
        at for at, (way, data) in enumerate(recording.wire) if way is CLIENT and data[0] == 23
    )
    way, data = recording.wire[index]
    recording.wire[index] = (way, data[:-1] + bytes((data[-1] ^ 1,)))
    session, recovered = decrypt(recording, keys)
    greeting = b"GET / HTTP/1.1\r\n\r\n"
    assert recovered[CLIENT] == (greeting if known else recording.sent[CLIENT])
    assert ("a damaged record" in str(session.undecryptable_in(CLIENT))) is known


def test_a_resumed_session_without_encryption_is_read_too() -> None:
    first, second = resumed(SSL.TLS1_2_VERSION, 0, "ECDHE-RSA-NULL-SHA")
    for recording in (first, second):
        session = assert_opened(recording, KeyMaterial(), NEVER_ENCRYPTED)
        assert session.forward_secret is False
    assert session.resumed


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_large_data_in_large_and_small_chunks(version: int) -> None:
    recording = converse(Options(version=version), size=3_000_000)
    assert_opened(recording, KeyMaterial(key_log=recording.key_log))


@pytest.mark.parametrize(
    ("version", "options"),
    [(SSL.TLS1_2_VERSION, 0), (SSL.TLS1_2_VERSION, SSL.OP_NO_TICKET), (SSL.TLS1_3_VERSION, 0)],
)
def test_resumed_sessions_open_by_their_own_key_log_only(version: int, options: int) -> None:
    first, second = resumed(version, options)
    session = assert_opened(second, KeyMaterial(key_log=second.key_log))
    assert session.resumed is True
    assert session.forward_secret is (None if version == SSL.TLS1_2_VERSION else True)
    assert_closed(second, KeyMaterial(key_log=first.key_log), "no key log line")


def test_renegotiation_is_followed_and_counted() -> None:
    recording = Recording()
    options = Options(version=SSL.TLS1_2_VERSION, options=ALLOW_CLIENT_RENEGOTIATION)
    client = context(options, recording.lines, server=False)
    server = context(options, recording.lines, server=True)
    pair = Pair(client, server, recording)
    pair.handshake()
    pair.send(CLIENT, b"before")
    for _ in range(2):
        assert pair.peers[CLIENT].renegotiate()
        for _ in range(4):
            for peer, advance in (
                (pair.peers[CLIENT], pair.peers[CLIENT].do_handshake),
                (pair.peers[SERVER], lambda: pair.peers[SERVER].recv(1)),
            ):
                with contextlib.suppress(SSL.WantReadError):
                    advance()
                assert peer.get_shutdown() == 0
            pair.carry()
        pair.send(SERVER, b"after")
        pair.send(CLIENT, b"and on")
    pair.close()
    log = recording.key_log
    assert len(log) == 3
    session = assert_opened(recording, KeyMaterial(key_log=log))
    assert session.renegotiations == 2
    first = KeyLog({recording.stream(CLIENT)[11:43]: log[recording.stream(CLIENT)[11:43]]})
    for chunking in CHUNKINGS:
        session, recovered = decrypt(recording, KeyMaterial(key_log=first), chunking)
        assert recovered == {CLIENT: b"before", SERVER: b""}
        assert "no key log line" in str(session.undecryptable)


# Thefts that must not help


@pytest.mark.parametrize("context_bytes", [b"", b"context"])
@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_exported_keying_material_is_what_openssl_exports(
    version: int, context_bytes: bytes
) -> None:
    recording, options = Recording(), Options(version=version)
    pair = Pair(
        context(options, recording.lines, server=False),
        context(options, recording.lines, server=True),
        recording,
    )
    pair.handshake()
    pair.send(CLIENT, b"data")
    pair.close()
    session, _ = decrypt(recording, KeyMaterial(key_log=recording.key_log), whole)
    label, length = b"EXPORTER-of this test", 48
    exported = pair.peers[SERVER].export_keying_material(label, length, context_bytes)
    suite = parameters_of(CipherSuite(session.suite or 0))
    assert suite is not None
    if version == SSL.TLS1_3_VERSION:
        secret = recording.key_log[session.client_random or b""]["EXPORTER_SECRET"]
        assert exported == exporter_value(suite.hash_name, secret, label, context_bytes, length)
        return
    randoms = (session.client_random or b"") + (session.server_random or b"")
    assert exported == tls12_exporter_value(
        suite.hash_name,
        session.secrets["main_secret"],
        label,
        randoms,
        length=length,
        context=context_bytes,
    )


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_another_sessions_key_log_opens_nothing(version: int) -> None:
    recording = converse(Options(version=version))
    other = converse(Options(version=version))
    assert_opened(other, KeyMaterial(key_log=other.key_log))
    assert_closed(recording, KeyMaterial(key_log=other.key_log), "no key log line")


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_wrong_secrets_under_the_right_client_random_open_nothing(version: int) -> None:
    recording = converse(Options(version=version))
    log = recording.key_log
    (client_random,) = log
    wrong = {label: secret[::-1] for label, secret in log[client_random].items()}
    assert_closed(
        recording,
        KeyMaterial(key_log=KeyLog({client_random: wrong})),
        "from the key log does not open this session's records",
    )


def test_without_any_key_the_facts_are_still_told() -> None:
    recording = converse(Options(groups=b"X25519MLKEM768"))
    session = assert_closed(recording, KeyMaterial(), "no keys were given")
    assert session.group_name == "X25519MLKEM768"
    assert session.suite_name == "TLS_AES_256_GCM_SHA384"
    assert len(session.client_key_shares[NamedGroup.X25519MLKEM768]) == 1184 + 32
    assert len(session.server_key_shares[NamedGroup.X25519MLKEM768]) == 1088 + 32


def test_old_versions_are_named_and_not_guessed_at() -> None:
    for version, name in ((SSL.TLS1_VERSION, "TLS 1.0"), (SSL.TLS1_1_VERSION, "TLS 1.1")):
        recording = converse(Options(version=version, suites="AES128-SHA"))
        session = assert_closed(
            recording,
            KeyMaterial(key_log=recording.key_log, server_private_keys=(private_key("RSA"),)),
            f"{name}: this version is named but not read here",
        )
        assert session.version_name == name


# Incomplete key logs


@pytest.mark.parametrize("suite", TLS13_SUITES)
def test_application_secrets_alone_open_all_application_data(suite: str) -> None:
    recording = converse(Options(suites=suite))
    (client_random,) = recording.key_log
    secrets = {
        label: secret
        for label, secret in recording.key_log[client_random].items()
        if "_TRAFFIC_SECRET_0" in label
    }
    assert len(secrets) == 2
    assert_opened(recording, KeyMaterial(key_log=KeyLog({client_random: secrets})))


def test_one_directions_secret_opens_that_direction_only() -> None:
    recording = converse(Options())
    (client_random,) = recording.key_log
    label = "SERVER_TRAFFIC_SECRET_0"
    log = KeyLog({client_random: {label: recording.key_log[client_random][label]}})
    for chunking in CHUNKINGS:
        session, recovered = decrypt(recording, KeyMaterial(key_log=log), chunking)
        assert recovered == {CLIENT: b"", SERVER: recording.sent[SERVER]}
        assert session.opened
        assert session.undecryptable_in(SERVER) is None
        assert session.undecryptable_in(CLIENT) is not None


def test_handshake_secrets_alone_open_no_application_data() -> None:
    recording = converse(Options())
    (client_random,) = recording.key_log
    secrets = {
        label: secret
        for label, secret in recording.key_log[client_random].items()
        if "HANDSHAKE" in label
    }
    session = assert_closed(
        recording,
        KeyMaterial(key_log=KeyLog({client_random: secrets})),
        "the key log holds the handshake secret but no application secret",
    )
    assert session.server_certificates  # they travel under the handshake secret


# A damaged recording


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_flipped_bit_closes_its_direction_and_nothing_wrong_comes_out(version: int) -> None:
    recording = converse(Options(version=version))
    keys = KeyMaterial(key_log=recording.key_log)
    stream = bytearray(recording.stream(SERVER))
    stream[-30_000] ^= 1
    damaged = Recording(wire=[(CLIENT, recording.stream(CLIENT)), (SERVER, bytes(stream))])
    session, recovered = decrypt(damaged, keys)
    assert recovered[CLIENT] == recording.sent[CLIENT]
    assert 0 < len(recovered[SERVER]) < len(recording.sent[SERVER])
    assert recording.sent[SERVER].startswith(recovered[SERVER])
    reason = session.undecryptable_in(SERVER)
    assert reason is not None
    assert "damaged record" in reason.reason
    assert session.undecryptable_in(CLIENT) is None


def test_a_gap_ends_its_direction() -> None:
    recording = converse(Options())
    session = TLSSession(KeyMaterial(key_log=recording.key_log))
    client, server = recording.stream(CLIENT), recording.stream(SERVER)
    session.feed(CLIENT, client)
    recovered = b"".join(
        data for way, data in session.feed(SERVER, server[:30_000]) if way is SERVER
    )
    assert session.gap(SERVER) == []
    assert session.feed(SERVER, server[31_460:]) == []
    assert recovered
    assert recording.sent[SERVER].startswith(recovered)
    assert "gap" in str(session.undecryptable_in(SERVER))


def test_what_must_wait_is_bounded() -> None:
    recording = converse(Options())
    keys = KeyMaterial(key_log=recording.key_log)
    session = TLSSession(keys, buffer_limit_bytes=10_000)
    assert session.feed(CLIENT, recording.stream(CLIENT)) == []
    assert "more than 10000 bytes" in str(session.undecryptable_in(CLIENT))
    session.feed(SERVER, recording.stream(SERVER))
    assert session.plaintext_bytes[SERVER] == len(recording.sent[SERVER])


def test_what_all_sessions_hold_is_bounded_and_the_longest_waiting_pays() -> None:
    held = HeldBytes(limit_bytes=300_000)
    recordings = [converse(Options(), size=100_000 + number) for number in range(5)]
    keys = [KeyMaterial(key_log=recording.key_log) for recording in recordings]
    sessions = [TLSSession(each, held=held) for each in keys]
    for session, recording in zip(sessions, recordings, strict=True):
        assert session.feed(CLIENT, recording.stream(CLIENT)) == []
    assert "of 2 halves" in repr(held)
    for session, recording in zip(sessions, recordings, strict=True):
        session.feed(SERVER, recording.stream(SERVER))
        session.finish()
        assert session.plaintext_bytes[SERVER] == len(recording.sent[SERVER])
    for session in sessions[:3]:
        assert "this one has waited longest" in str(session.undecryptable_in(CLIENT))
    for session, recording in zip(sessions[3:], recordings[3:], strict=True):
        assert session.undecryptable is None
        assert session.plaintext_bytes[CLIENT] == len(recording.sent[CLIENT])
    assert repr(held) == "HeldBytes(0 bytes of 0 halves)"


@pytest.mark.parametrize("way", [CLIENT, SERVER])
def test_a_session_that_never_goes_on_holds_nothing_once_it_is_over(way: Direction) -> None:
    held = HeldBytes()
    recording = converse(Options())
    session = TLSSession(KeyMaterial(), held=held)
    session.feed(way, recording.stream(way))
    assert "of 1 halves" in repr(held)
    session.finish()
    assert repr(held) == "HeldBytes(0 bytes of 0 halves)"


# tlslite-ng, whose insides can be read


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize(
    ("exchange", "curve"),
    [
        ("ecdhe_rsa", "x25519"),
        ("ecdhe_rsa", "secp256r1"),
        ("ecdhe_rsa", "secp224r1"),
        ("ecdhe_rsa", "secp192r1"),
        ("ecdhe_rsa", "x448"),
        ("ecdhe_rsa", "brainpoolP384r1"),
        ("dhe_rsa", "x25519"),
    ],
)
def test_tls12_opens_by_the_servers_ephemeral_key(
    exchange: str,
    curve: str,
    extended: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    settings = TLS12_ONLY | {
        "keyExchangeNames": [exchange],
        "eccCurves": [curve],
        "keyShares": [],
        "useExtendedMasterSecret": extended,
        "cipherNames": ["aes128gcm"],
    }
    pair = TLSLitePair(settings, {})
    recording = pair.talk()
    keys = KeyMaterial(ephemeral_private_keys=(pair.server_ephemeral_key,))
    session = assert_opened(recording, keys, "ephemeral key")
    assert session.extended_main_secret is extended
    other = KeyMaterial(ephemeral_private_keys=(x25519.X25519PrivateKey.generate(),))
    assert_closed(recording, other, "of this session is at hand")


@pytest.mark.parametrize("encrypt_then_mac", [True, False])
@pytest.mark.parametrize("cipher", ["3des", "aes256", "aes128ccm_8", "chacha20-poly1305"])
def test_tlslite_ciphers_open_by_the_main_secret(
    cipher: str,
    encrypt_then_mac: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    settings = TLS12_ONLY | {
        "cipherNames": [cipher],
        "macNames": ["sha", "sha256", "aead"],
        "useEncryptThenMAC": encrypt_then_mac,
    }
    pair = TLSLitePair(settings, {})
    recording = pair.talk()
    client_random = recording.stream(CLIENT)[11:43]
    secret = bytes(pair.ends[SERVER].session.masterSecret)
    log = KeyLog({client_random: {"CLIENT_RANDOM": secret}})
    session = assert_opened(recording, KeyMaterial(key_log=log))
    if cipher in ("3des", "aes256"):
        assert session.encrypt_then_mac is encrypt_then_mac


def application_log(pair: TLSLitePair) -> KeyLog:
    session = pair.ends[SERVER].session
    client_random = pair.recording.stream(CLIENT)[11:43]
    return KeyLog(
        {
            client_random: {
                "CLIENT_TRAFFIC_SECRET_0": bytes(session.cl_app_secret),
                "SERVER_TRAFFIC_SECRET_0": bytes(session.sr_app_secret),
            }
        }
    )


def test_key_updates_in_both_directions_are_followed() -> None:
    pair = TLSLitePair(TLS13_ONLY, {})
    pair.talk()
    log = application_log(pair)
    for _ in range(3):
        for way in (CLIENT, SERVER):
            request = KeyUpdateMessageType.update_requested
            pair.run({way: pair.ends[way].send_keyupdate_request(request)})
            pair.send(way, b"under the next generation " + way.value.encode())
            pair.send(way.opposite, b"and the answer")
    session = assert_opened(pair.recording, KeyMaterial(key_log=log))
    assert session.key_updates[CLIENT] >= 3
    assert session.key_updates[SERVER] >= 3
    updates = [
        m for m in session.handshake_messages if m.handshake_type == HandshakeType.KEY_UPDATE
    ]
    assert len(updates) == sum(session.key_updates.values())


@pytest.mark.parametrize("mode", ["psk_ke", "psk_dhe_ke"])
def test_a_pre_shared_key_alone_opens_psk_ke_and_not_psk_dhe_ke(mode: str) -> None:
    secret = random.Random(mode).randbytes(32)
    settings = TLS13_ONLY | {"pskConfigs": [(b"name", secret)], "psk_modes": [mode]}
    pair = TLSLitePair(settings, {})
    recording = pair.talk()
    keys = KeyMaterial(pre_shared_keys=(bytes(32), secret))
    if mode == "psk_ke":
        session = assert_opened(recording, keys, "pre-shared key")
        assert session.forward_secret is False
    else:
        session = assert_closed(recording, keys, "needs both")
        assert session.forward_secret is True
    assert session.resumed is True
    assert_closed(recording, KeyMaterial(pre_shared_keys=(bytes(32),)), "not among the keys given")
