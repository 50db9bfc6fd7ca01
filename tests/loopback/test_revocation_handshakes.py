"""Revocation in live handshakes: lists and staples, both engines and versions, reload, resumption.

The policies below are narrowed to one version each: on TLS 1.3 a client learns of its refusal at
its first read, on TLS 1.2 within the handshake.
"""

from __future__ import annotations

import os
import queue
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from revocation_world import NOW, WEEK, World, make_world

import transport
from certs.errors import UnusableCRL, UnusableOCSPResponse
from certs.ocsp import CertificateStatus, StatusProof, read_own_staple
from certs.revocation import RevocationLists
from transport.connection import TLSCore
from transport.context import client_context, server_context
from transport.errors import AlertDescription, AlertReceived, APIMisuse, CertificateRejected
from transport.policy import ProtocolVersion
from transport.revocation import CRLFiles, StaplePolicy
from transport.sessions import ClientSessions
from transport.stapling import Stapler, seconds_until_refresh

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


DEADLINE_SECONDS = 20.0
SOMEBODY_ELSE = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
VERSIONS = [ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3]
RESUMING = transport.get_policy("2026-11-tls13-resumption")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def narrowed(version: ProtocolVersion) -> transport.SecurityPolicy:
    return transport.DEFAULT_POLICY.narrowed(versions=[version])


def refused_client(address: tuple[str, int], **options: Any) -> AlertReceived:
    """Connect as a client that is refused, which on TLS 1.3 shows at the first read."""

    def attempt() -> None:
        with transport.connect(address, server_hostname="localhost", **options) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.recv(1)

    with pytest.raises(AlertReceived) as caught:
        attempt()
    return caught.value


# Clients and lists of them


@pytest.mark.parametrize("version", VERSIONS)
def test_a_revoked_client_is_refused_and_another_is_served(
    echo: Any, exchange: Any, world: World, version: ProtocolVersion
) -> None:
    policy = narrowed(version)
    lists = RevocationLists(world.crl(world.client))
    options = {"client_anchors": world.anchors, "policy": policy, "client_crls": lists}
    asking = {"trust_anchors": world.anchors, "policy": policy}
    with echo(world.server, **options) as server:
        alert = refused_client(server.address, credential=world.client, **asking)
        assert alert.alert_received is AlertDescription.certificate_revoked
        refusal = server.outcome()
        assert isinstance(refusal, CertificateRejected)
        assert "is revoked" in refusal.problem
        assert refusal.alert_sent is AlertDescription.certificate_revoked
        served = exchange(
            server.address,
            b"hello",
            server_hostname="localhost",
            credential=world.other_client,
            **asking,
        )
        assert served.received == b"hello"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda world: world.crl(start=NOW - 2 * WEEK), "ended"),
        (lambda world: world.crl(start=NOW + WEEK), "future"),
        (lambda world: forged_crl(world.authority.subject), "not signed by its key"),
        (lambda _world: forged_crl(SOMEBODY_ELSE), "no CRL"),
    ],
    ids=["expired", "not yet valid", "forged", "missing"],
)
def test_without_a_list_that_counts_every_client_is_refused(
    echo: Any, world: World, version: ProtocolVersion, make: Callable[[World], bytes], words: str
) -> None:
    policy = narrowed(version)
    lists = RevocationLists(make(world))
    options = {"client_anchors": world.anchors, "policy": policy, "client_crls": lists}
    with echo(world.server, **options) as server:
        alert = refused_client(
            server.address, credential=world.client, trust_anchors=world.anchors, policy=policy
        )
        assert alert.alert_received is AlertDescription.certificate_unknown
        refusal = server.outcome()
        assert isinstance(refusal, CertificateRejected)
        assert words in refusal.problem


