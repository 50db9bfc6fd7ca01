"""A client's sessions: resumed with a fresh key exchange, and only where nothing has changed.

The client and the server are ours. What crossed is recorded by a relay between them and read by the
judge's own reader, not by either side's word.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import socket
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding

import transport
from certs.credential import Credential, TrustAnchors
from interop.wire import handshake as hs
from transport import ClientSessions, SecurityPolicy
from transport.connection import TLSCore, Want
from transport.context import client_context, server_context
from transport.policy import Resumption
from transport.sessions import Moment, connection_tickets, require_valid_certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Identities

    from transport.context import EndpointContext

RESUMING = transport.get_policy("2026-11-tls13-resumption")
DEADLINE_SECONDS, HOUR_SECONDS = 20.0, 3600
HANDSHAKE_RECORD, PSK_DHE_KE = 22, 1
HELLO = b"hello"


class Clock:
    """Two clocks that stand still until they are moved."""

    def __init__(self) -> None:
        self.now = Moment(1000.0, datetime.now(UTC).timestamp())

    def __call__(self) -> Moment:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now = Moment(self.now.elapsed_seconds + seconds, self.now.wall_seconds + seconds)


class Wire:
    """A relay that keeps the bytes of each connection: of the client, and of the server."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.connections: list[tuple[bytearray, bytearray]] = []
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.upstream)
                self._sockets += (client, server)
                kept = (bytearray(), bytearray())
                self.connections.append(kept)
                for source, sink, copy in ((client, server, kept[0]), (server, client, kept[1])):
                    thread = threading.Thread(target=self._pump, args=(source, sink, copy))
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                copy += data
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def hellos(self, number: int) -> tuple[hs.ClientHello, hs.ServerHello]:
        client, server = self.connections[number]
        return hs.parse_client_hello(first_message(client)), hs.parse_server_hello(
            first_message(server)
        )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._acceptor, *self._threads):
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
        for one in self._sockets:
            one.close()


def first_message(flight: bytes | bytearray) -> bytes:
    """Return the message in the first record, which it has to itself in these handshakes."""
    assert flight[0] == HANDSHAKE_RECORD
    return bytes(flight[5 : 5 + int.from_bytes(flight[3:5], "big")])


@contextmanager
def recorded(address: tuple[str, int]) -> Iterator[Wire]:
    wire = Wire(address)
    try:
        yield wire
    finally:
        wire.close()


@pytest.fixture
def resumed(exchange: Callable[..., Any], identities: Identities) -> Callable[..., bool]:
    """Exchange a few bytes with a server; return whether that session was a resumed one."""

    def run(address: tuple[str, int], sessions: ClientSessions | None, **changes: Any) -> bool:
        options: dict[str, Any] = {
            "trust_anchors": identities.anchors,
            "server_hostname": "localhost",
            "policy": RESUMING,
            "sessions": sessions,
        }
        result = exchange(address, HELLO, **(options | changes))
        assert result.received == HELLO
        return bool(result.negotiated.resumed)

    return run


# Resumed, with a key exchange


def test_a_resumed_session_has_a_key_exchange_of_its_own_on_the_wire(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Identities
) -> None:
    options = {
        "trust_anchors": identities.anchors,
        "server_hostname": "localhost",
        "policy": RESUMING,
        "sessions": ClientSessions(),
    }
    with echo(identities.ec, policy=RESUMING) as server, recorded(server.address) as wire:
        proofs = [exchange(wire.address, HELLO, **options).negotiated for _ in range(3)]
        seen_by_server = []
        while len(seen_by_server) < 3:
            outcome = server.outcome()
            if outcome != "end":
                seen_by_server.append(outcome)
    assert [proof.resumed for proof in proofs] == [False, True, True]
    assert [proof.resumed for proof in seen_by_server] == [False, True, True]
    assert {proof.group for proof in proofs} == {"X25519MLKEM768"}
    assert len({proof.peer_certificate for proof in proofs}) == 1
    hellos = [wire.hellos(number) for number in range(3)]
    offers = [client for client, _server in hellos]
    assert [offer.pre_shared_keys is None for offer in offers] == [True, False, False]
    for offer in offers[1:]:
        assert offer.psk_key_exchange_modes == (PSK_DHE_KE,)
        assert not offer.early_data
    shares = [share.key_exchange for offer in offers for share in offer.key_shares]
    shares += [server.key_share.key_exchange for _client, server in hellos if server.key_share]
    assert len(shares) == len(offers) * len(offers[0].key_shares) + len(hellos)
    assert all(shares)
    assert len(set(shares)) == len(shares)


