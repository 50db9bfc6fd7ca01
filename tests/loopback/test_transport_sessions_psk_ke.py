"""A client that would resume without a key exchange, and nothing else, gets a full handshake.

It is tlslite-ng: OpenSSL always offers psk_dhe_ke as well.
"""

from __future__ import annotations

import socket
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import transport
from interop.wire import handshake as hs

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Echo, Identities

with warnings.catch_warnings():  # it imports asyncore, which Python is giving up
    warnings.simplefilter("ignore", DeprecationWarning)
    from tlslite.api import HandshakeSettings, TLSConnection

RESUMING = transport.get_policy("2026-11-tls13-resumption")
DEADLINE_SECONDS = 20.0
MODES = {"psk_ke": 0, "psk_dhe_ke": 1}  # RFC 9846 section 4.3.9


class Recording:
    """A socket that keeps what is sent."""

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self.sent = bytearray()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def send(self, data: bytes) -> int:
        count = self._raw.send(data)
        self.sent += data[:count]
        return count


def session_with(server: Echo, mode: str, earlier: Any = None) -> tuple[Any, bool]:
    """Exchange a byte, offering `earlier` in one mode; return the session and what we saw."""
    settings = HandshakeSettings()
    settings.minVersion = settings.maxVersion = (3, 4)
    settings.psk_modes = [mode]
    with socket.create_connection(server.address, timeout=DEADLINE_SECONDS) as raw:
        recording = Recording(raw)
        client = TLSConnection(recording)
        client.handshakeClientCert(settings=settings, session=earlier, serverName="localhost")
        client.write(b"x")
        assert client.read(1, 1) == b"x"
        client.close()
    hello = hs.parse_client_hello(
        bytes(recording.sent[5 : 5 + int.from_bytes(recording.sent[3:5], "big")])
    )
    assert hello.psk_key_exchange_modes == (MODES[mode],)
    assert (hello.pre_shared_keys is not None) == (earlier is not None)
    proof = server.outcome()
    assert isinstance(proof, transport.NegotiatedSession)
    assert server.outcome() == "end"
    assert client.resumed == proof.resumed
    return client.session, proof.resumed


@pytest.mark.parametrize("mode", ["psk_dhe_ke", "psk_ke"])
def test_only_an_offer_with_a_key_exchange_is_taken(
    mode: str, echo: Callable[..., Any], identities: Identities
) -> None:
    with echo(identities.ec, policy=RESUMING) as server:
        session, resumed = session_with(server, mode)
        assert not resumed
        assert session.tickets
        assert session_with(server, mode, session)[1] == (mode == "psk_dhe_ke")
