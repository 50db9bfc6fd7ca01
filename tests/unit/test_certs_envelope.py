"""Sealed records: what their associated data says, and what a reader rejects."""

from __future__ import annotations

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import CertsError, CorruptEnvelope, StoreError
from certs.keystore.envelope import (
    MAX_PLAINTEXT_BYTES,
    MAX_RECORD_BYTES,
    MAX_TERM,
    MAX_VERSION,
    MIN_RECORD_BYTES,
    RecordContext,
    seal,
    unseal,
)
from certs.keystore.keyring import Keyring, SealedTerm, new_store_id, root_context

STORE_ID = bytes(range(16))
PLACE = RecordContext(STORE_ID, "private-key", "web/server", 3, "sign", 2)

# Texts that invite confusion: separators, digits, NULs, and bytes that look like lengths.
texts = st.text(
    st.sampled_from("ab/:,.|\0\x01\x02\x03\x10 é") | st.characters(codec="utf-8"), max_size=12
)
places = st.builds(
    RecordContext,
    store_id=st.binary(min_size=16, max_size=16),
    kind=texts,
    name=texts,
    version=st.integers(1, MAX_VERSION),
    purpose=texts,
    term=st.integers(0, MAX_TERM),
)


def decoded(associated_data: bytes) -> RecordContext:
    """Read associated data back by the document alone: seven fields, each after its length."""
    fields = []
    offset = 0
    while offset < len(associated_data):
        (length,) = struct.unpack_from(">I", associated_data, offset)
        fields.append(associated_data[offset + 4 : offset + 4 + length])
        offset += 4 + length
    assert offset == len(associated_data)
    label, store_id, kind, name, version, purpose, term = fields
    assert label == b"pfs sealed record 1"
    return RecordContext(
        store_id,
        kind.decode(),
        name.decode(),
        int.from_bytes(version),
        purpose.decode(),
        int.from_bytes(term),
    )


@given(places)
def test_associated_data_can_be_decoded_so_no_two_places_share_it(place: RecordContext) -> None:
    assert decoded(place.encode()) == place


@given(st.lists(texts, min_size=3, max_size=3), st.lists(texts, min_size=3, max_size=3))
def test_places_that_differ_only_in_their_texts_have_different_associated_data(
    one: list[str], other: list[str]
) -> None:
    first = RecordContext(STORE_ID, one[0], one[1], 1, one[2], 1)
    second = RecordContext(STORE_ID, other[0], other[1], 1, other[2], 1)
    assert (first.encode() == second.encode()) == (first == second)


def test_moving_a_character_across_a_field_boundary_changes_the_associated_data() -> None:
    one = RecordContext(STORE_ID, "a", "bc", 1, "d", 1)
    other = RecordContext(STORE_ID, "ab", "c", 1, "d", 1)
    assert one.encode() != other.encode()


def test_associated_data_is_the_example_of_the_format_document() -> None:
    place = RecordContext(STORE_ID, "term", "", 1, "seal", 0)
    assert place.encode() == bytes.fromhex(
        "00000013 706673207365616c6564207265636f72642031"
        "00000010 000102030405060708090a0b0c0d0e0f"
        "00000004 7465726d"
        "00000000"
        "00000008 0000000000000001"
        "00000004 7365616c"
        "00000004 00000000"
    )


def test_a_record_opens_by_the_format_document_alone() -> None:
    key = bytes(range(32))
    record = seal(AESGCM(key), PLACE, b"secret")
    assert record[:6] == b"PFSR\x01\x01"
    assert record[6:10] == (2).to_bytes(4)
    assert len(record) == 22 + len(b"secret") + 16
    assert AESGCM(key).decrypt(record[10:22], record[22:], PLACE.encode()) == b"secret"


@pytest.mark.parametrize(
    ("store_id", "version", "term"),
    [
        (b"short", 1, 1),
        (STORE_ID, 0, 1),
        (STORE_ID, MAX_VERSION + 1, 1),
        (STORE_ID, 1, -1),
        (STORE_ID, 1, MAX_TERM + 1),
    ],
)
def test_a_place_outside_its_bounds_is_refused(store_id: bytes, version: int, term: int) -> None:
    with pytest.raises(ValueError, match=r"store id|version|term"):
        RecordContext(store_id, "k", "n", version, "p", term)


@pytest.mark.parametrize("length", [1, 2, 32, MAX_PLAINTEXT_BYTES])
def test_what_was_sealed_is_unsealed(length: int) -> None:
    key = AESGCM(AESGCM.generate_key(256))
    record = seal(key, PLACE, b"x" * length)
    assert MIN_RECORD_BYTES <= len(record) <= MAX_RECORD_BYTES
    assert unseal(key, PLACE, record) == b"x" * length


@pytest.mark.parametrize("length", [0, MAX_PLAINTEXT_BYTES + 1])
def test_a_plaintext_outside_its_bounds_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="holds 1 to"):
        seal(AESGCM(AESGCM.generate_key(256)), PLACE, b"x" * length)


