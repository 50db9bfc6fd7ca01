"""Stolen ticket keys: each stack's layout, on tickets of the stack itself where it can be run here.

tlslite-ng and OpenSSL are (the latter in the libssl below Python's own `ssl`, whose ticket keys can
be set through its control function; nginx is among the tests against programs). Go's tickets are
built here from the layout that the source of its crypto/tls gives; those of Go 1.19 were recorded
from a real server too (`tests/vectors/SOURCES.md`).
"""

from __future__ import annotations

import _ssl
import ctypes
import hashlib
import hmac
import random
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tlslite_peers import TLS12_ONLY, TLS13_ONLY, TLSLitePair
from wire_peers import (
    CLIENT,
    SERVER,
    Recording,
    assert_closed,
    assert_opened,
    certificate,
    decrypt,
    private_key,
)

from interop.capture.files import read_streams
from interop.errors import InputError
from interop.proof.attacker import Attacker
from interop.wire.key_schedule import resumption_psk
from interop.wire.material import EphemeralKey, KeyMaterial, TicketKey
from interop.wire.tickets import TICKET_KEY_LENGTHS, TicketState

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.direction import Direction

# tlslite-ng

CIPHERS = {
    "aes128gcm": 16,
    "aes128ccm": 16,
    "aes128ccm_8": 16,
    "aes256gcm": 32,
    "aes256ccm": 32,
    "aes256ccm_8": 32,
    "chacha20-poly1305": 32,
}


def lite_pairs(cipher: str, settings: dict[str, object]) -> tuple[TLSLitePair, TLSLitePair, bytes]:
    key = random.Random(cipher).randbytes(CIPHERS[cipher])
    settings = settings | {"ticketKeys": [bytearray(key)], "ticketCipher": cipher}
    first = TLSLitePair(settings)
    first.talk(200)
    second = TLSLitePair(settings, resume=first)
    second.talk(200)
    return first, second, key


@pytest.mark.parametrize("cipher", CIPHERS)
def test_tlslite_tls12_opens_the_issuing_and_the_resumed_session(cipher: str) -> None:
    first, second, key = lite_pairs(cipher, TLS12_ONLY)
    stolen = KeyMaterial.of(TicketKey(key))
    session = assert_opened(first.recording, stolen, "ticket key")
    assert session.forward_secret is True  # what its key exchange was worth, had it issued none
    session = assert_opened(second.recording, stolen, "ticket key")
    assert session.resumed is True
    wrong = KeyMaterial.of(TicketKey(key[::-1]))
    assert_closed(first.recording, wrong, "no ticket that holds its secret opens")
    assert_closed(second.recording, wrong, "no ticket key given opens the ticket")


@pytest.mark.parametrize("mode", ["psk_ke", "psk_dhe_ke"])
@pytest.mark.parametrize("cipher", CIPHERS)
def test_tlslite_tls13_opens_psk_ke_alone(cipher: str, mode: str) -> None:
    first, second, key = lite_pairs(cipher, TLS13_ONLY | {"psk_modes": [mode]})
    stolen = KeyMaterial.of(TicketKey(key))
    assert_closed(first.recording, stolen, "no ticket that holds its secret opens")
    if mode == "psk_ke":
        assert_opened(second.recording, stolen, "ticket key")
    else:
        assert_closed(second.recording, stolen, "the pre-shared key is known, but")
        both = KeyMaterial.of(*map(EphemeralKey, second.client_ephemeral_keys), TicketKey(key))
        assert_opened(second.recording, both, "ephemeral key and ticket key")
    wrong = KeyMaterial.of(TicketKey(key[::-1]))
    assert_closed(second.recording, wrong, "nor in a ticket that the ticket keys given open")


# OpenSSL

SSL_CTRL_SET_TLSEXT_TICKET_KEYS = 59


