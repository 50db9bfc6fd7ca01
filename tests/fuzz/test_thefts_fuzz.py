"""Hostile tickets and key files: a value or a refusal, and a secret only of the right form."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interop.errors import InputError
from interop.proof.stolen import StolenFiles, load_stolen
from interop.wire.groups import finite_field_private_key
from interop.wire.material import KeyMaterial
from interop.wire.tickets import TICKET_KEY_LENGTHS, TicketKey

if TYPE_CHECKING:
    from pathlib import Path

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def genuine_ticket(kind: str, state: bytes) -> tuple[TicketKey, bytes]:
    """Put any bytes under a ticket key, with a MAC or tag that is right."""
    numbers = random.Random(kind)
    iv = numbers.randbytes(16)
    if kind == "OpenSSL":
        key = numbers.randbytes(80)
        padding = 16 - len(state) % 16
        encryptor = Cipher(AES(key[48:]), CBC(iv)).encryptor()
        body = key[:16] + iv + encryptor.update(state + bytes((padding,)) * padding)
        return TicketKey(key), body + hmac.digest(key[16:48], body, "sha256")
    key = numbers.randbytes(32)
    expanded = hashlib.sha512(key).digest()
    encryptor = Cipher(AES(expanded[16:32]), CTR(iv)).encryptor()
    body = iv + encryptor.update(state)
    return TicketKey(key), body + hmac.digest(expanded[32:48], body, "sha256")


DER_LIKE = st.builds(
    lambda *parts: b"\x30" + bytes((sum(map(len, parts)) % 128,)) + b"".join(parts),
    st.binary(max_size=4),
    st.sampled_from([b"\x02\x02\x03\x03", b"\x02\x02\x03\x04", b"\x02\x84\xff\xff\xff\xff"]),
    st.binary(max_size=90),
)


@given(st.sampled_from(["OpenSSL", "Go"]), st.binary(max_size=120) | DER_LIKE)
@QUICK
def test_any_state_in_a_genuine_ticket_gives_a_session_or_none(kind: str, state: bytes) -> None:
    key, ticket = genuine_ticket(kind, state)
    opened = key.open(ticket)
    assert opened is None or len(opened.secret) in {32, 48}


@given(st.binary(max_size=300), st.sampled_from(TICKET_KEY_LENGTHS))
@QUICK
def test_any_bytes_are_no_ticket(data: bytes, length: int) -> None:
    assert TicketKey(bytes(length)).open(data) is None


@given(st.binary(max_size=200) | DER_LIKE)
@QUICK
def test_any_bytes_are_a_finite_field_key_or_none(data: bytes) -> None:
    key = finite_field_private_key(data)
    assert key is None or key.prime.bit_length() <= 16_384


PEM_LIKE = st.builds(
    lambda label, body: b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label, body, label),
    st.sampled_from([b"PRIVATE KEY", b"EC PRIVATE KEY", b"SSL SESSION PARAMETERS", b"X"]),
    st.binary(max_size=60) | st.binary(max_size=90).map(base64.b64encode),
)


def theft_or_refusal(kind: str, path: Path) -> KeyMaterial | str:
    try:
        return load_stolen(StolenFiles(**{kind: [path]}))[0]
    except InputError as error:
        return str(error)


@given(st.binary(max_size=100) | PEM_LIKE | st.lists(PEM_LIKE, max_size=3).map(b"".join))
@QUICK
def test_any_file_is_a_theft_or_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for kind in ("server_keys", "ephemeral_keys", "ticket_keys", "pre_shared_keys", "key_logs"):
        outcome = theft_or_refusal(kind, path)
        assert isinstance(outcome, KeyMaterial) or str(path) in outcome
