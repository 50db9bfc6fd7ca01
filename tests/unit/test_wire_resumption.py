"""Sessions that resume others: what the original's secret, a pre-shared key or a PSK session tells.

Real peers, recorded in memory. Each test has its control beside it: the same recording and the same
theft, without what makes it open.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL
from tlslite_peers import TLS12_ONLY, TLS13_ONLY, TLSLitePair
from wire_peers import (
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
    pre_shared_key_of,
    private_key,
    resumed,
)

from interop.wire.key_log import KeyLog
from interop.wire.learned import LearnedSecrets
from interop.wire.material import EphemeralKey, KeyMaterial, PreSharedKey, ServerKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interop.direction import Direction

STATIC_RSA = "AES256-SHA256"


@pytest.mark.parametrize("options", [0, SSL.OP_NO_TICKET], ids=["ticket", "session-id"])
@pytest.mark.parametrize("theft", ["server key", "key log"])
def test_a_resumed_session_opens_by_what_opened_the_original(options: int, theft: str) -> None:
    suite = STATIC_RSA if theft == "server key" else None
    first, second = resumed(SSL.TLS1_2_VERSION, options, suite)
    keys = KeyMaterial(server_private_keys=(private_key("RSA"),))
    if theft == "key log":
        keys = KeyMaterial(key_log=first.key_log)
    learned = LearnedSecrets()
    assert_closed(second, keys, "the main secret is an earlier session's", learned)
    source = "server RSA key" if theft == "server key" else "key log"
    assert_opened(first, keys, source, learned)
    session = assert_opened(second, keys, "earlier session", learned)
    assert session.resumed is True

    other = KeyMaterial(server_private_keys=(rsa.generate_private_key(65537, 2048),))
    learned = LearnedSecrets()
    session, _ = decrypt(first, other, learned=learned)
    assert not session.opened
    assert_closed(second, other, "the main secret is an earlier session's", learned)


def test_a_session_that_issued_a_ticket_opens_by_the_one_that_resumed_it() -> None:
    """They have one main secret, and the ticket names it in both recordings."""
    first, second = resumed(SSL.TLS1_2_VERSION, 0, None)
    keys = KeyMaterial(key_log=second.key_log)
    learned = LearnedSecrets()
    assert_closed(first, keys, "no key log line for this client_random", learned)
    assert_opened(second, keys, "key log", learned)
    assert_opened(first, KeyMaterial(), "earlier session", learned)


def test_what_was_learned_of_the_wrong_session_opens_nothing() -> None:
    _, second = resumed(SSL.TLS1_2_VERSION, SSL.OP_NO_TICKET, STATIC_RSA)
    session_id = second.stream(CLIENT)[44:76]
    learned = LearnedSecrets()
    learned.learn_session_id(session_id, bytes(48))
    reason = "from the earlier session does not open this session's records"
    assert_closed(second, KeyMaterial(), reason, learned)


def test_a_ticket_issued_on_resumption_leads_on() -> None:
    """A third session resumes the second by a ticket of its own."""
    settings = TLS12_ONLY | {"cipherNames": ["aes128gcm"], "ticketKeys": [bytes(32)]}
    first = TLSLitePair(settings)
    first.talk(100)
    second = TLSLitePair(settings, resume=first)
    second.talk(100)
    learned = LearnedSecrets()
    keys = KeyMaterial.of(EphemeralKey(first.server_ephemeral_key))
    assert_opened(first.recording, keys, "ephemeral key", learned)
    session = assert_opened(second.recording, keys, "earlier session", learned)
    assert session.resumed is True


PSK_MODES = ["psk_ke", "psk_dhe_ke"]


@pytest.mark.parametrize("mode", PSK_MODES)
def test_a_tls13_session_opened_by_its_ephemeral_key_gives_its_tickets_keys(mode: str) -> None:
    settings = TLS13_ONLY | {"ticketKeys": [bytes(32)], "psk_modes": [mode]}
    first = TLSLitePair(settings)
    first.talk(100)
    second = TLSLitePair(settings, resume=first)
    second.talk(100)
    first_key, second_key = (
        tuple(map(EphemeralKey, pair.client_ephemeral_keys)) for pair in (first, second)
    )
    learned = LearnedSecrets()
    keys = KeyMaterial.of(*first_key)
    assert_closed(second.recording, keys, f"({mode}) that is not among the keys given", learned)
    opened = assert_opened(first.recording, keys, "ephemeral key", learned)
    assert all(ticket.pre_shared_key for ticket in opened.tickets)
    if mode == "psk_ke":
        assert_opened(second.recording, keys, "earlier session", learned)
    else:
        assert_closed(second.recording, keys, "needs both", learned)
        both = KeyMaterial.of(*first_key, *second_key)
        assert_opened(second.recording, both, "ephemeral key and earlier session", learned)
    known = KeyMaterial.of(*(PreSharedKey(t.pre_shared_key or b"") for t in opened.tickets))
    if mode == "psk_ke":
        assert_opened(second.recording, known, "pre-shared key")


@pytest.mark.parametrize("chunking", CHUNKINGS)
def test_tickets_are_learned_in_whatever_order_they_were_captured(
    chunking: Callable[[Recording], Iterator[tuple[Direction, bytes]]],
) -> None:
    """A ticket's key covers the client's Finished, which may be captured after the ticket."""
    settings = TLS13_ONLY | {"ticketKeys": [bytes(32)], "psk_modes": ["psk_ke"]}
    first = TLSLitePair(settings)
    first.talk(100)
    second = TLSLitePair(settings, resume=first)
    second.talk(100)
    learned = LearnedSecrets()
    keys = KeyMaterial.of(*map(EphemeralKey, first.client_ephemeral_keys))
    session, _ = decrypt(first.recording, keys, chunking, learned)
    assert all(ticket.pre_shared_key for ticket in session.tickets)
    assert_opened(second.recording, keys, "earlier session", learned)


def early_data(*, accepted: bool) -> tuple[bytes, Recording]:
    """Resume an OpenSSL session with 0-RTT data; give the pre-shared key as its client stores it.

    A server that allows less than the ticket promised rejects it.
    """
    lines: list[bytes] = []
    client = context(Options(), lines, server=False)
    server = context(Options(), lines, server=True)
    SSL._lib.SSL_CTX_set_max_early_data(server._context, 16_384)
    pair = Pair(client, server)
    pair.handshake()
    pair.send(SERVER, b"first")
    stored = pair.peers[CLIENT].get_session()
    assert stored is not None
    pair.close()

    if not accepted:
        server = context(Options(), lines, server=True)
    recording = Recording()
    again = Pair(client, server, recording)
    again.peers[CLIENT].set_session(stored)
    lib, ffi = SSL._lib, SSL._ffi
    written = ffi.new("size_t *")
    data = b"PUT /early HTTP/1.1\r\n\r\n"
    assert lib.SSL_write_early_data(again.peers[CLIENT]._ssl, data, len(data), written) == 1
    again.carry()
    if accepted:
        read, buffer = ffi.new("size_t *"), ffi.new("char[]", 100)
        assert lib.SSL_read_early_data(again.peers[SERVER]._ssl, buffer, 100, read) == 1
        assert ffi.buffer(buffer, read[0])[:] == data
        recording.sent[CLIENT] += data
        with contextlib.suppress(SSL.WantReadError):
            again.peers[SERVER].do_handshake()
    again.handshake()
    again.send(CLIENT, b"late")
    again.send(SERVER, b"answer")
    again.close()
    return pre_shared_key_of(stored), recording


def test_a_stolen_resumption_key_opens_early_data_and_no_more_of_psk_dhe_ke() -> None:
    psk, recording = early_data(accepted=True)
    stolen = KeyMaterial.of(PreSharedKey(psk))
    session, recovered = decrypt(recording, stolen)
    assert session.early_data_accepted is None  # it is said under the handshake keys
    assert recovered == {CLIENT: b"PUT /early HTTP/1.1\r\n\r\n", SERVER: b""}
    assert session.opened_by == "pre-shared key"
    assert "needs both" in str(session.undecryptable)
    wrong = KeyMaterial.of(PreSharedKey(psk[::-1]))
    assert_closed(recording, wrong, "(psk_dhe_ke) that is not among the keys given")


def test_rejected_early_data_opens_too_and_the_rest_stays_closed() -> None:
    psk, recording = early_data(accepted=False)
    session, recovered = decrypt(recording, KeyMaterial.of(PreSharedKey(psk)))
    assert recovered[CLIENT] in {b"", b"PUT /early HTTP/1.1\r\n\r\n"}
    assert recovered[SERVER] == b""
    assert session.undecryptable is not None


@pytest.mark.parametrize("exchange", ["PSK", "ECDHE-PSK", "RSA-PSK"])
def test_a_pre_shared_key_of_tls12_opens_what_it_alone_protects(exchange: str) -> None:
    secret = random.Random(exchange).randbytes(32)
    recording = Recording()
    suites = {
        "PSK": "PSK-AES128-GCM-SHA256",
        "ECDHE-PSK": "ECDHE-PSK-AES128-CBC-SHA256",
        "RSA-PSK": "RSA-PSK-AES256-GCM-SHA384",
    }
    options = Options(version=SSL.TLS1_2_VERSION, suites=suites[exchange])
    lib, ffi = SSL._lib, SSL._ffi

    @ffi.callback("unsigned int(SSL *, char *, char *, unsigned int, unsigned char *, unsigned)")
    def as_client(
        _ssl: object, _hint: object, name: object, _length: int, key: object, _: int
    ) -> int:
        ffi.memmove(name, b"somebody\0", 9)
        ffi.memmove(key, secret, len(secret))
        return len(secret)

    @ffi.callback("unsigned int(SSL *, char *, unsigned char *, unsigned int)")
    def as_server(_ssl: object, _name: object, key: object, _length: int) -> int:
        ffi.memmove(key, secret, len(secret))
        return len(secret)

    client = context(options, recording.lines, server=False)
    server = context(options, recording.lines, server=True)
    lib.SSL_CTX_set_psk_client_callback(client._context, as_client)
    lib.SSL_CTX_set_psk_server_callback(server._context, as_server)
    pair = Pair(client, server, recording)
    pair.handshake()
    pair.send(CLIENT, b"under a key that both had before")
    pair.send(SERVER, bytes(5000))
    pair.close()
    stolen_keys = PreSharedKey(bytes(32)), PreSharedKey(secret)
    stolen = KeyMaterial.of(*stolen_keys)
    if exchange == "PSK":
        session = assert_opened(recording, stolen, "pre-shared key")
        assert session.forward_secret is False
        wrong = KeyMaterial.of(PreSharedKey(secret[::-1]))
        assert_closed(recording, wrong, "does not open this session's records")
    elif exchange == "RSA-PSK":
        both = KeyMaterial.of(*stolen_keys, ServerKey(private_key("RSA")))
        assert_opened(recording, both, "server RSA key and pre-shared key")
        assert_closed(recording, stolen, "no RSA private key was given")
        other = ServerKey(rsa.generate_private_key(65537, 2048))
        # Implicit rejection gives a premaster secret of some length: not 48 bytes, as a rule.
        assert_closed(recording, KeyMaterial.of(*stolen_keys, other), "")
    else:
        assert_opened(recording, KeyMaterial(key_log=recording.key_log))
        assert_closed(recording, stolen, "the pre-shared key is one half, and no ephemeral")
    assert_closed(recording, KeyMaterial(key_log=KeyLog({bytes(32): {}})), "no pre-shared key")


def test_a_client_that_authenticates_after_the_handshake_is_read() -> None:
    options = Options(client_certificate=True, key="ECDSA")
    lines: list[bytes] = []
    client = context(options, lines, server=False)
    server = context(options, lines, server=True)
    server.set_verify(SSL.VERIFY_NONE, lambda *_: True)
    SSL._lib.SSL_CTX_set_post_handshake_auth(client._context, 1)
    recording = Recording(lines=lines)
    pair = Pair(client, server, recording)
    pair.handshake()
    pair.send(CLIENT, b"anonymous")
    pair.peers[SERVER].set_verify(SSL.VERIFY_PEER, lambda *_: True)
    assert SSL._lib.SSL_verify_client_post_handshake(pair.peers[SERVER]._ssl) == 1
    with contextlib.suppress(SSL.WantReadError):
        pair.peers[SERVER].do_handshake()
    pair.carry()
    for peer in (pair.peers[CLIENT], pair.peers[SERVER]):
        with contextlib.suppress(SSL.WantReadError):
            peer.recv(1)
        pair.carry()
    assert pair.peers[SERVER].get_peer_certificate() is not None
    pair.send(CLIENT, b"and now known")
    pair.send(SERVER, b"welcome")
    pair.close()
    session = assert_opened(recording, KeyMaterial(key_log=recording.key_log))
    assert len(session.client_certificates) == 1


def test_what_is_learned_is_bounded_and_forgets_the_oldest() -> None:
    learned = LearnedSecrets(limit=3)
    for number in range(5):
        learned.learn_ticket(bytes((number,)), bytes(48))
    learned.learn_ticket(b"\x02", b"again")
    learned.learn_session_id(b"", b"nothing")
    learned.learn_ticket(b"", b"nothing")
    learned.learn_session_id(b"\x09", bytes(48))
    assert len(learned) == 3
    assert [learned.of_ticket(bytes((n,))) is not None for n in range(5)] == [
        False,
        False,
        True,
        False,
        True,
    ]
    assert learned.of_session_id(b"\x02") is None
    assert repr(learned) == "LearnedSecrets(3 secrets)"


def test_what_is_learned_again_counts_as_new() -> None:
    learned = LearnedSecrets(limit=3)
    for name in (b"a", b"b", b"a", b"c", b"d"):
        learned.learn_ticket(name, bytes(48))
    assert learned.of_ticket(b"a") is not None
    assert learned.of_ticket(b"b") is None


def test_what_is_forgotten_costs_the_same_however_much_is_remembered() -> None:
    learned = LearnedSecrets()
    started = time.process_time()
    for number in range(300_000):
        learned.learn_ticket(number.to_bytes(4, "big"), bytes(48))
    assert time.process_time() - started < 5
    assert len(learned) == 2**16