def forged_crl(issuer: x509.Name) -> bytes:
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(NOW)
        .next_update(NOW + WEEK)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("options", "alert", "words"),
    [
        ({"usage": CLIENT, "days": -5}, AlertDescription.certificate_expired, "expired"),
        ({"usage": CLIENT, "days": 5}, AlertDescription.bad_certificate, "not yet valid"),
        ({"usage": SERVER}, AlertDescription.unsupported_certificate, "purpose"),
    ],
    ids=["expired", "not yet valid", "for a server"],
)
def test_a_bad_client_certificate_is_refused_for_one_clear_reason(
    echo: Any,
    world: World,
    version: ProtocolVersion,
    options: dict[str, Any],
    alert: AlertDescription,
    words: str,
) -> None:
    policy = narrowed(version)
    serving = {"client_anchors": world.anchors, "policy": policy}
    asking = {"trust_anchors": world.anchors, "policy": policy}
    with echo(world.server, **serving) as server:
        refused = refused_client(server.address, credential=world.issue(**options), **asking)
        assert refused.alert_received is alert
        refusal = server.outcome()
        assert isinstance(refusal, CertificateRejected)
        assert words in refusal.problem
        good = world.issue(usage=CLIENT)
        with transport.connect(
            server.address, server_hostname="localhost", credential=good, **asking
        ) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"


def test_lists_without_anchors_or_of_another_type_are_a_mistake(world: World) -> None:
    lists = RevocationLists(world.crl())
    with pytest.raises(APIMisuse, match="nobody"):
        server_context(world.server, transport.DEFAULT_POLICY, client_crls=lists)
    with pytest.raises(APIMisuse, match="crls is a"):
        client_context(world.anchors, transport.DEFAULT_POLICY, crls="list.pem")  # type: ignore[arg-type] # on purpose


# Servers and lists of them


@pytest.mark.parametrize("version", VERSIONS)
def test_a_revoked_server_is_refused(
    echo: Any, exchange: Any, world: World, version: ProtocolVersion
) -> None:
    asking = {
        "trust_anchors": world.anchors,
        "policy": narrowed(version),
        "server_hostname": "localhost",
    }
    with echo(world.server) as server:
        good = RevocationLists(world.crl(world.client))
        assert exchange(server.address, b"hello", crls=good, **asking).received == b"hello"
        assert isinstance(server.outcome(), transport.NegotiatedSession)
        assert server.outcome() == "end"
        bad = RevocationLists(world.crl(world.server))
        with pytest.raises(CertificateRejected, match="is revoked") as caught:
            exchange(server.address, b"hello", crls=bad, **asking)
        assert caught.value.alert_sent is AlertDescription.certificate_revoked
        alert = server.outcome()
        assert isinstance(alert, AlertReceived)
        assert alert.alert_received is AlertDescription.certificate_revoked


def test_files_are_read_again_when_they_change_and_bad_ones_are_not_taken(
    world: World, tmp_path: Path
) -> None:
    path, failures = tmp_path / "list.crl", []
    path.write_bytes(world.crl())
    files = CRLFiles(path, check_seconds=3600, report=failures.append)
    first = files.lists
    files.refresh()
    assert files.lists is first
    replace(path, b"no list")
    files.refresh()
    files.refresh()
    assert [type(one) for one in failures] == [UnusableCRL]
    assert files.lists is first
    replace(path, world.crl(world.client))
    files.refresh()
    assert files.lists is not first
    with pytest.raises(FileNotFoundError):
        CRLFiles(tmp_path / "nothing")


def replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)  # noqa: PTH105 - the system call that matters here


# Resumption


def converse(client: TLSCore, server: TLSCore) -> None:
    """Finish a handshake in memory, tickets included. Raises what either side raises."""
    for _ in range(6):
        for core, peer in ((client, server), (server, client)):
            try:
                core.handshake()
                if core.is_established:
                    core.read(1)
            finally:
                peer.receive_data(core.data_to_send())


