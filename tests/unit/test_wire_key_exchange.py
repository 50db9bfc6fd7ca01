"""The secret of a key exchange from what was sent and one private key that was told."""

from __future__ import annotations

import hashlib
import warnings

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x448, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from interop.wire.groups import (
    EphemeralKeys,
    FiniteFieldPrivateKey,
    NoSharedSecret,
    ffdhe_group,
    ffdhe_prime,
    finite_field_shared_secret,
    shared_secret,
    split_public_value,
)
from interop.wire.registry import (
    NamedGroup,
)

with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.mathtls import RFC7919_GROUPS


def test_ffdhe_primes_are_rfc_7919s() -> None:
    groups = [group for group in NamedGroup if group.name.startswith("FFDHE")]
    assert len(groups) == 5
    for group, (_, prime) in zip(groups, RFC7919_GROUPS, strict=True):
        assert ffdhe_prime(group) == prime
        assert ffdhe_group(prime) == group
    assert ffdhe_group(2**2048 - 1) is None


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


@pytest.mark.parametrize("mine", ["client", "server"])
def test_either_sides_classical_key_gives_the_secret(mine: str) -> None:
    curve = ec.SECP384R1()
    client, server = ec.generate_private_key(curve), ec.generate_private_key(curve)
    secret = client.exchange(ec.ECDH(), server.public_key())
    keys = EphemeralKeys([client if mine == "client" else server])
    assert shared_secret(keys, NamedGroup.SECP384R1, point(client), point(server)) == secret
    one, two = x448.X448PrivateKey.generate(), x448.X448PrivateKey.generate()
    keys = EphemeralKeys([one if mine == "client" else two])
    publics = [key.public_key().public_bytes_raw() for key in (one, two)]
    assert shared_secret(keys, NamedGroup.X448, *publics) == one.exchange(two.public_key())


def test_finite_field_secrets_keep_leading_zeros_in_tls13_only() -> None:
    prime = ffdhe_prime(NamedGroup.FFDHE2048)
    for exponent in range(2, 3000):
        client = FiniteFieldPrivateKey(prime, 2, 65537)
        server = FiniteFieldPrivateKey(prime, 2, exponent)
        secret = pow(server.public, client.exponent, prime)
        if secret.bit_length() <= 2040:
            break
    else:
        pytest.fail("no secret with a leading zero was found")
    publics = [key.public.to_bytes(256, "big") for key in (client, server)]
    keys = EphemeralKeys([server])
    tls13 = shared_secret(keys, NamedGroup.FFDHE2048, *publics)
    tls12 = finite_field_shared_secret(keys, prime, *publics)
    assert len(tls13) == 256
    assert tls13[0] == 0
    assert tls12 == tls13.lstrip(b"\0")
    for bad in (0, 1, prime - 1, prime):
        with pytest.raises(NoSharedSecret, match="out of range"):
            shared_secret(keys, NamedGroup.FFDHE2048, bad.to_bytes(256, "big"), publics[1])


def hybrid(group: NamedGroup) -> tuple[list[object], object, bytes, bytes, bytes]:
    """Run a hybrid exchange as two honest peers would: client keys, server key, shares, secret."""
    kem = mlkem.MLKEM1024PrivateKey if "1024" in group.name else mlkem.MLKEM768PrivateKey
    decapsulator = kem.generate()
    encapsulation_key = decapsulator.public_key().public_bytes_raw()
    kem_secret, sealed = decapsulator.public_key().encapsulate()
    if group is NamedGroup.X25519MLKEM768:
        client, server = (x25519.X25519PrivateKey.generate() for _ in range(2))
        publics = [key.public_key().public_bytes_raw() for key in (client, server)]
        secret = kem_secret + client.exchange(server.public_key())
        shares = (encapsulation_key + publics[0], sealed + publics[1])
        return [client, decapsulator], server, *shares, secret
    curve = ec.SECP384R1() if "384" in group.name else ec.SECP256R1()
    mine, theirs = (ec.generate_private_key(curve) for _ in range(2))
    secret = mine.exchange(ec.ECDH(), theirs.public_key()) + kem_secret
    shares = (point(mine) + encapsulation_key, point(theirs) + sealed)
    return [mine, decapsulator], theirs, *shares, secret


@pytest.mark.parametrize(
    "group",
    [NamedGroup.X25519MLKEM768, NamedGroup.SECP256R1MLKEM768, NamedGroup.SECP384R1MLKEM1024],
)
def test_a_hybrid_needs_both_halves(group: NamedGroup) -> None:
    (classical, decapsulator), server, client_share, server_share, secret = hybrid(group)
    for keys in ([classical, decapsulator], [server, decapsulator]):
        found = shared_secret(EphemeralKeys(keys), group, client_share, server_share)  # type: ignore[arg-type]
        assert found == secret
    with pytest.raises(
        NoSharedSecret, match="the classical half is known, but the client's ML-KEM"
    ):
        shared_secret(EphemeralKeys([classical, server]), group, client_share, server_share)  # type: ignore[list-item]
    with pytest.raises(NoSharedSecret, match="is at hand"):
        shared_secret(EphemeralKeys([decapsulator]), group, client_share, server_share)  # type: ignore[list-item]
    with pytest.raises(NoSharedSecret, match="wrong length"):
        shared_secret(EphemeralKeys([]), group, client_share[:-1], server_share)
    parts = split_public_value(group, client_share, from_client=True)
    assert sum(map(len, parts)) == len(client_share)
    assert len(parts) == 2


@pytest.mark.parametrize(
    ("group", "kind"),
    [
        (NamedGroup.MLKEM768, mlkem.MLKEM768PrivateKey),
        (NamedGroup.MLKEM1024, mlkem.MLKEM1024PrivateKey),
    ],
)
def test_ml_kem_alone_opens_by_the_clients_key(
    group: NamedGroup, kind: type[mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey]
) -> None:
    key = kind.generate()
    secret, sealed = key.public_key().encapsulate()
    client = key.public_key().public_bytes_raw()
    assert shared_secret(EphemeralKeys([key]), group, client, sealed) == secret
    with pytest.raises(NoSharedSecret, match=r"client's ML-KEM-\d+ key is not"):
        shared_secret(EphemeralKeys([kind.generate()]), group, client, sealed)
    with pytest.raises(NoSharedSecret, match="ciphertext is not a valid one"):
        shared_secret(EphemeralKeys([key]), group, client, sealed[:-1])


def test_invalid_points_are_a_reason_and_not_an_error() -> None:
    key = x25519.X25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    with pytest.raises(NoSharedSecret, match="not a valid one"):
        shared_secret(EphemeralKeys([key]), NamedGroup.X25519, public, bytes(32))
    curve_key = ec.generate_private_key(ec.SECP256R1())
    keys = EphemeralKeys([curve_key])
    for bad in (b"", b"\x04" + bytes(64), b"\x00"):
        with pytest.raises(NoSharedSecret, match="not a valid one"):
            shared_secret(keys, NamedGroup.SECP256R1, point(curve_key), bad)


@given(st.integers(0, 0xFFFF), st.binary(max_size=100), st.binary(max_size=100))
def test_any_group_and_any_shares_give_a_secret_or_a_reason(
    group: int, client: bytes, server: bytes
) -> None:
    key = x25519.X25519PrivateKey.from_private_bytes(hashlib.sha256(client).digest())
    for first in (client, key.public_key().public_bytes_raw()):
        try:
            secret = shared_secret(EphemeralKeys([key]), group, first, server)
        except NoSharedSecret as reason:
            secret = str(reason).encode()
        assert secret
