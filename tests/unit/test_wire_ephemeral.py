"""Stolen ephemeral keys against real peers: every group that cryptography computes, and hybrids.

The keys are taken out of tlslite-ng's client while it shakes hands with another tlslite-ng or, for
the groups which that cannot serve, with OpenSSL.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from OpenSSL import SSL
from tlslite_peers import TLS12_ONLY, TLS13_ONLY, LiteToOpenSSL, TLSLitePair
from wire_peers import (
    ALLOW_CLIENT_RENEGOTIATION,
    CHUNKINGS,
    CLIENT,
    SERVER,
    Options,
    Pair,
    Recording,
    assert_closed,
    assert_opened,
    context,
    decrypt,
    private_key,
)

from interop.wire.material import EphemeralKey, KeyMaterial, PreSharedKey
from interop.wire.registry import NamedGroup

with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.constants import KeyUpdateMessageType
    from tlslite.keyexchange import ECDHKeyExchange

# What tlslite-ng calls them, and which of its settings they belong to.
CURVES = {
    "x25519": NamedGroup.X25519,
    "x448": NamedGroup.X448,
    "secp256r1": NamedGroup.SECP256R1,
    "secp384r1": NamedGroup.SECP384R1,
    "secp521r1": NamedGroup.SECP521R1,
    "brainpoolP256r1tls13": NamedGroup.BRAINPOOLP256R1TLS13,
    "brainpoolP384r1tls13": NamedGroup.BRAINPOOLP384R1TLS13,
    "brainpoolP512r1tls13": NamedGroup.BRAINPOOLP512R1TLS13,
}
FIELDS = {
    "ffdhe2048": NamedGroup.FFDHE2048,
    "ffdhe3072": NamedGroup.FFDHE3072,
    "ffdhe4096": NamedGroup.FFDHE4096,
    "ffdhe6144": NamedGroup.FFDHE6144,
    "ffdhe8192": NamedGroup.FFDHE8192,
}
HYBRIDS = {
    "x25519mlkem768": (NamedGroup.X25519MLKEM768, b"X25519MLKEM768"),
    "secp256r1mlkem768": (NamedGroup.SECP256R1MLKEM768, b"SecP256r1MLKEM768"),
    "secp384r1mlkem1024": (NamedGroup.SECP384R1MLKEM1024, b"SecP384r1MLKEM1024"),
}
STRANGER = EphemeralKey(x25519.X25519PrivateKey.generate())


def only(group: str) -> dict[str, object]:
    """Settings of a tlslite-ng peer that knows one group."""
    named = {"eccCurves": [group]} if group not in FIELDS else {"dhGroups": [group]}
    return TLS13_ONLY | named | {"keyShares": [group]}


@pytest.mark.parametrize("group", [*CURVES, *FIELDS])
def test_every_group_of_tls13_opens_by_one_ephemeral_key(group: str) -> None:
    pair = TLSLitePair(only(group))
    recording = pair.talk(2000)
    keys = [EphemeralKey(key) for key in pair.client_ephemeral_keys]
    session = assert_opened(recording, KeyMaterial.of(STRANGER, *keys), "ephemeral key")
    assert session.group == (CURVES | FIELDS)[group]
    assert session.forward_secret is True
    assert_closed(recording, KeyMaterial.of(STRANGER), "of this session is at hand")


@pytest.mark.parametrize("group", HYBRIDS)
def test_a_hybrid_opens_by_both_of_its_halves_and_by_neither_alone(group: str) -> None:
    number, openssl = HYBRIDS[group]
    pair = LiteToOpenSSL(only(group), Options(groups=openssl))
    recording = pair.talk()
    kem, classical = pair.client_ephemeral_keys[:2]
    assert isinstance(kem, mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey)
    both = KeyMaterial.of(EphemeralKey(kem), EphemeralKey(classical))
    session = assert_opened(recording, both, "ephemeral key")
    assert session.group == number
    harvested = KeyMaterial.of(EphemeralKey(classical))
    assert_closed(recording, harvested, "the classical half is known, but the client's ML-KEM-")
    assert_closed(recording, KeyMaterial.of(EphemeralKey(kem)), "half is known, but no ephemeral")
    is_768 = isinstance(kem, mlkem.MLKEM768PrivateKey)
    other = (mlkem.MLKEM768PrivateKey if is_768 else mlkem.MLKEM1024PrivateKey).generate()
    assert_closed(recording, KeyMaterial.of(EphemeralKey(other), EphemeralKey(classical)), "ML-KEM")


def test_a_retry_is_followed_to_the_group_that_was_agreed() -> None:
    settings = TLS13_ONLY | {"eccCurves": ["secp384r1", "x25519"], "keyShares": ["x25519"]}
    pair = LiteToOpenSSL(settings, Options(groups=b"P-384"))
    recording = pair.talk()
    first, second = pair.client_ephemeral_keys
    assert isinstance(second, ec.EllipticCurvePrivateKey)
    session = assert_opened(recording, KeyMaterial.of(EphemeralKey(second)), "ephemeral key")
    assert session.hello_retry_request
    assert_closed(recording, KeyMaterial.of(EphemeralKey(first)), "no ephemeral secp384r1 key")


def test_a_retry_with_a_pre_shared_key() -> None:
    """The binder covers the first ClientHello and the retry too (RFC 9846 section 4.3.11.2)."""
    secret = bytes(range(32))
    settings = TLS13_ONLY | {"pskConfigs": [(b"name", secret)], "psk_modes": ["psk_dhe_ke"]}
    server = settings | {"eccCurves": ["secp384r1"], "keyShares": ["secp384r1"]}
    client = {"eccCurves": ["x25519", "secp384r1"], "keyShares": ["x25519"]}
    pair = TLSLitePair(server, client)
    recording = pair.talk()
    psk = PreSharedKey(secret)
    both = KeyMaterial.of(psk, *map(EphemeralKey, pair.client_ephemeral_keys))
    session = assert_opened(recording, both, "ephemeral key and pre-shared key")
    assert session.hello_retry_request
    assert_closed(recording, KeyMaterial.of(psk), "needs both")


def test_one_key_opens_each_session_that_reuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reused = x25519.X25519PrivateKey.generate()
    with monkeypatch.context() as faulty:
        value = bytearray(reused.private_bytes_raw())
        faulty.setattr(ECDHKeyExchange, "get_random_private_key", lambda _: value)
        recordings = [TLSLitePair(only("x25519")).talk() for _ in range(2)]
    fresh = TLSLitePair(only("x25519")).talk()
    stolen = KeyMaterial.of(EphemeralKey(reused))
    for recording in recordings:
        assert_opened(recording, stolen, "ephemeral key")
    assert_closed(fresh, stolen, "no ephemeral x25519 key")


def test_key_updates_are_followed_from_derived_secrets() -> None:
    pair = TLSLitePair(only("x25519"))
    pair.talk(3000)
    for way in (CLIENT, SERVER, SERVER):
        request = KeyUpdateMessageType.update_not_requested
        pair.run({way: pair.ends[way].send_keyupdate_request(request)})
        pair.send(way, b"under new keys")
        pair.send(way.opposite, b"and an answer")
    keys = KeyMaterial.of(*map(EphemeralKey, pair.client_ephemeral_keys))
    session = assert_opened(pair.recording, keys, "ephemeral key")
    assert session.key_updates == {CLIENT: 1, SERVER: 2}


@pytest.mark.parametrize("mode", ["psk_ke", "psk_dhe_ke"])
def test_an_ephemeral_key_beside_the_pre_shared_key_opens_psk_dhe_ke(mode: str) -> None:
    secret = bytes(range(48))
    settings = only("secp256r1") | {
        "pskConfigs": [(b"name", secret, "sha384")],
        "psk_modes": [mode],
    }
    pair = TLSLitePair(settings)
    recording = pair.talk()
    psk, ephemeral = PreSharedKey(secret), map(EphemeralKey, pair.client_ephemeral_keys)
    if mode == "psk_ke":
        assert_opened(recording, KeyMaterial.of(psk), "pre-shared key")
        return
    both = KeyMaterial.of(psk, *ephemeral)
    assert_opened(recording, both, "ephemeral key and pre-shared key")
    assert_closed(recording, KeyMaterial.of(psk), "needs both")
    alone = KeyMaterial(ephemeral_private_keys=both.ephemeral_private_keys)
    assert_closed(recording, alone, "not among the keys given")


def test_a_renegotiated_session_opens_by_the_rsa_key_through_all_its_handshakes() -> None:
    recording = Recording()
    options = Options(
        version=SSL.TLS1_2_VERSION, suites="AES128-SHA", options=ALLOW_CLIENT_RENEGOTIATION
    )
    client = context(options, recording.lines, server=False)
    pair = Pair(client, context(options, recording.lines, server=True), recording)
    pair.handshake()
    pair.send(CLIENT, b"before")
    assert pair.peers[CLIENT].renegotiate()
    for _ in range(4):
        for advance in (pair.peers[CLIENT].do_handshake, lambda: pair.peers[SERVER].recv(1)):
            with contextlib.suppress(SSL.WantReadError):
                advance()
        pair.carry()
    pair.send(SERVER, b"after")
    pair.close()
    keys = KeyMaterial(server_private_keys=(private_key("RSA"),))
    session = assert_opened(recording, keys, "server RSA key")
    assert session.renegotiations == 1
    keys = KeyMaterial(server_private_keys=(private_key("ECDSA"),))
    assert_closed(recording, keys, "no RSA private key was given")


@pytest.mark.parametrize("extended", [True, False])
def test_finite_field_exchanges_of_tls12_are_named_by_their_prime(
    extended: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    settings = TLS12_ONLY | {
        "keyExchangeNames": ["dhe_rsa"],
        "dhGroups": ["ffdhe3072"],
        "useExtendedMasterSecret": extended,
        "cipherNames": ["aes256"],
        "macNames": ["sha"],
    }
    pair = TLSLitePair(settings)
    recording = pair.talk(3000)
    keys = KeyMaterial.of(EphemeralKey(pair.server_ephemeral_key))
    session = assert_opened(recording, keys, "ephemeral key")
    assert session.group == NamedGroup.FFDHE3072
    for chunking in CHUNKINGS:
        session, recovered = decrypt(recording, KeyMaterial.of(STRANGER), chunking)
        assert recovered == {CLIENT: b"", SERVER: b""}
        assert "no ephemeral DHE key" in str(session.undecryptable)
