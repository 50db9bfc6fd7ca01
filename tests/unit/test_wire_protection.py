"""Records sealed here, as the standards say, open; in runs, one by one, and only in their order."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from interop.wire.key_schedule import TrafficKeys
from interop.wire.protection import CBCOpener, TLS12Keys, TLS13Opener, tls12_opener
from interop.wire.registry import ContentType
from interop.wire.suites import CipherSuite, parameters_of

if TYPE_CHECKING:
    from interop.wire.protection import RecordOpener
    from interop.wire.suites import SuiteParameters


def record(content_type: int, fragment: bytes) -> bytes:
    return bytes((content_type, 3, 3)) + len(fragment).to_bytes(2, "big") + fragment


def suite_of(number: CipherSuite) -> SuiteParameters:
    parameters = parameters_of(number)
    assert parameters is not None
    assert parameters.cipher is not None
    return parameters


# TLS 1.3


@pytest.mark.parametrize(
    ("suite", "aead"),
    [
        (CipherSuite.TLS_AES_128_GCM_SHA256, AESGCM(bytes(16))),
        (CipherSuite.TLS_CHACHA20_POLY1305_SHA256, ChaCha20Poly1305(bytes(32))),
        (CipherSuite.TLS_AES_128_CCM_8_SHA256, AESCCM(bytes(16), tag_length=8)),
    ],
)
def test_a_run_stops_before_what_is_not_application_data(
    suite: CipherSuite, aead: AESGCM | AESCCM | ChaCha20Poly1305
) -> None:
    parameters = suite_of(suite)
    assert parameters.cipher is not None
    tag_length = parameters.cipher.tag_length
    keys = TrafficKeys(bytes(parameters.cipher.key_length), bytes(12))
    inners = [b"one\x17", b"\x17", b"padded\x17" + bytes(50), b"two\x17", b"\x01\0\x15"]
    stream = b""
    for sequence, inner in enumerate(inners):
        header = b"\x17\x03\x03" + (len(inner) + tag_length).to_bytes(2, "big")
        stream += header + aead.encrypt(sequence.to_bytes(12, "big"), inner, header)
    opener = TLS13Opener(parameters.cipher, keys)
    out = bytearray(len(stream))
    offset, position = opener.open_run(memoryview(stream), 0, memoryview(out), 0)
    assert out[:position] == b"onepaddedtwo"
    assert opener.sequence == 4
    opened = opener.open(memoryview(stream)[offset:])
    assert opened == (ContentType.ALERT, b"\x01\0")
    # A flipped bit: the run stops there, and counts nothing of that record.
    damaged = bytearray(stream)
    damaged[len(stream) - offset + 20] ^= 1
    opener = TLS13Opener(parameters.cipher, keys)
    offset, position = opener.open_run(memoryview(damaged), 0, memoryview(out), 0)
    assert b"onepaddedtwo".startswith(out[:position])
    assert position < len(b"onepaddedtwo")


def test_a_record_of_padding_alone_does_not_open() -> None:
    parameters = suite_of(CipherSuite.TLS_AES_128_GCM_SHA256)
    assert parameters.cipher is not None
    header = b"\x17\x03\x03\x00\x20"
    whole = header + AESGCM(bytes(16)).encrypt(bytes(12), bytes(16), header)
    opener = TLS13Opener(parameters.cipher, TrafficKeys(bytes(16), bytes(12)))
    assert opener.open(memoryview(whole)) is None
    assert opener.open_run(memoryview(whole), 0, memoryview(bytearray(99)), 0) == (0, 0)
    assert opener.sequence == 0


# TLS 1.2, record after record

FIRST = 3  # the sequence number to begin with: any but zero tells whether it counts
CONTENTS = [b"one", b"two", b"", b"three"]


def tls12_aead_records(number: CipherSuite, key: bytes, iv: bytes) -> list[bytes]:
    """Seal CONTENTS as RFC 5288 section 3, RFC 6655 section 3 and RFC 7905 section 2 say."""
    sealed = []
    for sequence, content in enumerate(CONTENTS, start=FIRST):
        data = sequence.to_bytes(8, "big") + b"\x17\x03\x03" + len(content).to_bytes(2, "big")
        explicit = b""
        if number is CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
            padded = bytes(4) + sequence.to_bytes(8, "big")
            nonce = bytes(one ^ other for one, other in zip(padded, iv, strict=True))
            text = ChaCha20Poly1305(key).encrypt(nonce, content, data)
        else:
            explicit = bytes(range(sequence, sequence + 8))  # the sender's own choice
            aead = AESGCM(key)
            if number is CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:
                text = AESCCM(key, tag_length=8).encrypt(iv + explicit, content, data)
            else:
                text = aead.encrypt(iv + explicit, content, data)
        sealed.append(record(23, explicit + text))
    return sealed


@pytest.mark.parametrize(
    "number",
    [
        CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
        CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ],
)
def test_tls12_records_open_in_a_run_and_one_by_one(number: CipherSuite) -> None:
    suite = suite_of(number)
    assert suite.cipher is not None
    key = bytes(range(1, suite.cipher.key_length + 1))
    iv = bytes(range(100, 100 + suite.cipher.fixed_iv_length))
    records = tls12_aead_records(number, key, iv)

    def opener(sequence: int = FIRST) -> RecordOpener:
        made = tls12_opener(
            suite.cipher, suite.mac_name, TLS12Keys(b"", key, iv), encrypt_then_mac=False
        )
        made.sequence = sequence
        return made

    one_by_one = opener()
    assert [one_by_one.open(memoryview(each)) for each in records] == [
        (23, content) for content in CONTENTS
    ]
    stream = memoryview(b"before" + b"".join(records) + records[0][:9])
    out = bytearray(b"kept" + bytes(len(stream)))
    in_a_run = opener()
    assert in_a_run.open_run(stream, 6, memoryview(out), 4) == (len(stream) - 9, 15)
    assert out[:15] == b"keptonetwothree"
    assert in_a_run.sequence == one_by_one.sequence == FIRST + 4
    # Each in its place alone: not a place later, and not twice.
    assert opener(FIRST + 1).open(memoryview(records[0])) is None
    assert opener(FIRST + 1).open_run(memoryview(records[0]), 0, memoryview(out), 0) == (0, 0)
    twice = memoryview(records[0] + records[0])
    assert opener().open_run(twice, 0, memoryview(out), 0) == (len(records[0]), 3)


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize(
    ("number", "algorithm", "key_length"),
    [
        (CipherSuite.TLS_RSA_WITH_3DES_EDE_CBC_SHA, TripleDES, 24),
        (CipherSuite.TLS_RSA_WITH_AES_256_CBC_SHA256, AES, 32),
    ],
)
def test_cbc_records_open_one_after_the_other(
    number: CipherSuite, algorithm: type[TripleDES | AES], key_length: int, *, outside: bool
) -> None:
    suite = suite_of(number)
    assert suite.cipher is not None
    assert suite.mac_name is not None
    key, mac_key = bytes(range(key_length)), bytes(20 if suite.mac_name == "sha1" else 32)
    block = suite.cipher.block_length
    records = []
    for sequence, content in enumerate(CONTENTS, start=FIRST):
        header = sequence.to_bytes(8, "big") + b"\x17\x03\x03"

        def mac(data: bytes, header: bytes = header) -> bytes:
            told = header + len(data).to_bytes(2, "big") + data
            return hmac.digest(mac_key, told, suite.mac_name or "")

        inner = content if outside else content + mac(content)
        length = block - 1 - len(inner) % block
        iv = bytes((sequence,)) * block
        encryptor = Cipher(algorithm(key), CBC(iv)).encryptor()
        text = iv + encryptor.update(inner + bytes((length,)) * (length + 1))
        records.append(record(23, text + mac(text) if outside else text))
    keys = TLS12Keys(mac_key, key, b"")
    opener = tls12_opener(suite.cipher, suite.mac_name, keys, encrypt_then_mac=outside)
    opener.sequence = FIRST
    assert opener.open(memoryview(records[1])) is None
    for each, content in zip(records, CONTENTS, strict=True):
        assert opener.open(memoryview(each)) == (23, content)


# CBC, down to the padding


def cbc_record(
    content: bytes, *, padding: bytes | None = None, mac_error: int = 0, outside: bool = False
) -> bytes:
    """Seal a record under keys of zeros, with the padding and the MAC as told."""
    mac_key, iv = bytes(20), bytes(range(16))

    def mac(data: bytes) -> bytes:
        header = bytes(8) + b"\x17\x03\x03" + len(data).to_bytes(2, "big")
        digest = bytearray(hmac.digest(mac_key, header + data, "sha1"))
        digest[0] ^= mac_error
        return bytes(digest)

    inner = content if outside else content + mac(content)
    if padding is None:
        length = 15 - len(inner) % 16
        padding = bytes((length,)) * (length + 1)
    encryptor = Cipher(AES(bytes(16)), CBC(iv)).encryptor()
    sealed = iv + encryptor.update(inner + padding) + encryptor.finalize()
    return record(23, sealed + mac(sealed) if outside else sealed)


def cbc_opener(*, outside: bool = False) -> CBCOpener:
    parameters = suite_of(CipherSuite.TLS_RSA_WITH_AES_128_CBC_SHA)
    assert parameters.cipher is not None
    keys = TLS12Keys(bytes(20), bytes(16), b"")
    return CBCOpener(parameters.cipher, keys, "sha1", encrypt_then_mac=outside)


@pytest.mark.parametrize("outside", [True, False])
def test_cbc_records_open_only_with_the_right_mac(
    outside: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    good = cbc_record(b"content", outside=outside)
    opened = cbc_opener(outside=outside).open(memoryview(good))
    assert opened == (23, b"content")
    assert cbc_opener(outside=not outside).open(memoryview(good)) is None
    bad = cbc_record(b"content", outside=outside, mac_error=1)
    opener = cbc_opener(outside=outside)
    assert opener.open(memoryview(bad)) is None
    assert opener.sequence == 0
    assert opener.open(memoryview(good)) == (23, b"content")
    assert opener.sequence == 1
    assert opener.open(memoryview(good)) is None  # replayed


@pytest.mark.parametrize(
    ("padding", "opens"),
    [
        (bytes((4,)) * 5, True),  # 7 + 20 + 5 = 32
        (bytes((20,)) * 21, True),  # more than it need be
        (bytes((4, 4, 3, 4, 4)), False),
        (bytes((255,)) * 5, False),
        (bytes((31,)) * 5, False),
    ],
)
def test_all_of_the_padding_counts(
    padding: bytes,
    opens: bool,  # noqa: FBT001 - a parametrised fact
) -> None:
    whole = cbc_record(b"content", padding=padding)
    assert (cbc_opener().open(memoryview(whole)) is not None) is opens


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 33, 48])
def test_cbc_records_of_any_length_are_taken(length: int) -> None:
    for outside in (True, False):
        assert cbc_opener(outside=outside).open(memoryview(record(23, bytes(length)))) is None