def test_a_session_does_not_outlive_a_revocation_on_the_server(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "list.crl"
    path.write_bytes(world.crl())
    files = CRLFiles(path, check_seconds=3600)
    server = server_context(world.server, RESUMING, client_anchors=world.anchors, client_crls=files)
    client = client_context(world.anchors, RESUMING, credential=world.client)
    sessions = ClientSessions()
    assert not run(client, server, sessions).negotiated.resumed
    assert run(client, server, sessions).negotiated.resumed  # the control
    replace(path, world.crl(world.client))
    files.refresh()
    with pytest.raises(CertificateRejected, match="is revoked"):
        run(client, server, sessions)
    # The same lists in a new context, which is what a server's reload makes: no session, and a
    # full handshake that is refused.
    fresh = server_context(world.server, RESUMING, client_anchors=world.anchors, client_crls=files)
    with pytest.raises(CertificateRejected, match="is revoked"):
        run(client, fresh, sessions)


def test_a_session_does_not_outlive_a_revocation_on_the_client(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "list.crl"
    path.write_bytes(world.crl())
    files = CRLFiles(path, check_seconds=3600)
    server = server_context(world.server, RESUMING)
    client = client_context(world.anchors, RESUMING, crls=files)
    sessions = ClientSessions()
    assert not run(client, server, sessions).negotiated.resumed
    assert run(client, server, sessions).negotiated.resumed  # the control
    replace(path, world.crl(world.server))
    files.refresh()
    with pytest.raises(CertificateRejected, match="is revoked"):
        run(client, server, sessions)


def test_a_session_is_not_taken_where_servers_are_checked_otherwise(world: World) -> None:
    server = server_context(world.server, RESUMING)
    sessions = ClientSessions()
    for options, resumed in (
        ({}, False),
        ({}, True),
        ({"crls": RevocationLists(world.crl())}, False),
        ({"staples": StaplePolicy.IGNORE}, False),
    ):
        client = client_context(world.anchors, RESUMING, **options)  # type: ignore[arg-type] # varied
        assert run(client, server, sessions).negotiated.resumed is resumed


def run(client: Any, server: Any, sessions: ClientSessions) -> TLSCore:
    from transport.sessions import connection_tickets  # noqa: PLC0415 - one use

    tickets = connection_tickets(sessions, client, address="memory", server_hostname="localhost")
    ours = TLSCore(client, None, server_hostname="localhost", tickets=tickets)
    theirs = TLSCore(server, None)
    converse(ours, theirs)
    ours.close_notify()
    theirs.receive_data(ours.data_to_send())
    theirs.close_notify()
    return ours


# Staples


@pytest.mark.parametrize("version", VERSIONS)
def test_a_good_staple_is_served_and_taken(
    echo: Any, exchange: Any, world: World, version: ProtocolVersion
) -> None:
    asking = {
        "trust_anchors": world.anchors,
        "policy": narrowed(version),
        "server_hostname": "localhost",
        "staples": StaplePolicy.REQUIRE,
    }
    with echo(world.server, ocsp_staple=world.staple(world.server)) as server:
        assert exchange(server.address, b"hello", **asking).received == b"hello"
    with echo(world.server) as server:  # the control: nothing is stapled
        with pytest.raises(CertificateRejected, match="stapled no OCSP response") as caught:
            exchange(server.address, b"hello", **asking)
        assert caught.value.alert_sent is AlertDescription.bad_certificate_status_response
        alert = server.outcome()
        assert isinstance(alert, AlertReceived)
        assert alert.alert_received is AlertDescription.bad_certificate_status_response


# Garbage, and a response for another certificate, the library of our servers would not send: see
# the tests with other stacks for these.
BAD_STAPLES: dict[str, tuple[Callable[[World], bytes], str]] = {
    "expired": (lambda world: world.staple(world.server, start=NOW - 2 * WEEK), "ended"),
    "future": (lambda world: world.staple(world.server, start=NOW + WEEK), "future"),
    "revoked": (
        lambda world: world.staple(world.server, status=CertificateStatus.REVOKED, revoked_at=NOW),
        "was revoked",
    ),
    "unknown": (
        lambda world: world.staple(world.server, status=CertificateStatus.UNKNOWN),
        "does not know",
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", BAD_STAPLES)
def test_a_bad_staple_ends_the_handshake(world: World, version: ProtocolVersion, case: str) -> None:
    from transport.openssl_peers import set_staple  # noqa: PLC0415 - what no server of ours does

    make, words = BAD_STAPLES[case]
    policy = narrowed(version)
    server = server_context(world.server, policy)
    staple = make(world)
    set_staple(server.context, lambda: staple)
    client = client_context(world.anchors, policy)
    ours = TLSCore(client, None, server_hostname="localhost")
    theirs = TLSCore(server, None)
    with pytest.raises(CertificateRejected, match=words) as caught:
        converse(ours, theirs)
    assert caught.value.alert_sent is AlertDescription.bad_certificate_status_response
    with pytest.raises(AlertReceived) as received:
        converse(theirs, theirs)
    assert received.value.alert_received is AlertDescription.bad_certificate_status_response
    # The control: who ignores staples connects.
    ignoring = client_context(world.anchors, policy, staples=StaplePolicy.IGNORE)
    converse(TLSCore(ignoring, None, server_hostname="localhost"), TLSCore(server, None))


def test_a_certificate_that_promises_a_staple_is_held_to_it(
    echo: Any, exchange: Any, world: World
) -> None:
    promising = world.issue(usage=SERVER, must_staple=True)
    asking = {"trust_anchors": world.anchors, "server_hostname": "localhost"}
    with echo(promising) as server:
        with pytest.raises(CertificateRejected, match="one is required"):
            exchange(server.address, b"hello", **asking)
        done = exchange(server.address, b"hello", staples=StaplePolicy.IGNORE, **asking)
        assert done.received == b"hello"
    with echo(promising, ocsp_staple=world.staple(promising)) as server:
        assert exchange(server.address, b"hello", **asking).received == b"hello"


# Our own staples


def test_a_staple_in_bytes_that_proves_nothing_is_a_mistake(world: World) -> None:
    with pytest.raises(UnusableOCSPResponse, match="another certificate"):
        server_context(
            world.server, transport.DEFAULT_POLICY, ocsp_staple=world.staple(world.client)
        )


def test_a_file_is_read_again_when_it_changes_and_a_bad_one_keeps_the_old(
    world: World, tmp_path: Path
) -> None:
    path, failures = tmp_path / "staple.der", []
    first, second = (world.staple(world.server, life=days * WEEK) for days in (1, 2))
    stapler = Stapler(path, world.server, report=failures.append, file_check_seconds=3600)
    assert [type(one) for one in failures] == [FileNotFoundError]
    assert stapler.current() is None
    for content, expected, total in ((first, first, 1), (b"bad", first, 2), (second, second, 2)):
        replace(path, content)
        stapler.look_after()
        stapler.look_after()
        assert stapler.current() == expected
        assert len(failures) == total


def fresh_staple(world: World, *, life_seconds: int) -> bytes:
    now = datetime.now(UTC)
    return world.staple(world.server, start=now, life=timedelta(seconds=life_seconds))


def test_a_callable_is_called_by_a_thread_before_its_response_ends(world: World) -> None:
    responses: list[bytes] = []
    enough = threading.Event()

    def fetch() -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        responses.append(fresh_staple(world, life_seconds=4))
        if len(responses) > 2:
            enough.set()
        return responses[-1]

    stapler = Stapler(fetch, world.server)
    assert enough.wait(DEADLINE_SECONDS)
    assert stapler.current() in responses


def test_a_callable_that_fails_is_reported_and_costs_nothing(world: World) -> None:
    reported: queue.Queue[Exception] = queue.Queue()

    def fetch() -> bytes:
        raise ConnectionRefusedError("the responder is down")

    stapler = Stapler(fetch, world.server, report=reported.put)
    assert isinstance(reported.get(timeout=DEADLINE_SECONDS), ConnectionRefusedError)
    assert stapler.current() is None


def test_a_response_that_ended_is_never_stapled(world: World) -> None:
    failures: list[Exception] = []
    short = fresh_staple(world, life_seconds=4)
    stapler = Stapler(short, world.server, report=failures.append)
    ends = read_own_staple(short, world.server.chain, datetime.now(UTC)).next_update
    while stapler.current() is not None:
        assert datetime.now(UTC) < ends + timedelta(seconds=1)
    assert datetime.now(UTC) >= ends
    assert stapler.current() is None
    assert len(failures) == 1


def test_the_thread_ends_with_its_stapler(world: World) -> None:
    def threads() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "pfs-staple"}

    before = threads()
    fetched = threading.Event()

    def fetch() -> bytes:
        fetched.set()
        return world.staple(world.server)

    stapler = Stapler(fetch, world.server)
    assert fetched.wait(DEADLINE_SECONDS)
    (thread,) = threads() - before
    del stapler
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("age_hours", "failures", "expected_seconds"),
    [
        (0, 0, 3.5 * 86400),
        (24, 0, 2.5 * 86400),
        (6 * 24, 0, 12 * 3600),
        (8 * 24, 0, 1),
        (0, 1, 5),
        (0, 2, 10),
        (0, 30, 300),
    ],
)
def test_when_the_next_response_is_fetched(
    age_hours: int, failures: int, expected_seconds: float
) -> None:
    proof = StatusProof(
        status=CertificateStatus.GOOD, this_update=NOW, next_update=NOW + WEEK, produced_at=NOW
    )
    now = NOW + timedelta(hours=age_hours)
    assert seconds_until_refresh(proof, now, failures=failures) == expected_seconds
    assert seconds_until_refresh(None, now, failures=1) == 5