def test_a_ticket_is_offered_once(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions()
    with echo(identities.ec, policy=RESUMING) as server, recorded(server.address) as wire:
        for _ in range(5):
            resumed(wire.address, sessions)
        offers = [wire.hellos(number)[0].pre_shared_keys for number in range(5)]
    assert offers[0] is None
    tickets = [identity.identity for offer in offers[1:] if offer for identity in offer.identities]
    assert len(tickets) == 4
    assert len(set(tickets)) == 4


def test_every_ticket_of_a_connection_is_kept(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions()
    with echo(identities.ec, policy=RESUMING) as server:
        assert not resumed(server.address, sessions)
        assert len(sessions) == 2  # as many as OpenSSL sends
        # One is spent, and a resumed session brings one more.
        assert resumed(server.address, sessions)
        assert len(sessions) == 2


def test_without_sessions_nothing_is_offered(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    with echo(identities.ec, policy=RESUMING) as server, recorded(server.address) as wire:
        for number in range(2):
            assert not resumed(wire.address, None)
            assert wire.hellos(number)[0].pre_shared_keys is None


def test_a_client_that_only_sends_takes_its_tickets_at_the_end(
    echo: Callable[..., Any], identities: Identities
) -> None:
    sessions = ClientSessions()
    options: dict[str, Any] = {
        "trust_anchors": identities.anchors,
        "server_hostname": "localhost",
        "policy": RESUMING,
        "sessions": sessions,
    }

    async def send() -> None:
        stream = await transport.open_connection(*server.address, **options)
        async with stream:
            stream.write(HELLO)

    with echo(identities.ec, policy=RESUMING) as server:
        with transport.connect(server.address, **options) as connection:
            connection.sendall(HELLO)
        assert len(sessions) == 2
        sessions.clear()
        asyncio.run(send())
        assert len(sessions) == 2


# Only where nothing has changed


@pytest.fixture
def changes(identities: Identities) -> dict[str, dict[str, Any]]:
    """Give connections that differ from the plain one in one thing that decides who is let in."""
    both = identities.anchors.certificates + identities.foreign_anchors.certificates
    rule = transport.DNSRule("localhost")
    return {
        "name": {"server_hostname": "127.0.0.1"},
        "anchors": {"trust_anchors": TrustAnchors(both)},
        "policy": {"policy": dataclasses.replace(RESUMING, session_lifetime_seconds=1800)},
        "credential": {"credential": identities.rsa},
        "authorization": {"authorization": transport.Authorization(any_of=(rule,))},
        "protocols": {"alpn_protocols": ("http/1.1",)},
    }


@pytest.mark.parametrize(
    "what", ["name", "anchors", "policy", "credential", "authorization", "protocols"]
)
def test_a_session_is_for_the_same_checks_alone(
    what: str,
    changes: dict[str, dict[str, Any]],
    echo: Callable[..., Any],
    resumed: Callable[..., bool],
    identities: Identities,
) -> None:
    sessions = ClientSessions()
    with echo(identities.ec, policy=RESUMING, alpn_protocols=("http/1.1",)) as server:
        assert not resumed(server.address, sessions)
        assert not resumed(server.address, sessions, **changes[what])
        # Both can be resumed now, each for itself.
        assert resumed(server.address, sessions, **changes[what])
        assert resumed(server.address, sessions)


def test_a_session_is_for_one_address(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions()
    with echo(identities.ec, policy=RESUMING) as server, recorded(server.address) as wire:
        assert not resumed(server.address, sessions)
        assert not resumed(wire.address, sessions)
        assert wire.hellos(0)[0].pre_shared_keys is None
        assert resumed(wire.address, sessions)


def test_authorization_is_applied_to_a_resumed_session_on_both_sides(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Identities
) -> None:
    rules = transport.Authorization(any_of=(transport.DNSRule("localhost"),))
    options: dict[str, Any] = {
        "trust_anchors": identities.anchors,
        "server_hostname": "localhost",
        "policy": RESUMING,
        "credential": identities.rsa,
        "sessions": ClientSessions(),
    }
    with echo(
        identities.ec,
        policy=RESUMING,
        client_anchors=identities.anchors,
        authorization=rules,
    ) as server:
        exchange(server.address, HELLO, **options)
        assert exchange(server.address, HELLO, **options).negotiated.resumed
        proofs = [server.outcome() for _ in range(4)]
        assert "end" in proofs
        client = identities.rsa.leaf.public_bytes(Encoding.DER)
        for proof in proofs:
            assert proof == "end" or proof.peer_certificate == client
        with transport.connect(server.address, **options, authorization=rules) as connection:
            assert not connection.negotiated.resumed
            connection.sendall(HELLO)
            connection.recv(1)
        with transport.connect(server.address, **options, authorization=rules) as connection:
            assert connection.negotiated.resumed
            assert connection.authorized_peer is not None
            assert connection.authorized_peer.dns_names == ("localhost",)


def test_a_server_that_has_forgotten_one_is_not_offered_its_siblings(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions()
    with (
        echo(identities.ec, policy=RESUMING) as server,
        echo(identities.ec, policy=RESUMING) as successor,
        recorded(server.address) as wire,
    ):
        assert not resumed(wire.address, sessions)
        wire.upstream = successor.address
        assert not resumed(wire.address, sessions)
        assert wire.hellos(1)[0].pre_shared_keys is not None
        assert len(sessions) == 2  # the successor's; the first server's other one is gone
        assert resumed(wire.address, sessions)


@pytest.mark.parametrize(
    "policy",
    [
        transport.get_policy(name)
        for name in transport.policy_names()
        if transport.get_policy(name).resumption is Resumption.OFF
    ],
    ids=lambda policy: policy.name,
)
async def test_a_policy_that_never_resumes_has_no_use_for_sessions(
    policy: SecurityPolicy, identities: Identities
) -> None:
    address = ("127.0.0.1", 9)  # nobody is asked
    options: dict[str, Any] = {"trust_anchors": identities.anchors, "policy": policy}
    with pytest.raises(transport.APIMisuse, match="never resumes"):
        transport.connect(address, **options, sessions=ClientSessions())
    with pytest.raises(transport.APIMisuse, match="never resumes"):
        await transport.open_connection(*address, **options, sessions=ClientSessions())


# Age


def test_a_session_is_not_offered_past_its_lifetime(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    clock = Clock()
    sessions = ClientSessions(clock=clock)
    with echo(identities.ec, policy=RESUMING) as server, recorded(server.address) as wire:
        assert not resumed(wire.address, sessions)
        clock.advance(HOUR_SECONDS - 1)
        assert resumed(wire.address, sessions)
        clock.advance(1)
        # The ticket that the resumed session brought is a second old, and dies with its lineage.
        assert not resumed(wire.address, sessions)
        assert wire.hellos(2)[0].pre_shared_keys is None


def test_the_servers_hint_counts_where_it_is_shorter(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    clock = Clock()
    sessions = ClientSessions(clock=clock)
    brief = dataclasses.replace(RESUMING, session_lifetime_seconds=60)
    with echo(identities.ec, policy=brief) as server, recorded(server.address) as wire:
        assert not resumed(wire.address, sessions)
        clock.advance(59)
        assert resumed(wire.address, sessions)
        clock.advance(60)
        assert not resumed(wire.address, sessions)
        assert wire.hellos(2)[0].pre_shared_keys is None


def test_a_session_ends_with_the_first_certificate_of_its_chain(
    echo: Callable[..., Any], resumed: Callable[..., bool]
) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", not_after=datetime.now(UTC) + timedelta(minutes=10))
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    credential = Credential.from_pem(chain, issued.private_key_pem.bytes())
    anchors = TrustAnchors.from_pem(authority.cert_pem.bytes())
    clock = Clock()
    sessions = ClientSessions(clock=clock)
    with echo(credential, policy=RESUMING) as server, recorded(server.address) as wire:
        assert not resumed(wire.address, sessions, trust_anchors=anchors)
        clock.advance(590)
        assert resumed(wire.address, sessions, trust_anchors=anchors)
        clock.advance(15)
        assert not resumed(wire.address, sessions, trust_anchors=anchors)
        assert wire.hellos(2)[0].pre_shared_keys is None
    certificate = credential.leaf.public_bytes(Encoding.DER)
    require_valid_certificate(certificate)
    with pytest.raises(transport.CertificateRejected, match="certificate ended on"):
        require_valid_certificate(certificate, datetime.now(UTC) + timedelta(minutes=11))


# What is kept


def test_the_store_is_bounded(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions(max_servers=2, max_tickets_per_server=1)
    with echo(identities.ec, policy=RESUMING) as server:
        names = ("localhost", "127.0.0.1")
        for name in names:
            assert not resumed(server.address, sessions, server_hostname=name)
        assert len(sessions) == 2
        assert resumed(server.address, sessions)
        # A third server pushes out the one that was used least recently.
        both = identities.anchors.certificates + identities.foreign_anchors.certificates
        assert not resumed(server.address, sessions, trust_anchors=TrustAnchors(both))
        assert len(sessions) == 2
        assert not resumed(server.address, sessions, server_hostname="127.0.0.1")
    with pytest.raises(transport.APIMisuse, match="no sessions"):
        ClientSessions(max_servers=0)


def test_a_closed_store_keeps_nothing(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    with echo(identities.ec, policy=RESUMING) as server:
        with ClientSessions() as sessions:
            assert not resumed(server.address, sessions)
            assert repr(sessions) == "<ClientSessions 2 tickets of 1 servers>"
            assert sessions
        assert len(sessions) == 0
        assert repr(sessions) == "<ClientSessions closed>"
        with pytest.raises(transport.APIMisuse, match="closed"):
            resumed(server.address, sessions)
        # One that is closed while a connection lasts takes none of its tickets.
        late = ClientSessions()
        with transport.connect(
            server.address,
            trust_anchors=identities.anchors,
            server_hostname="localhost",
            policy=RESUMING,
            sessions=late,
        ) as connection:
            late.close()
            connection.sendall(HELLO)
            assert connection.recv(1)
        assert len(late) == 0


def test_sessions_stay_in_their_process(
    echo: Callable[..., Any], resumed: Callable[..., bool], identities: Identities
) -> None:
    sessions = ClientSessions()
    with pytest.raises(TypeError, match="secrets"):
        pickle.dumps(sessions)
    with echo(identities.ec, policy=RESUMING) as server:
        assert not resumed(server.address, sessions)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - in another process
        os.write(writer, bytes([len(sessions)]))
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"\0"
    os.close(reader)
    assert len(sessions) == 2


@pytest.mark.parametrize("end", ["closed", "aborted", "truncated", "broken"])
def test_a_connection_that_ends_badly_takes_its_tickets_along(
    end: str, identities: Identities
) -> None:
    sessions = ClientSessions()
    raw = socket.create_server(("127.0.0.1", 0))
    with transport.wrap_listener(raw, credential=identities.ec, policy=RESUMING) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            connection.sendall(HELLO)
            assert connection.recv(1)
            if end == "truncated":
                connection.__exit__(ValueError, ValueError(), None)  # without close_notify
            else:
                connection.recv(1)
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        connection = transport.connect(
            listener.getsockname(),
            trust_anchors=identities.anchors,
            server_hostname="localhost",
            policy=RESUMING,
            sessions=sessions,
        )
        assert connection.recv(len(HELLO)) == HELLO
        assert len(sessions) == 2
        connection.sendall(HELLO)
        if end == "truncated":
            with pytest.raises(transport.TruncatedStream):
                connection.recv(1)
            assert len(sessions) == 0
            connection.close()
        elif end == "broken":
            with Path(os.devnull).open("wb") as cannot_be_read:
                os.dup2(cannot_be_read.fileno(), connection.fileno())
            with pytest.raises(OSError, match="descriptor"):
                connection.recv(1)
            assert len(sessions) == 0
            connection.close()
        elif end == "aborted":
            connection.__exit__(ValueError, ValueError(), None)
        else:
            connection.close()
        with suppress(OSError):
            thread.join(DEADLINE_SECONDS)
    assert len(sessions) == (2 if end == "closed" else 0)


# What the server checks anew


def test_a_certificate_that_ended_is_refused_although_its_session_could_be_resumed(
    echo: Callable[..., Any], exchange: Callable[..., Any], identities: Identities
) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    issued = authority.issue_cert("client.example", not_after=ends)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    options: dict[str, Any] = {
        "trust_anchors": identities.anchors,
        "server_hostname": "localhost",
        "policy": RESUMING,
        "credential": Credential.from_pem(chain, issued.private_key_pem.bytes()),
        "sessions": ClientSessions(),
    }
    anchors = TrustAnchors.from_pem(authority.cert_pem.bytes())
    with echo(identities.ec, policy=RESUMING, client_anchors=anchors) as server:
        assert not exchange(server.address, HELLO, **options).negotiated.resumed
        assert exchange(server.address, HELLO, **options).negotiated.resumed
        for _ in range(4):  # both sessions and their ends
            assert not isinstance(server.outcome(), OSError)
        time.sleep((ends - datetime.now(UTC)).total_seconds() + 0.1)  # what is tested is ageing
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset before it is read
            exchange(server.address, HELLO, **options)
        refusal = server.outcome()
    assert isinstance(refusal, transport.CertificateRejected)
    assert "certificate ended on" in str(refusal)


def test_an_authorization_is_applied_to_a_session_that_is_resumed(identities: Identities) -> None:
    admitting = server_context(identities.ec, RESUMING, client_anchors=identities.anchors)
    rule = transport.DNSRule("somebody.else.example")
    refusing = dataclasses.replace(admitting, authorization=transport.Authorization(any_of=(rule,)))
    client = client_context(identities.anchors, RESUMING, credential=identities.rsa)
    sessions = ClientSessions()

    def meet(server: EndpointContext) -> bool:
        tickets = connection_tickets(sessions, client, address="a", server_hostname="localhost")
        ours = TLSCore(server, None)
        theirs = TLSCore(client, None, server_hostname="localhost", tickets=tickets)
        for _ in range(2):
            theirs.handshake()
            ours.receive_data(theirs.data_to_send())
            ours.handshake()
            theirs.receive_data(ours.data_to_send())
        assert theirs.read(1) is Want.READ
        negotiated = ours.negotiated
        for core in (ours, theirs):
            core.close_notify()  # or the library forgets the session
            core.abandon()
        return negotiated.resumed

    assert not meet(admitting)
    assert meet(admitting)
    with pytest.raises(transport.PeerNotAuthorized):
        meet(refusing)
    # The refused one did offer a session, and this server does resume them.
    assert meet(admitting)