def openssl_server(tmp_path: Path, key: bytes) -> ssl.SSLContext:
    """Make a server context of Python's ssl whose ticket keys are known."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    encoded = private_key("RSA").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "server.pem"
    path.write_bytes(encoded + certificate("RSA").public_bytes(Encoding.PEM))
    made.load_cert_chain(path)
    try:
        control = ctypes.CDLL(_ssl.__file__).SSL_CTX_ctrl
    except (AttributeError, OSError):
        pytest.skip("unsupported: this Python's libssl does not show its control function")
    control.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_char_p]
    # The SSL_CTX is the first member of the object behind its header.
    pointer = ctypes.c_void_p.from_address(id(made) + object.__basicsize__)
    assert control(pointer, SSL_CTRL_SET_TLSEXT_TICKET_KEYS, len(key), key) == 1
    return made


def openssl_session(
    server: ssl.SSLContext, version: ssl.TLSVersion, resume: ssl.SSLSession | None
) -> tuple[Recording, ssl.SSLSession | None]:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    if resume is not None:  # a session belongs to its context
        client = openssl_session.client  # type: ignore[attr-defined]
    openssl_session.client = client  # type: ignore[attr-defined]
    recording = Recording()
    buffers = {way: ssl.MemoryBIO() for way in (CLIENT, SERVER)}
    ends = {
        CLIENT: client.wrap_bio(buffers[SERVER], buffers[CLIENT], session=resume),
        SERVER: server.wrap_bio(buffers[CLIENT], buffers[SERVER], server_side=True),
    }

    def record(way: object, step: Callable[[], object]) -> object:
        try:
            return step()
        except ssl.SSLWantReadError:
            return None
        finally:
            for direction, buffer in buffers.items():
                if direction is way and buffer.pending:
                    data = buffer.read()
                    recording.wire.append((direction, data))
                    buffer.write(data)

    for _ in range(4):
        for way, end in ends.items():
            record(way, end.do_handshake)
    assert ends[CLIENT].session_reused is (resume is not None)
    for way, data in ((CLIENT, b"a request"), (SERVER, b"an answer" * 900)):
        record(way, lambda way=way, data=data: ends[way].write(data))  # type: ignore[misc]
        received = b""
        while len(received) < len(data):
            received += ends[way.opposite].read(2**16)
        assert received == data
        recording.sent[way] = data
    return recording, ends[CLIENT].session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl_tickets_of_its_own_80_byte_keys(version: ssl.TLSVersion, tmp_path: Path) -> None:
    key = random.Random(80).randbytes(80)
    server = openssl_server(tmp_path, key)
    first, stored = openssl_session(server, version, None)
    second, _ = openssl_session(server, version, stored)
    stolen = KeyMaterial.of(TicketKey(key))
    haproxy = KeyMaterial.of(TicketKey(key[:16] + key[48:] + key[16:48]))  # its order of the fields
    wrong = KeyMaterial.of(TicketKey(key[:48] + key[48:][::-1]))
    if version == ssl.TLSVersion.TLSv1_2:
        assert_opened(first, stolen, "ticket key")
        assert_opened(second, stolen, "ticket key")
        assert_opened(second, haproxy, "ticket key")
        assert_closed(second, wrong, "no ticket key given opens the ticket")
    else:  # OpenSSL resumes with psk_dhe_ke
        assert_closed(first, stolen, "no ticket that holds its secret opens")
        assert_closed(second, stolen, "the pre-shared key is known, but")
        assert_closed(second, wrong, "nor in a ticket that the ticket keys given open")


# Go, as in the files ticket.go and common.go of its package crypto/tls


def go_ticket(key: bytes, state: bytes, *, named: bool) -> bytes:
    expanded = hashlib.sha512(key).digest()
    iv = random.Random(0).randbytes(16)
    encryptor = Cipher(AES(expanded[16:32]), CTR(iv)).encryptor()
    body = (expanded[:16] if named else b"") + iv + encryptor.update(state) + encryptor.finalize()
    return body + hmac.digest(expanded[32:48], body, "sha256")


CREATED = bytes(4) + bytes.fromhex("6565f2c0")
MAIN_SECRET, RESUMPTION_SECRET = bytes(range(48)), bytes(range(32))
GO_STATES = {
    "1.20 TLS 1.2": (
        True,
        b"\x03\x03\xc0\x2f" + CREATED + b"\0\x30" + MAIN_SECRET + b"\0\0\0",
        TicketState(0x0303, MAIN_SECRET),
    ),
    "1.20 TLS 1.3": (
        True,
        b"\x03\x04\0\x13\x01" + CREATED + b"\x20" + RESUMPTION_SECRET + b"\0\0\0",
        TicketState(0x0304, resumption_psk("sha256", RESUMPTION_SECRET, b"")),
    ),
    "1.21 TLS 1.2": (
        False,
        b"\x03\x03\x01\xc0\x2f" + CREATED + b"\x30" + MAIN_SECRET + b"\0\0\0\x01\0\0\0\0",
        TicketState(0x0303, MAIN_SECRET),
    ),
    "1.21 TLS 1.3": (
        False,
        b"\x03\x04\x01\x13\x01" + CREATED + b"\x20" + RESUMPTION_SECRET + b"\0\0\0\0\0\0\0\0",
        TicketState(0x0304, RESUMPTION_SECRET),
    ),
}


@pytest.mark.parametrize("which", GO_STATES)
def test_go_tickets_as_its_source_lays_them_out(which: str) -> None:
    named, state, expected = GO_STATES[which]
    key = random.Random(which).randbytes(32)
    ticket = go_ticket(key, state, named=named)
    assert TicketKey(key).open(ticket) == expected
    assert TicketKey(key[::-1]).open(ticket) is None
    for at in (0, 20, -40, -1):
        changed = bytearray(ticket)
        changed[at] ^= 1
        assert TicketKey(key).open(bytes(changed)) is None


GO_VECTORS = Path(__file__).parents[1] / "vectors" / "go-tickets"


@pytest.mark.parametrize("right", [True, False])
def test_sessions_of_a_go_server_as_recorded(right: bool) -> None:  # noqa: FBT001 - a parametrised fact
    key = (GO_VECTORS / "ticket-key.bin").read_bytes()
    stolen = TicketKey(key if right else key[::-1])
    recovered: dict[tuple[int, Direction], bytes] = {}

    def collect(stream: int, direction: Direction, data: bytes | bytearray) -> None:
        recovered[stream, direction] = recovered.get((stream, direction), b"") + data

    attacker = Attacker(stolen, collect)
    results = attacker.attack(read_streams(GO_VECTORS / "go-1.19-tls12.pcapng"))
    assert [result.resumed for result in results] == [False, True]
    assert [result.opened for result in results] == [right, right]
    if right:
        assert recovered == {
            key: text
            for number in range(2)
            for key, text in (
                ((number, CLIENT), b"go asks, number %d" % number),
                ((number, SERVER), b'go answers "go asks, number %d"' % number),
            )
        }
    else:
        assert recovered == {}
    first, second = Attacker(stolen).attack(read_streams(GO_VECTORS / "go-1.19-tls13.pcapng"))
    assert not first.opened
    assert not second.opened
    assert ("the pre-shared key is known" in second.reason) is right


# All of them


@pytest.mark.parametrize("length", [0, 1, 15, 17, 31, 33, 47, 64, 79, 81, 1000])
def test_no_other_length_is_a_ticket_key(length: int) -> None:
    with pytest.raises(InputError, match=f"{length} bytes: they have 16, 32, 48, 80"):
        TicketKey(bytes(length))


@pytest.mark.parametrize("length", TICKET_KEY_LENGTHS)
def test_tickets_of_any_length_are_closed_and_no_error(length: int) -> None:
    numbers = random.Random(length)
    key = TicketKey(numbers.randbytes(length))
    for size in (*range(140), 1000, 65_535):
        assert key.open(numbers.randbytes(size)) is None
    assert repr(key) == f"TicketKey({length} bytes)"


@pytest.mark.parametrize("state", [b"", b"\x03\x03", b"\x03\x04\x01", b"\x30\x80", bytes(200)])
def test_a_genuine_ticket_of_something_else_holds_no_session(state: bytes) -> None:
    key = bytes(32)
    assert TicketKey(key).open(go_ticket(key, state, named=False)) is None
    assert TicketKey(key).open(go_ticket(key, state, named=True)) is None


def test_a_ticket_key_waits_for_the_ticket_and_no_longer() -> None:
    """The client's records may be captured before the server's ticket, or that never come."""
    first, _, key = lite_pairs("aes256gcm", TLS12_ONLY)
    ephemeral = EphemeralKey(first.server_ephemeral_key)
    client, server = first.recording.stream(CLIENT), first.recording.stream(SERVER)
    before_ticket = server[: server.index(b"\x0e\0\0\0") + 4]
    cut = Recording(wire=[(SERVER, before_ticket), (CLIENT, client)])
    session, recovered = decrypt(cut, KeyMaterial.of(TicketKey(key)))
    assert recovered == {CLIENT: b"", SERVER: b""}
    assert session.undecryptable is not None
    _, recovered = decrypt(cut, KeyMaterial.of(TicketKey(key), ephemeral))
    assert recovered == {CLIENT: first.recording.sent[CLIENT], SERVER: b""}

    both = KeyMaterial.of(TicketKey(bytes(32)), ephemeral)
    assert_opened(first.recording, both, "ephemeral key")
    other = EphemeralKey(x25519.X25519PrivateKey.generate())
    assert_opened(first.recording, KeyMaterial.of(TicketKey(key), other), "ticket key")
