"""The parts of the wire reader one by one: numbers, codec, records, messages, key logs."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from interop.errors import DissectError
from interop.wire import handshake as hs
from interop.wire.codec import Reader
from interop.wire.groups import (
    FiniteFieldPrivateKey,
)
from interop.wire.key_log import MAX_LINE_LENGTH, KeyLog
from interop.wire.key_schedule import TrafficKeys, exporter_value, hkdf_expand, hkdf_extract
from interop.wire.material import Direction, KeyMaterial
from interop.wire.prf import exporter_value as tls12_exporter_value
from interop.wire.prf import prf
from interop.wire.record import (
    MAX_CIPHERTEXT_TLS12,
    RecordSplitter,
    find_client_hello,
    not_tls_reason,
)
from interop.wire.registry import (
    AlertDescription,
    ContentType,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
    is_grease,
    name_of,
)
from interop.wire.session import TLSSession
from interop.wire.suites import CipherMode, CipherSuite, KeyExchange, parameters_of

if TYPE_CHECKING:
    from enum import IntEnum


# Numbers


@pytest.mark.parametrize(
    ("registry", "number", "name"),
    [
        (CipherSuite, 0x1301, "TLS_AES_128_GCM_SHA256"),
        (CipherSuite, 0xC02F, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
        (CipherSuite, 0x0A0A, "GREASE (0x0a0a)"),
        (CipherSuite, 0x1A0A, "unknown (0x1a0a)"),
        (NamedGroup, 0x11EC, "X25519MLKEM768"),
        (NamedGroup, 0x11EB, "SecP256r1MLKEM768"),
        (NamedGroup, 0x0017, "secp256r1"),
        (NamedGroup, 0x0100, "ffdhe2048"),
        (NamedGroup, 0xFAFA, "GREASE (0xfafa)"),
        (ProtocolVersion, 0x0304, "TLS 1.3"),
        (ProtocolVersion, 0x7F1C, "unknown (0x7f1c)"),
        (SignatureScheme, 0x0804, "rsa_pss_rsae_sha256"),
        (AlertDescription, 0, "close_notify"),
        (AlertDescription, 10, "unexpected_message"),
        (ContentType, 99, "unknown (0x63)"),
        (HandshakeType, 0x0A, "unknown (0x0a)"),
        (ExtensionType, 51, "key_share"),
    ],
)
def test_numbers_have_the_names_of_their_standards(
    registry: type[IntEnum], number: int, name: str
) -> None:
    assert name_of(registry, number) == name


@given(st.integers(0, 0xFFFF))
def test_every_number_has_a_name(number: int) -> None:
    for registry in (CipherSuite, NamedGroup, ExtensionType, SignatureScheme, ProtocolVersion):
        assert name_of(registry, number)
    parameters_of(number)


def test_there_are_sixteen_grease_values() -> None:
    assert [number for number in range(2**16) if is_grease(number)] == [
        0x0A0A + 0x1010 * index for index in range(16)
    ]


@pytest.mark.parametrize(
    ("suite", "exchange", "cipher", "hash_name", "mac_name", "forward_secret"),
    [
        ("TLS_AES_256_GCM_SHA384", KeyExchange.TLS13, "AES_256_GCM", "sha384", None, None),
        ("TLS_AES_128_CCM_8_SHA256", KeyExchange.TLS13, "AES_128_CCM_8", "sha256", None, None),
        ("TLS_RSA_WITH_AES_128_GCM_SHA256", KeyExchange.RSA, "AES_128_GCM", "sha256", None, False),
        ("TLS_RSA_WITH_AES_256_CCM_8", KeyExchange.RSA, "AES_256_CCM_8", "sha256", None, False),
        (
            "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
            KeyExchange.ECDHE,
            "AES_256_CBC",
            "sha384",
            "sha384",
            True,
        ),
        (
            "TLS_DHE_RSA_WITH_AES_128_CBC_SHA",
            KeyExchange.DHE,
            "AES_128_CBC",
            "sha256",
            "sha1",
            True,
        ),
        (
            "TLS_ECDH_RSA_WITH_AES_128_CBC_SHA",
            KeyExchange.ECDH,
            "AES_128_CBC",
            "sha256",
            "sha1",
            False,
        ),
        ("TLS_PSK_WITH_AES_128_CCM", KeyExchange.PSK, "AES_128_CCM", "sha256", None, False),
        (
            "TLS_PSK_DHE_WITH_AES_128_CCM_8",
            KeyExchange.DHE_PSK,
            "AES_128_CCM_8",
            "sha256",
            None,
            True,
        ),
        (
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
            KeyExchange.ECDHE,
            "CHACHA20_POLY1305",
            "sha256",
            None,
            True,
        ),
        ("TLS_ECDHE_RSA_WITH_NULL_SHA", KeyExchange.ECDHE, "NULL", "sha256", "sha1", False),
        ("TLS_SHA384_SHA384", KeyExchange.TLS13, None, "sha384", None, False),
        ("TLS_GOSTR341001_WITH_NULL_GOSTR3411", KeyExchange.OTHER, None, "sha256", None, False),
        ("TLS_RSA_WITH_RC4_128_SHA", KeyExchange.RSA, None, "sha256", None, False),
        ("TLS_RSA_WITH_CAMELLIA_256_GCM_SHA384", KeyExchange.RSA, None, "sha384", None, False),
    ],
)
def test_suites_mean_what_their_names_say(
    suite: str,
    exchange: KeyExchange,
    cipher: str | None,
    hash_name: str,
    mac_name: str | None,
    forward_secret: bool | None,  # noqa: FBT001 - a parametrised fact
) -> None:
    parameters = parameters_of(CipherSuite[suite])
    assert parameters is not None
    assert parameters.key_exchange is exchange
    assert (parameters.cipher and parameters.cipher.name) == cipher
    assert parameters.hash_name == hash_name
    assert parameters.mac_name == mac_name
    assert parameters.forward_secret is forward_secret


@pytest.mark.peers
def test_openssl_agrees_about_every_suite_that_it_knows() -> None:
    if shutil.which("openssl") is None:
        pytest.skip("unsupported: openssl is not installed")
    listing = subprocess.run(
        ["openssl", "ciphers", "-V", "-stdname", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pattern = re.compile(r"0x(..),0x(..) - (\S+) .* Kx=(\S+) +Au=(\S+) +Enc=(\S+)")
    rows = pattern.findall(listing)
    assert len(rows) > 100
    for high, low, name, exchange, _, encryption in rows:
        number = int(high + low, 16)
        assert name_of(CipherSuite, number) == name
        parameters = parameters_of(number)
        assert parameters is not None
        expected = {"any": None}.get(exchange, "DH" in exchange)
        assert parameters.forward_secret is (expected if encryption != "None" else False), name
        cipher = parameters.cipher
        if encryption.startswith(("AESGCM", "AESCCM", "CHACHA20")):
            assert cipher is not None
            assert encryption.endswith(f"({cipher.key_length * 8})")
        if encryption.startswith("AES("):
            assert cipher is not None
            assert cipher.mode is CipherMode.CBC


# Codec


def test_a_reader_tells_where_and_what() -> None:
    reader = Reader(memoryview(b"\x01\x00\x05abc"), "hello", offset=10)
    assert reader.u8("kind") == 1
    with pytest.raises(DissectError) as caught:
        reader.vector(2, "name")
    assert caught.value.path == "hello.name"
    assert caught.value.offset == 13
    assert "5 bytes are announced, 3 are there" in str(caught.value)


def test_an_inner_length_cannot_reach_a_neighbour() -> None:
    reader = Reader(memoryview(b"\x00\x02\x05xyyyyy"), "outer")
    inner = reader.vector(2, "inner")
    with pytest.raises(DissectError):
        inner.opaque(1, "field")
    assert reader.rest() == b"yyyyy"


def test_odd_lists_short_vectors_and_leftovers_are_refused() -> None:
    with pytest.raises(DissectError, match="odd"):
        Reader(memoryview(b"\x00\x03abc"), "x").u16_list(2, "list")
    with pytest.raises(DissectError, match="at least 1"):
        Reader(memoryview(b"\x00"), "x").opaque(1, "v", minimum=1)
    with pytest.raises(DissectError, match="follow"):
        Reader(memoryview(b"a"), "x").end()


# Records


def record(content_type: int, fragment: bytes, version: int = 0x0303) -> bytes:
    header = bytes((content_type,)) + version.to_bytes(2, "big")
    return header + len(fragment).to_bytes(2, "big") + fragment


@given(
    st.lists(st.tuples(st.sampled_from([20, 21, 22, 23]), st.binary(max_size=300)), max_size=8),
    st.data(),
)
def test_records_come_out_whole_however_they_are_cut(
    records: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(record(kind, fragment) for kind, fragment in records)
    splitter = RecordSplitter()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += splitter.feed(stream[:size])
        stream = stream[size:]
    assert [(r.content_type, bytes(r.fragment)) for r in found] == records
    assert splitter.pending_bytes == 0


@pytest.mark.parametrize(
    "header", [b"\x19\x03\x03\x00\x01", b"\x17\x02\x03\x00\x01", b"\x17\x03\x03\xff\xff"]
)
def test_what_is_no_record_is_refused(header: bytes) -> None:
    with pytest.raises(DissectError):
        RecordSplitter().feed(header)
    largest = record(23, bytes(MAX_CIPHERTEXT_TLS12))
    assert len(RecordSplitter().feed(largest)) == 1


@pytest.mark.parametrize(
    ("prefix", "answer"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\x03\x01\x02", None),
        (b"\x16\x03\x01\x02\x00", ""),
        (b"\x15\x03\x03\x00\x02", ""),
        (b"GET / HTTP/1.1", "not TLS: the stream does not begin with a handshake record"),
        (b"SSH-2.0", "not TLS: the stream does not begin with a handshake record"),
        (b"\x16\x04\x01\x02\x00", "not TLS: the stream does not begin with a handshake record"),
        (
            b"\x17\x03\x03\x01\x00",
            "the capture begins in mid-session: there is no ClientHello",
        ),
        (
            b"\x80\x2e\x01\x03\x01",
            "an SSL 2.0 ClientHello: nothing this old is read here",
        ),
    ],
)
def test_whether_a_stream_is_tls_at_all(prefix: bytes, answer: str | None) -> None:
    assert not_tls_reason(prefix) == answer


def test_a_client_hello_is_found_behind_other_bytes_and_nothing_else_is() -> None:
    hello = client_hello(b"\0\x2a\0\0")
    record = b"\x16\x03\x01" + len(hello).to_bytes(2, "big") + hello
    assert find_client_hello(b"EHLO\r\n\x16\x03" + record) == 8
    for other in (
        b"EHLO\r\n" * 100 + b"\x16\x03",
        b"\x16\x03\x01\0\x02\x01\0" + bytes(40),
        record[:5] + b"\x02" + record[6:],  # a ServerHello
        record[:3] + b"\0\0" + record[5:],
        record[:10],
        b"",
    ):
        assert find_client_hello(other) == -1


def test_a_stream_that_is_not_tls_is_a_result() -> None:
    session = TLSSession(KeyMaterial())
    assert session.feed(Direction.CLIENT_TO_SERVER, b"GET / HTTP/1.1\r\n\r\n") == []
    assert session.feed(Direction.SERVER_TO_CLIENT, b"HTTP/1.1 200 OK\r\n") == []
    assert session.not_tls
    assert session.damage is None
    assert str(session.undecryptable).startswith("not TLS")


# Messages


def test_messages_are_put_together_and_bounded() -> None:
    assembler = hs.MessageAssembler(limit_bytes=1000)
    first, second = b"\x08\0\0\2\0\0", b"\x14\0\0\x20" + bytes(32)
    joined = first + second
    for index in range(len(joined)):
        assembler.feed(joined[index : index + 1])
    assert assembler.next_message() == first
    assert assembler.next_message() == second
    assert assembler.next_message() is None
    assembler.feed(b"\x0b\xff\xff\xff")
    with pytest.raises(DissectError, match="at most 1000"):
        assembler.next_message()


def client_hello(extensions: bytes) -> bytes:
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    return b"\x01" + len(body).to_bytes(3, "big") + body


def test_a_client_hello_gives_what_it_offers() -> None:
    name = b"\0\0\0\x0e\0\x0c\0\0\x09wire.test"
    versions = b"\0\x2b\0\x05\x04\x0a\x0a\x03\x04"
    hello = hs.parse_client_hello(client_hello(name + versions + b"\0\x2a\0\0"))
    assert hello.server_name == "wire.test"
    assert hello.supported_versions == (0x0A0A, 0x0304)
    assert hello.cipher_suites == (0x1301,)
    assert hello.early_data


@pytest.mark.parametrize(
    ("extensions", "asked_for", "path"),
    [
        (b"\0\0\0\x05\0\xff\0\0\0", "server_name", "server_name.names"),
        (b"\0\x33\0\x04\0\x02\0\x1d", "key_shares", "key_share.client_shares"),
        (b"\0\x2b\0\x04\x03\3\4\3", "supported_versions", "supported_versions.list"),
        (b"\0\x2d\0\x02\x02\0", "psk_key_exchange_modes", "psk_key_exchange_modes.modes"),
        (b"\0\x29\0\x02\0\x01", "pre_shared_keys", "pre_shared_key.identities"),
    ],
)
def test_a_malformed_extension_is_told_by_its_path_and_only_to_whom_it_concerns(
    extensions: bytes, asked_for: str, path: str
) -> None:
    hello = hs.parse_client_hello(client_hello(extensions))
    with pytest.raises(DissectError) as caught:
        getattr(hello, asked_for)
    assert caught.value.path.startswith(f"client_hello.extensions.{path}")


def test_an_extension_that_occurs_twice_spoils_a_client_hello() -> None:
    with pytest.raises(DissectError) as caught:
        hs.parse_client_hello(client_hello(b"\0\x2a\0\0\0\x2a\0\0"))
    assert caught.value.path == "client_hello.extensions"


# Key schedules: vectors of other sources than RFC 8448


def test_hkdf_as_in_rfc_5869_appendix_a1() -> None:
    key = bytes.fromhex("0b" * 22)
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    secret = hkdf_extract("sha256", salt, key)
    assert secret.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    assert hkdf_expand("sha256", secret, info, 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_exporters_differ_by_label_context_and_length() -> None:
    secret = bytes(range(32))
    values = {
        exporter_value("sha256", secret, label, context, 32)
        for label in (b"EXPORTER-a", b"EXPORTER-b")
        for context in (b"", b"c")
    }
    assert len(values) == 4
    with_context = tls12_exporter_value(
        "sha256", secret, b"EXPORTER-a", bytes(64), length=32, context=b""
    )
    without = tls12_exporter_value("sha256", secret, b"EXPORTER-a", bytes(64), length=32)
    assert with_context != without
    assert without == prf("sha256", secret, b"EXPORTER-a", bytes(64), 32)


# Key logs

RANDOM, OTHER = "ab" * 32, "cd" * 32


def test_a_key_log_as_programs_and_people_write_it() -> None:
    text = (
        "\ufeff# comment\r\n"
        f"CLIENT_RANDOM {RANDOM.upper()} {'0F' * 48}\r\n"
        "\n"
        f"CLIENT_HANDSHAKE_TRAFFIC_SECRET {OTHER} {'1a' * 32}\r"
        f"SERVER_TRAFFIC_SECRET_12   {OTHER}\t{'2b' * 48}  \n"
        f"CLIENT_RANDOM {RANDOM} {'0f' * 48}\n"
        f"SOME_FUTURE_LABEL whatever else\n"
        f"SOME_FUTURE_LABEL and again\n"
        f"RSA {'44' * 8} {'55' * 48}\n"
        f"ECH_SECRET {OTHER} {'33' * 16}\n"
    )
    log = KeyLog.parse(text)
    assert log.problems == ()
    assert log.unknown_labels == {"SOME_FUTURE_LABEL": 7}
    assert log[bytes.fromhex(RANDOM)] == {"CLIENT_RANDOM": b"\x0f" * 48}
    assert log[bytes.fromhex(OTHER)] == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET": b"\x1a" * 32,
        "SERVER_TRAFFIC_SECRET_12": b"\x2b" * 48,
    }
    assert log == KeyLog.parse(text.encode())
    assert len(KeyLog.parse("")) == 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("CLIENT_RANDOM", "takes a client random and a secret, 0 found"),
        (f"CLIENT_RANDOM {RANDOM}", "1 found"),
        (f"CLIENT_RANDOM {RANDOM} {'00' * 47}", "a secret of 47 bytes, 48 expected"),
        (f"CLIENT_RANDOM {RANDOM[:-2]} {'00' * 48}", "32 bytes, this one 31"),
        (f"CLIENT_RANDOM {RANDOM} {'0' * 95}", "not whole bytes"),
        (f"CLIENT_RANDOM {RANDOM} {'zz' * 48}", "not whole bytes"),
        (f"EXPORTER_SECRET {RANDOM} {'00' * 20}", "32 or 48 expected"),
        ("client random?", "no label"),
        ("AB" * 32, "no label"),  # which looks like one, but is a secret
        ("\x00\x01\x02", "no label"),
        ("é", "not ASCII"),
        ("X" * (MAX_LINE_LENGTH + 1), "longer than"),
        (f"CLIENT_RANDOM {OTHER} {'11' * 48}", "contradicts an earlier line"),
    ],
)
def test_a_damaged_line_is_reported_and_the_rest_is_used(line: str, reason: str) -> None:
    good = f"CLIENT_RANDOM {OTHER} {'22' * 48}"
    log = KeyLog.parse(f"{good}\n# more\n{line}\nCLIENT_RANDOM {'ef' * 32} {'33' * 48}\n")
    (problem,) = log.problems
    assert problem.line_number == 3
    assert reason in problem.reason
    assert log[bytes.fromhex(OTHER)]["CLIENT_RANDOM"] == b"\x22" * 48
    assert len(log) == 2


def test_problems_are_bounded_but_counted() -> None:
    log = KeyLog.parse("?\n" * 5000)
    assert len(log.problems) == 1000
    assert log.problem_count == 5000


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_key_log(data: bytes) -> None:
    KeyLog.parse(data)


def test_two_key_logs_put_together() -> None:
    first = KeyLog({b"r": {"A": b"1"}})
    second = KeyLog({b"r": {"A": b"2", "B": b"3"}, b"s": {"A": b"4"}})
    assert dict(first | second) == {b"r": {"A": b"1", "B": b"3"}, b"s": {"A": b"4"}}


def test_no_secret_shows() -> None:
    secret = bytes(range(48))
    log = KeyLog({bytes(32): {"CLIENT_RANDOM": secret}})
    keys = KeyMaterial(
        server_private_keys=(rsa.generate_private_key(65537, 2048),),
        key_log=log,
        pre_shared_keys=(secret,),
    )
    session = TLSSession(keys)
    session.secrets["main_secret"] = secret
    shown = repr(keys) + repr(log) + repr(session) + str(session)
    shown += repr(FiniteFieldPrivateKey(23, 5, 6)) + repr(TrafficKeys(secret[:16], secret[:12]))
    assert "server_private_keys=1" in shown
    assert secret.hex()[:16] not in shown
    assert repr(secret)[3:20] not in shown
