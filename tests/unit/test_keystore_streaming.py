"""Streams: Tink reads ours, we read Tink's, and what is not whole is never taken for it."""

from __future__ import annotations

import base64
import io
import json
import secrets

import pytest
import tink
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2

from certs.errors import CorruptEnvelope
from certs.keystore.streaming import HEADER_BYTES, SEGMENT_BYTES, StreamOpener, StreamSealer

KEY = secrets.token_bytes(32)
FIRST = SEGMENT_BYTES - HEADER_BYTES - 16
LENGTHS = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + SEGMENT_BYTES - 16, 2 * SEGMENT_BYTES]


def primitive() -> streaming_aead.StreamingAead:
    """Return Tink's own, for our key."""
    streaming_aead.register()
    key = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        version=0,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=SEGMENT_BYTES,
            derived_key_size=32,
            hkdf_hash_type=common_pb2.SHA256,
        ),
        key_value=KEY,
    )
    keyset = {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
                    "value": base64.b64encode(key.SerializeToString()).decode(),
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": 1,
                "outputPrefixType": "RAW",
            }
        ],
    }
    handle = cleartext_keyset_handle.read(tink.JsonKeysetReader(json.dumps(keyset)))
    return handle.primitive(streaming_aead.StreamingAead)


def sealed(plaintext: bytes, associated_data: bytes = b"where") -> bytes:
    stream = StreamSealer(KEY, associated_data)
    half = len(plaintext) // 2
    return stream.update(plaintext[:half]) + stream.update(plaintext[half:]) + stream.finish()


def opened(ciphertext: bytes, associated_data: bytes = b"where", piece: int = 100_003) -> bytes:
    stream = StreamOpener(KEY, associated_data)
    pieces = [
        stream.update(ciphertext[start : start + piece])
        for start in range(0, len(ciphertext), piece)
    ]
    return b"".join(pieces) + stream.finish()


@pytest.mark.parametrize("length", LENGTHS)
def test_tink_reads_ours_and_we_read_tinks(length: int) -> None:
    plaintext = secrets.token_bytes(length)
    ours = sealed(plaintext)
    with primitive().new_decrypting_stream(io.BytesIO(ours), b"where") as stream:
        assert stream.read() == plaintext
    kept = io.BytesIO()
    kept.close = lambda: None  # type: ignore[method-assign]  # Tink closes what it is given
    with primitive().new_encrypting_stream(kept, b"where") as stream:
        stream.write(plaintext)
    theirs = kept.getvalue()
    assert len(theirs) == len(ours)
    assert opened(theirs) == opened(ours) == plaintext


@pytest.mark.parametrize("piece", [1, 39, 40, 41, SEGMENT_BYTES, 10 * SEGMENT_BYTES])
def test_pieces_of_any_length_are_taken(piece: int) -> None:
    plaintext = secrets.token_bytes(1000 if piece < 100 else 3 * SEGMENT_BYTES)
    assert opened(sealed(plaintext), piece=piece) == plaintext


def is_refused(ciphertext: bytes) -> bool:
    try:
        opened(ciphertext)
    except CorruptEnvelope:
        return True
    return False


def test_what_was_changed_moved_or_cut_does_not_open() -> None:
    plaintext = secrets.token_bytes(3 * SEGMENT_BYTES)
    whole = sealed(plaintext)
    second = whole[SEGMENT_BYTES : 2 * SEGMENT_BYTES]
    third = whole[2 * SEGMENT_BYTES : 3 * SEGMENT_BYTES]
    other = sealed(plaintext)
    changed = {
        "flipped": whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
        "salt": whole[:5] + bytes([whole[5] ^ 1]) + whole[6:],
        "prefix": whole[:35] + bytes([whole[35] ^ 1]) + whole[36:],
        "header length": b"\x29" + whole[1:],
        "cut to a segment": whole[: 2 * SEGMENT_BYTES],
        "cut": whole[:-1],
        "cut to the header": whole[:HEADER_BYTES],
        "empty": b"",
        "swapped": whole[:SEGMENT_BYTES] + third + second + whole[3 * SEGMENT_BYTES :],
        "of another stream": whole[:SEGMENT_BYTES] + other[SEGMENT_BYTES:],
        "longer": whole + b"\0",
    }
    taken = [what for what, ciphertext in changed.items() if not is_refused(ciphertext)]
    assert taken == []
    with pytest.raises(CorruptEnvelope):
        opened(whole, b"elsewhere")
    assert opened(whole) == plaintext


@pytest.mark.fuzz
def test_every_flipped_bit_of_a_short_stream_is_found() -> None:
    whole = sealed(b"a short stream")
    for position in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(CorruptEnvelope):
            opened(bytes(flipped))
