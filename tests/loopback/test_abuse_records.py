"""Hostile records against both engines: others are served, and each gets one clear reason."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import transport
from interop.peers.hostile import HostileClient
from transport import AlertDescription, AlertReceived, NegotiatedSession, PeerMisbehaved

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

Alert = AlertDescription
DEADLINE_SECONDS = 20.0
MAX_PLAINTEXT_BYTES = 1 << 14  # RFC 9846 section 5.1
HANDSHAKE, HEARTBEAT = 22, 24
ALLOWED_IN_A_ROW = 32  # of empty records, and of messages without data


def assert_served(server: Any, identities: Any) -> None:
    """Another client is served, and its outcomes are all that is in the queue."""
    with transport.connect(
        server.address, trust_anchors=identities.anchors, server_hostname="localhost"
    ) as client:
        client.settimeout(DEADLINE_SECONDS)
        client.sendall(b"still there?")
        assert client.recv(100) == b"still there?"
    assert isinstance(server.outcome(), NegotiatedSession)
    assert server.outcome() == "end"
    assert server.outcomes.empty()


class Refusal(NamedTuple):
    """What an attacker sends after its handshake, and what it gets."""

    records: Callable[[HostileClient], bytes]
    alert: Alert
    problem: str


TOO_LARGE = "the peer sent a record larger than TLS allows"
OUT_OF_ORDER = "the peer sent a message out of order"
UNDECRYPTABLE = "a record from the peer does not decrypt"
FLOOD = "the peer sent many messages of TLS itself (KeyUpdate, tickets) and no data"
MANY_EMPTY = "the peer sent more empty records in a row than anyone needs"
INVALID = "the peer chose something that was not offered or is not valid"

REFUSED = {
    "a header that announces too much": Refusal(
        # RFC 9846 section 5.2: a protected record has 2^14 + 256 bytes at most.
        lambda _: struct.pack("!BHH", 23, 0x0303, MAX_PLAINTEXT_BYTES + 257),
        Alert.record_overflow,
        TOO_LARGE,
    ),
    "a byte too much inside": Refusal(
        lambda client: client.seal.record(bytes(MAX_PLAINTEXT_BYTES + 1)),
        Alert.record_overflow,
        TOO_LARGE,
    ),
    "garbage": Refusal(
        lambda _: b"\x17\x03\x03\x00\x40" + os.urandom(64), Alert.bad_record_mac, UNDECRYPTABLE
    ),
    "a replayed record": Refusal(
        lambda client: client.seal.record(b"") * 2, Alert.bad_record_mac, UNDECRYPTABLE
    ),
    "an unprotected message": Refusal(
        lambda _: b"\x16\x03\x03\x00\x05\x18\x00\x00\x01\x00",
        Alert.unexpected_message,
        OUT_OF_ORDER,
    ),
    "an unknown type": Refusal(
        lambda client: client.seal.record(b"x", HEARTBEAT), Alert.unexpected_message, OUT_OF_ORDER
    ),
    "an empty handshake record": Refusal(
        # RFC 9846 section 5.1: not allowed, even with padding.
        lambda client: client.seal.record(b"", HANDSHAKE),
        Alert.unexpected_message,
        OUT_OF_ORDER,
    ),
    "a flood of empty records": Refusal(
        lambda client: b"".join(client.seal.record(b"") for _ in range(ALLOWED_IN_A_ROW + 1)),
        Alert.unexpected_message,
        MANY_EMPTY,
    ),
    "a KeyUpdate that is none": Refusal(
        lambda client: client.seal.record(b"\x18\x00\x00\x01\x07", HANDSHAKE),
        Alert.illegal_parameter,
        INVALID,
    ),
    "a flood of KeyUpdates": Refusal(
        lambda client: b"".join(client.seal.key_update() for _ in range(ALLOWED_IN_A_ROW + 1)),
        Alert.unexpected_message,
        FLOOD,
    ),
    "a flood of KeyUpdates that ask for more": Refusal(
        lambda client: b"".join(
            client.seal.key_update(request_update=True) for _ in range(ALLOWED_IN_A_ROW + 1)
        ),
        Alert.unexpected_message,
        FLOOD,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_breaks_the_protocol_ends_the_session_with_its_alert(
    echo: Callable[..., Any], identities: Any, name: str
) -> None:
    refusal = REFUSED[name]
    with (
        echo(identities.ec) as server,
        HostileClient(server.address, identities.anchors) as attacker,
    ):
        assert isinstance(server.outcome(), NegotiatedSession)
        attacker.send(refusal.records(attacker))
        refused = server.outcome()
        assert type(refused) is PeerMisbehaved
        assert (refused.alert_sent, refused.problem) == (refusal.alert, refusal.problem)
        with pytest.raises(AlertReceived) as told:
            attacker.receive()
        assert told.value.alert_received is refusal.alert
        assert_served(server, identities)


SERVED: dict[str, Callable[[HostileClient], bytes]] = {
    "an empty record": lambda client: client.seal.record(b""),
    "as many empty records as are allowed": lambda client: b"".join(
        client.seal.record(b"") for _ in range(ALLOWED_IN_A_ROW)
    ),
    "empty records with padding": lambda client: client.seal.record(b"", padding_bytes=9000),
    "as many KeyUpdates as are allowed": lambda client: b"".join(
        client.seal.key_update() for _ in range(ALLOWED_IN_A_ROW)
    ),
    "KeyUpdates that ask for one": lambda client: b"".join(
        client.seal.key_update(request_update=True)
        for _ in range(ALLOWED_IN_A_ROW // 2)  # the answers count too
    ),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_is_odd_but_allowed_is_served(
    echo: Callable[..., Any], identities: Any, name: str
) -> None:
    with (
        echo(identities.ec) as server,
        HostileClient(server.address, identities.anchors) as client,
    ):
        for turn in range(4):  # what is allowed in a row is allowed again after data
            text = b"turn %d" % turn
            client.send(SERVED[name](client), client.seal.record(text))
            received = b""
            while len(received) < len(text):
                received += client.receive()
            assert received == text
        client.say_close_notify()
        assert isinstance(server.outcome(), NegotiatedSession)
        assert server.outcome() == "end"


def test_a_record_of_the_greatest_size_is_served(echo: Callable[..., Any], identities: Any) -> None:
    text = os.urandom(MAX_PLAINTEXT_BYTES)
    with (
        echo(identities.ec) as server,
        HostileClient(server.address, identities.anchors) as client,
    ):
        client.send(client.seal.record(text, padding_bytes=0))
        received = b""
        while len(received) < len(text):
            received += client.receive()
        assert received == text


def dribble(raw: socket.socket, data: bytes) -> None:
    for position in range(len(data)):
        raw.sendall(data[position : position + 1])


def test_a_client_that_sends_byte_by_byte_is_served(
    echo: Callable[..., Any], identities: Any
) -> None:
    with (
        echo(identities.ec) as server,
        HostileClient(server.address, identities.anchors, send=dribble) as client,
    ):
        assert isinstance(server.outcome(), NegotiatedSession)
        dribble(client.socket, client.seal.record(b"slow but honest"))
        assert client.receive() == b"slow but honest"
        # And with a record half sent, others are served.
        record = client.seal.record(b"in two halves")
        client.send(record[:20])
        assert_served(server, identities)
        client.send(record[20:])
        assert client.receive() == b"in two halves"
        client.say_close_notify()
        assert server.outcome() == "end"
