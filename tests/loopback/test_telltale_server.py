"""The server that tells its ticket key and ephemeral keys, spoken to by OpenSSL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from interop.errors import InputError
from interop.peers.early_data import EarlyDataClient, EarlyDataFailed
from interop.peers.telltale import TelltaleFailed, telltale_connect
from interop.peers.telltale_server import TelltaleServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Identities

    from interop.http_exchange import ByteStream
    from interop.peers.early_data import Ticket

PAYLOAD = bytes(range(256)) * 300


def echo(connection: ByteStream) -> None:
    data = b""
    while len(data) < len(PAYLOAD):
        data += connection.recv(16384)
    connection.sendall(data[::-1])


class Telling:
    """A server, its key log, and what one client exchanges with it."""

    def __init__(self, identities: Identities, **options: bool) -> None:
        self._identities = identities
        self.key_log: list[bytes] = []
        self.server = TelltaleServer(
            identities.ec.certificates_pem(),
            identities.ec.private_key_pem(),
            echo,
            key_log=self.key_log.append,
            **options,
        )

    def exchange(
        self, *, ticket: Ticket | None = None, early: bool = False, **options: Any
    ) -> tuple[Ticket | None, bool]:
        client = EarlyDataClient(self._identities.anchors.pem(), "localhost", **options)
        data = (PAYLOAD,) if early else ()
        with client.connect(self.server.address, ticket=ticket, early_data=data) as session:
            if not early:
                session.sendall(PAYLOAD)
            received = b""
            while len(received) < len(PAYLOAD):
                received += session.recv()
            assert received == PAYLOAD[::-1]
            return session.ticket, session.resumed


@pytest.fixture
def telling(identities: Identities) -> Iterator[Telling]:
    telling = Telling(identities)
    with telling.server:
        yield telling
    assert telling.server.refused == []


def labels(lines: list[bytes]) -> list[str]:
    return [line.split()[0].decode() for line in lines]


@pytest.mark.parametrize("psk_ke", [False, True], ids=["psk_dhe_ke", "psk_ke"])
@pytest.mark.parametrize("early", [False, True], ids=["", "0-RTT"])
def test_openssl_resumes_on_tls13(telling: Telling, early: bool, psk_ke: bool) -> None:  # noqa: FBT001
    ticket, resumed = telling.exchange()
    assert not resumed
    full = len(telling.key_log)
    for _ in range(2):  # stateless: any number of times
        assert telling.exchange(ticket=ticket, early=early, psk_ke=psk_ke)[1]
    assert ("CLIENT_EARLY_TRAFFIC_SECRET" in labels(telling.key_log[full:])) is early


def test_openssl_resumes_on_tls12(telling: Telling) -> None:
    ticket, resumed = telling.exchange(version="1.2")
    assert not resumed
    assert telling.exchange(version="1.2", ticket=ticket)[1]
    assert labels(telling.key_log) == ["CLIENT_RANDOM"] * 2
    first, second = (line.split() for line in telling.key_log)
    assert first[1] != second[1]
    assert first[2] == second[2]


def test_a_ticket_of_another_server_is_none_of_its_own(
    telling: Telling, identities: Identities
) -> None:
    ticket, _ = telling.exchange()
    other = Telling(identities)
    with other.server:
        assert other.exchange(ticket=ticket)[1] is False
        with pytest.raises(EarlyDataFailed):
            other.exchange(version="1.2", ticket=telling.exchange(version="1.2")[0])
    assert "none of ours" in "".join(other.server.refused)


@pytest.mark.parametrize("reuse", [False, True])
def test_it_uses_its_key_again_if_it_is_to(identities: Identities, reuse: bool) -> None:  # noqa: FBT001
    telling = Telling(identities, reuse_key=reuse)
    with telling.server:
        used = []
        for _ in range(2):
            telling.exchange()
            used.append(telling.server.ephemeral_key.private_bytes_raw())
    assert (used[0] == used[1]) is reuse


def test_both_telltales_speak_to_each_other(telling: Telling, identities: Identities) -> None:
    with telltale_connect(
        telling.server.address, identities.anchors.pem(), "localhost", group="x25519"
    ) as session:
        session.sendall(PAYLOAD)
        received = b""
        while len(received) < len(PAYLOAD):
            received += session.recv()
        assert received == PAYLOAD[::-1]


def test_what_it_does_not_understand_it_refuses(identities: Identities) -> None:
    telling = Telling(identities)
    anchors = identities.anchors.pem()
    with (
        telling.server,
        pytest.raises(TelltaleFailed, match="ended the connection"),
        telltale_connect(telling.server.address, anchors, "localhost", group="secp256r1"),
    ):
        pass
    assert telling.server.refused == ["the client has no key share of x25519"]


def test_it_needs_a_key_that_it_can_sign_with(identities: Identities) -> None:
    with pytest.raises(InputError, match="P-256"):
        TelltaleServer(
            identities.rsa.certificates_pem(),
            identities.rsa.private_key_pem(),
            echo,
            key_log=lambda _line: None,
        )