def test_the_same_plaintext_is_never_sealed_to_the_same_bytes() -> None:
    key = AESGCM(AESGCM.generate_key(256))
    nonces = {seal(key, PLACE, b"same")[10:22] for _ in range(1000)}
    assert len(nonces) == 1000


def test_every_flipped_bit_is_rejected() -> None:
    key = AESGCM(AESGCM.generate_key(256))
    record = seal(key, PLACE, b"secret")
    assert unseal(key, PLACE, record) == b"secret"
    for position in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptEnvelope):
            unseal(key, PLACE, bytes(flipped))


def test_every_truncation_and_extension_is_rejected() -> None:
    key = AESGCM(AESGCM.generate_key(256))
    record = seal(key, PLACE, b"secret")
    for length in range(len(record)):
        with pytest.raises(CorruptEnvelope):
            unseal(key, PLACE, record[:length])
    for extended in (record + b"\0", b"\0" + record, record + record):
        with pytest.raises(CorruptEnvelope):
            unseal(key, PLACE, extended)


@pytest.mark.parametrize(
    "elsewhere",
    [
        RecordContext(bytes(16), "private-key", "web/server", 3, "sign", 2),
        RecordContext(STORE_ID, "secret", "web/server", 3, "sign", 2),
        RecordContext(STORE_ID, "private-key", "web/other", 3, "sign", 2),
        RecordContext(STORE_ID, "private-key", "web/server", 2, "sign", 2),
        RecordContext(STORE_ID, "private-key", "web/server", 3, "wrap", 2),
        RecordContext(STORE_ID, "private-key", "web/server", 3, "sign", 1),
    ],
    ids=["store", "kind", "name", "version", "purpose", "term"],
)
def test_a_record_opens_in_no_other_place(elsewhere: RecordContext) -> None:
    key = AESGCM(AESGCM.generate_key(256))
    record = seal(key, PLACE, b"secret")
    with pytest.raises(CorruptEnvelope):
        unseal(key, elsewhere, record)
    # The header's term is not what protects it: with that rewritten, the tag still fails.
    rewritten = record[:6] + elsewhere.term.to_bytes(4) + record[10:]
    with pytest.raises(CorruptEnvelope):
        unseal(key, elsewhere, rewritten)


@pytest.mark.fuzz
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: b"PFSR\x01\x01" + tail))
def test_any_bytes_are_rejected_with_a_typed_error(data: bytes) -> None:
    with pytest.raises(CorruptEnvelope):
        unseal(AESGCM(bytes(32)), PLACE, data)


def new_keyring() -> Keyring:
    return Keyring(new_store_id(), Keyring.new_root_key())


def sealed_under(keyring: Keyring, term: SealedTerm) -> bytes:
    return keyring.seal(term, b"x", kind="k", name="n", version=1, purpose="p")


def opened_under(keyring: Keyring, term: SealedTerm, record: bytes) -> bytes:
    return keyring.unseal(term, record, kind="k", name="n", version=1, purpose="p")


def test_records_of_several_terms_open_side_by_side() -> None:
    keyring = new_keyring()
    terms = [keyring.new_term(number) for number in (1, 2, 3)]
    records = [sealed_under(keyring, term) for term in terms]
    for term, record in zip(terms, records, strict=True):
        assert opened_under(keyring, term, record) == b"x"
    with pytest.raises(CorruptEnvelope, match="term 1"):
        opened_under(keyring, terms[1], records[0])


def test_a_term_put_in_the_place_of_another_is_rejected() -> None:
    keyring = new_keyring()
    first, second = keyring.new_term(1), keyring.new_term(2)
    with pytest.raises(CorruptEnvelope, match="term '' version 2"):
        sealed_under(keyring, SealedTerm(2, first.sealed))
    assert opened_under(keyring, second, sealed_under(keyring, second)) == b"x"


def test_a_term_whose_transaction_was_undone_is_not_used_again() -> None:
    """The keyring once remembered terms by number, and went on with a key that no row held."""
    keyring = new_keyring()
    undone = keyring.new_term(2)
    sealed_under(keyring, undone)
    stored = keyring.new_term(2)
    record = sealed_under(keyring, stored)
    with pytest.raises(CorruptEnvelope):
        opened_under(keyring, undone, record)
    assert opened_under(keyring, stored, record) == b"x"


def test_a_term_of_another_store_is_rejected() -> None:
    root_key = Keyring.new_root_key()
    one, other = Keyring(new_store_id(), root_key), Keyring(new_store_id(), root_key)
    with pytest.raises(CorruptEnvelope):
        sealed_under(other, one.new_term(1))


def test_a_closed_keyring_holds_nothing() -> None:
    keyring = new_keyring()
    term = keyring.new_term(1)
    record = sealed_under(keyring, term)
    keyring.close()
    with pytest.raises(StoreError, match="closed"):
        opened_under(keyring, term, record)


def test_a_root_key_of_another_length_is_rejected() -> None:
    with pytest.raises(CertsError, match="16 bytes instead of 32"):
        Keyring(STORE_ID, bytes(16))


def test_root_generations_are_different_places() -> None:
    assert root_context(STORE_ID, 1).encode() != root_context(STORE_ID, 2).encode()
