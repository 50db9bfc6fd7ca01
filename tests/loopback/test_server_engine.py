"""Both engines of a worker, in this process: limits, deadlines, credentials, drain."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from running_engines import DEADLINE_SECONDS, Recorded, dialer, round_trip, run_engine

import transport
from certs.credential import Credential, TrustAnchors
from transport.applications import echo, echo_blocking, serve_page, serve_page_blocking
from transport.errors import (
    AlertDescription,
    AlertReceived,
    APIMisuse,
    PolicyViolation,
    TruncatedStream,
)
from transport.server import (
    CredentialFiles,
    Engine,
    Limits,
    ServedCredential,
    ServerSettings,
    UnknownName,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Start = Any  # contextmanager factory: start(handler pair, credentials, **settings) -> Running


@pytest.fixture(params=[Engine.ASYNCIO, Engine.BLOCKING])
def start(request: pytest.FixtureRequest, identities: Any) -> Start:
    """Start a server: ``with start((asyncio handler, blocking handler), **settings) as server``."""

    @contextmanager
    def begin(handlers: tuple[Any, Any] = (echo, echo_blocking), **options: Any) -> Iterator[Any]:
        log = Recorded()
        options.setdefault("credentials", (ServedCredential(identities.ec),))
        # Short, so that a test that leaves a connection behind ends soon.
        options.setdefault("limits", Limits(drain_seconds=0.5, idle_timeout_seconds=None))
        settings = ServerSettings(
            handler=handlers[request.param is Engine.BLOCKING],
            engine=request.param,
            log=log,
            **options,
        )
        with run_engine(request.param, settings, log) as running:
            yield running

    return begin


@pytest.fixture
def dial(identities: Any) -> Callable[..., transport.TLSSocket]:
    return dialer(identities.anchors)


# Limits


def test_the_connection_cap_refuses_and_recovers(start: Start, dial: Any) -> None:
    with start(limits=Limits(max_connections=2, drain_seconds=0.5)) as server:
        first, second = dial(server.address), dial(server.address)
        round_trip(first)
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset if we were slower
            dial(server.address)
        (refusal,) = server.log.wait_for("refused")
        assert refusal["reason"] == "too many connections"
        round_trip(second)
        first.close()
        server.until_open(1)
        with dial(server.address) as third:
            round_trip(third)
        second.close()


def test_the_cap_of_an_address_leaves_others_alone(start: Start, dial: Any) -> None:
    limits = Limits(max_connections_per_address=1, drain_seconds=0.5)
    with start(limits=limits) as server:
        with dial(server.address):
            with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset if we were slower
                dial(server.address)
            assert server.log.wait_for("refused")[0]["reason"] == (
                "too many connections from this address"
            )
            with dial(server.address, source="127.0.0.2") as other:
                round_trip(other)
        server.until_open(0)
        dial(server.address).close()


def test_the_handshake_rate_refuses_and_recovers(start: Start, dial: Any) -> None:
    limits = Limits(handshakes_per_second=2, handshake_burst=3, drain_seconds=0.5)
    with start(limits=limits) as server:
        for _ in range(3):
            dial(server.address).close()
        with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset if we were slower
            dial(server.address)
        assert server.log.wait_for("refused")[0]["reason"] == "too many handshakes a second"
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            with suppress(OSError):
                dial(server.address).close()
                break
            assert time.monotonic() < deadline


def test_a_refused_peer_is_told_by_an_alert(start: Start) -> None:
    with (
        start(limits=Limits(max_connections=1, drain_seconds=0.5)) as server,
        socket.create_connection(server.address),
        socket.create_connection(server.address, DEADLINE_SECONDS) as refused,
    ):
        # Nothing was sent, so nothing is reset: what arrives is what a slower client sees too.
        assert refused.recv(100) == bytes((21, 3, 3, 0, 2, 2, AlertDescription.internal_error))
        assert refused.recv(100) == b""


# Deadlines


def test_a_stalled_handshake_is_cut_and_holds_up_nobody(start: Start, dial: Any) -> None:
    limits = Limits(handshake_timeout_seconds=0.4, drain_seconds=0.5)
    with start(limits=limits) as server, socket.create_connection(server.address) as stalled:
        stalled.settimeout(DEADLINE_SECONDS)
        stalled.sendall(b"\x16")
        with dial(server.address) as other:
            round_trip(other)
            (failure,) = server.log.wait_for("handshake_failed")
            assert failure["kind"] == "HandshakeTimeout"
            assert stalled.recv(100) == b""
            round_trip(other)


def test_a_handshake_that_drips_in_is_cut_at_the_same_deadline(start: Start) -> None:
    limits = Limits(handshake_timeout_seconds=0.5, drain_seconds=0.5)
    hello = bytearray()
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    hello += outgoing.read()
    with start(limits=limits) as server, socket.create_connection(server.address) as slow:
        started = time.monotonic()
        with suppress(OSError):
            for byte in hello:  # longer in all than the deadline
                slow.sendall(bytes((byte,)))
                time.sleep(0.02)  # the drip itself
                if server.log.of("handshake_failed"):
                    break
        assert server.log.wait_for("handshake_failed")[0]["kind"] == "HandshakeTimeout"
        assert time.monotonic() - started < 5


def test_an_idle_connection_is_cut_and_a_busy_one_is_not(start: Start, dial: Any) -> None:
    limits = Limits(idle_timeout_seconds=0.5, drain_seconds=0.5)
    with start(limits=limits) as server, dial(server.address) as idle:
        with dial(server.address) as busy:
            while not (cut := server.log.of("cut")):
                round_trip(busy)
                time.sleep(0.01)  # the pace of the busy one
            round_trip(busy)
        host, port = idle.getsockname()
        assert cut[0] == {"peer": f"{host}:{port}", "reason": "idle for too long"}
        with pytest.raises(TruncatedStream):
            idle.recv(1)
        server.until_open(0)
        assert len(server.log.of("cut")) == 1
        assert not server.log.of("connection_failed")


def test_a_connection_ends_with_its_lifetime_however_busy(start: Start, dial: Any) -> None:
    limits = Limits(lifetime_seconds=0.6, drain_seconds=0.5)
    with start(limits=limits) as server, dial(server.address) as connection:
        with pytest.raises(OSError):  # noqa: PT011, PT012 - cut while sending or while receiving
            while True:
                round_trip(connection)
        assert server.log.wait_for("cut")[0]["reason"] == "lifetime is over"


def test_a_peer_that_stops_reading_is_idle(start: Start, dial: Any) -> None:
    async def pour(stream: transport.TLSStream, _client: object) -> None:
        while True:
            await stream.send_all(bytes(1 << 20))

    def pour_blocking(stream: transport.TLSSocket, _client: object) -> None:
        while True:
            stream.sendall(bytes(1 << 20))

    limits = Limits(idle_timeout_seconds=0.5, drain_seconds=0.5)
    with start((pour, pour_blocking), limits=limits) as server, dial(server.address):
        assert server.log.wait_for("cut")[0]["reason"] == "idle for too long"
        server.until_open(0)


async def swallow(stream: transport.TLSStream, _client: object) -> None:
    while await stream.read(1000):
        pass


def swallow_blocking(stream: transport.TLSSocket, _client: object) -> None:
    while stream.recv(1000):
        pass


def test_a_connection_on_which_only_one_side_sends_is_not_idle(start: Start, dial: Any) -> None:
    limits = Limits(idle_timeout_seconds=0.5, drain_seconds=0.5)
    with (
        start((swallow, swallow_blocking), limits=limits) as server,
        dial(server.address) as sender,
        dial(server.address) as silent,
    ):
        for _ in range(3):
            started = time.monotonic()
            while time.monotonic() < started + 0.5:
                sender.sendall(b"more")
                time.sleep(0.01)  # the pace of the sender
        cut = server.log.wait_for("cut")
        assert [one["peer"] for one in cut] == ["{}:{}".format(*silent.getsockname())]


def page_handlers(seconds: float) -> tuple[Any, Any]:
    return serve_page(seconds), serve_page_blocking(seconds)


def test_a_head_that_drips_in_is_cut_at_its_deadline(start: Start, dial: Any) -> None:
    with start(page_handlers(0.5)) as server, dial(server.address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with suppress(OSError):
            while not server.log.of("connection_failed"):
                connection.sendall(b"A: b\r\n")
                time.sleep(0.02)  # the drip itself
        (failure,) = server.log.wait_for("connection_failed")
        assert failure["reason"] == "the head of a request was not complete in time"
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_second_request_has_its_own_deadline(start: Start, dial: Any) -> None:
    with start(page_handlers(0.4)) as server, dial(server.address) as connection:
        for _ in range(2):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4000).startswith(b"HTTP/1.1 200 ")
        time.sleep(0.6)  # longer than the deadline: between requests it does not run
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(4000).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET / HT")
        assert connection.recv(4000).startswith(b"HTTP/1.1 408 ")


# Credentials


class Named:
    """Credentials for several names, all of one authority."""

    def __init__(self) -> None:
        self.authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
        self.anchors = TrustAnchors.from_pem(self.authority.cert_pem.bytes())

    def issue(self, *names: str) -> Credential:
        leaf = self.authority.issue_cert(*names, key_type=trustme.KeyType.ECDSA)
        chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        return Credential.from_pem(chain, leaf.private_key_pem.bytes())


@pytest.fixture(scope="module")
def named() -> Named:
    return Named()


def shown_serial(connection: transport.TLSSocket) -> bytes:
    certificate = connection.negotiated.peer_certificate
    assert certificate is not None
    return certificate


@pytest.mark.parametrize("version", ["TLS 1.2", "TLS 1.3"])
def test_each_name_gets_its_credential(start: Start, dial: Any, named: Named, version: str) -> None:
    credentials = (
        ServedCredential(named.issue("default.example")),
        ServedCredential(named.issue("other.example", "*.wild.example")),
        ServedCredential(named.issue("x.wild.example")),
        ServedCredential(named.issue("file.example", "alias.example"), ("alias.example",)),
    )
    policy = transport.DEFAULT_POLICY.narrowed(versions=[version])
    with start(credentials=credentials) as server:
        for name in (
            "default.example",
            "other.example",
            "a.wild.example",
            "x.wild.example",
            "alias.example",
        ):
            with dial(
                server.address, server_hostname=name, trust_anchors=named.anchors, policy=policy
            ) as connection:
                round_trip(connection)
        # The names given replace those in the certificate: this one gets the default's.
        with pytest.raises(transport.CertificateRejected):
            dial(server.address, server_hostname="file.example", trust_anchors=named.anchors)


def test_an_unknown_name_can_be_refused(start: Start, dial: Any, named: Named) -> None:
    credentials = (ServedCredential(named.issue("a.example", "127.0.0.1")),)
    options: dict[str, Any] = {"trust_anchors": named.anchors}
    with start(credentials=credentials, unknown_name=UnknownName.REFUSE) as server:
        dial(server.address, server_hostname="a.example", **options).close()
        dial(server.address, server_hostname="127.0.0.1", **options).close()  # asks for no name
        with pytest.raises(AlertReceived) as refused:
            dial(server.address, server_hostname="b.example", **options)
        assert refused.value.alert_received is AlertDescription.unrecognized_name
        (failure,) = server.log.wait_for("handshake_failed")
        assert failure["reason"] == "the peer asked for a server name that is not served here"
        assert failure["alert_sent"] == "unrecognized_name"


def test_a_credential_handed_in_is_for_new_connections(
    start: Start, dial: Any, named: Named
) -> None:
    old, new = named.issue("localhost"), named.issue("localhost")
    with start(credentials=(ServedCredential(old),)) as server:
        with dial(server.address, trust_anchors=named.anchors) as before:
            shown = shown_serial(before)
            assert server.call("replace_credentials", (ServedCredential(new),)) is True
            with dial(server.address, trust_anchors=named.anchors) as after:
                assert shown_serial(after) != shown
                round_trip(after)
            round_trip(before)
        (loaded,) = server.log.wait_for("credential_loaded")
        assert loaded["serial"] == f"{new.leaf.serial_number:x}"


def test_a_bad_credential_keeps_the_old_one_and_says_why(
    start: Start, dial: Any, named: Named
) -> None:
    def fails() -> Credential:
        raise RuntimeError("password=hunter2")

    old = named.issue("localhost")
    with start(credentials=(ServedCredential(old),)) as server:
        assert server.call("replace_credentials", (ServedCredential(fails),)) is False
        assert server.call("replace_credentials", ()) is False
        with dial(server.address, trust_anchors=named.anchors) as connection:
            round_trip(connection)
        kept = server.log.of("credential_kept")
        assert [one["kind"] for one in kept] == ["RuntimeError", "APIMisuse"]
        assert "hunter2" not in str(kept)


def write(folder: Path, credential: Credential) -> CredentialFiles:
    files = CredentialFiles(folder / "server.pem", folder / "server.key")
    for path, content in (
        (files.certificates, credential.certificates_pem()),
        (files.private_key, credential.private_key_pem()),
    ):
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.rename(path)
    return files


def test_changed_files_are_noticed_and_half_changed_ones_too(
    start: Start, dial: Any, named: Named, tmp_path: Path
) -> None:
    first, second = named.issue("localhost"), named.issue("localhost")
    files = write(tmp_path, first)
    with start(credentials=(ServedCredential(files),), reload_check_seconds=0.05) as server:
        with dial(server.address, trust_anchors=named.anchors) as old:
            files.certificates.write_bytes(second.certificates_pem())
            (kept,) = server.log.wait_for("credential_kept")
            assert "does not belong" in str(kept["reason"])
            time.sleep(0.3)  # several looks: each change is complained about once
            assert len(server.log.of("credential_kept")) == 1
            with dial(server.address, trust_anchors=named.anchors) as still:
                assert shown_serial(still) == shown_serial(old)
            files.private_key.write_bytes(second.private_key_pem())
            server.log.wait_for("credential_loaded")
            with dial(server.address, trust_anchors=named.anchors) as new:
                assert shown_serial(new) != shown_serial(old)
            round_trip(old)
        files.private_key.unlink()
        assert "No such file" in str(server.log.wait_for("credential_kept", 2)[1]["reason"])
        dial(server.address, trust_anchors=named.anchors).close()
        assert len(server.log.of("credential_kept")) == 2  # once for each change, not each look


# Authorization


def test_only_clients_of_our_authority_reach_the_handler(
    start: Start, dial: Any, identities: Any
) -> None:
    with start(client_anchors=identities.anchors) as server:
        with dial(server.address, credential=identities.ec) as connection:
            round_trip(connection)
        for credential in (None, identities.foreign):
            with (
                pytest.raises(OSError),  # noqa: PT011 - told by an alert, or already reset
                dial(server.address, credential=credential) as refused,
            ):
                round_trip(refused)
        failures = server.log.wait_for("handshake_failed", 2)
        assert [one["kind"] for one in failures] == ["CertificateRejected"] * 2


def test_who_is_not_authorized_reaches_no_handler(start: Start, dial: Any) -> None:
    reached: list[object] = []

    def authorize(session: transport.NegotiatedSession) -> None:
        if session.server_name != "localhost":
            raise PolicyViolation("not for you", advice="ask for another name")

    async def handle(stream: transport.TLSStream, client: Any) -> None:
        reached.append(stream.negotiated.server_name)
        await echo(stream, client)

    def handle_blocking(stream: transport.TLSSocket, client: Any) -> None:
        reached.append(stream.negotiated.server_name)
        echo_blocking(stream, client)

    with start((handle, handle_blocking), authorize=authorize) as server:
        with dial(server.address) as connection:
            round_trip(connection)
        with (
            pytest.raises(OSError),  # noqa: PT011 - the kind of end is not the point
            dial(server.address, server_hostname="127.0.0.1") as refused,
        ):
            round_trip(refused)
        (failure,) = server.log.wait_for("handshake_failed")
        assert failure["reason"] == "not for you"
        assert reached == ["localhost"]


def test_a_handler_that_raises_is_one_line_without_its_text(start: Start, dial: Any) -> None:
    async def fail(_stream: object, _client: object) -> None:
        raise ValueError("hunter2")

    def fail_blocking(_stream: object, _client: object) -> None:
        raise ValueError("hunter2")

    with start((fail, fail_blocking)) as server:
        with dial(server.address) as connection, pytest.raises(TruncatedStream):
            connection.recv(1)
        (failure,) = server.log.wait_for("handler_failed")
        assert failure["kind"] == "ValueError"
        assert "hunter2" not in str(failure)
        server.until_open(0)


def test_an_error_of_files_or_of_other_connections_is_the_handlers(start: Start, dial: Any) -> None:
    errors = [
        FileNotFoundError(2, "No such file or directory", "page.html"),
        ConnectionRefusedError(111, "Connection refused"),  # a database's
        APIMisuse("a wrong call", advice="make another"),
    ]

    async def fail(stream: transport.TLSStream, _client: object) -> None:
        raise errors[int(await stream.readline())]

    def fail_blocking(stream: transport.TLSSocket, _client: object) -> None:
        raise errors[int(stream.recv(10))]

    with start((fail, fail_blocking)) as server:
        for number, error in enumerate(errors):
            with dial(server.address) as connection:
                connection.sendall(b"%d\n" % number)
                with pytest.raises(TruncatedStream):
                    connection.recv(1)
            failures = server.log.wait_for("handler_failed", number + 1)
            assert failures[number]["kind"] == type(error).__name__
        assert not server.log.of("connection_failed")


def test_a_task_cancelled_before_its_first_step_leaves_no_connection(
    dial: Any, identities: Any
) -> None:
    log = Recorded()
    settings = ServerSettings(handler=echo, log=log, credentials=(ServedCredential(identities.ec),))

    def make(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        if coroutine.__qualname__ == "ServerEngine._serve":
            task.cancel()
        return task

    with run_engine(Engine.ASYNCIO, settings, log) as server:
        assert server.loop is not None
        server.loop.call_soon_threadsafe(server.loop.set_task_factory, make)
        with dial(server.address) as connection, pytest.raises(TruncatedStream):
            connection.recv(1)
        server.until_open(0)


# Drain


async def two_lines(stream: transport.TLSStream, _client: object) -> None:
    """Answer a line, and another one: between them a response is half done."""
    await stream.readline()
    await stream.send_all(b"first\n")
    await stream.readline()
    await stream.send_all(b"second\n")


def two_lines_blocking(stream: transport.TLSSocket, _client: object) -> None:
    stream.recv(100)
    stream.sendall(b"first\n")
    stream.recv(100)
    stream.sendall(b"second\n")


def test_a_drain_finishes_what_is_open_and_accepts_nothing(start: Start, dial: Any) -> None:
    limits = Limits(drain_seconds=DEADLINE_SECONDS)
    with start((two_lines, two_lines_blocking), limits=limits) as server:
        connection = dial(server.address)
        connection.sendall(b"go\n")
        assert connection.recv(100) == b"first\n"
        draining = threading.Thread(target=server.call, args=("drain",))
        draining.start()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:  # until the listening socket is closed
            try:
                socket.create_connection(server.address).close()
            except ConnectionRefusedError:
                break
            except ConnectionResetError:
                pass  # in the queue when it was closed
            time.sleep(0.02)  # at full speed the closed connections would fill the queue
            assert time.monotonic() < deadline
        assert draining.is_alive()
        connection.sendall(b"go\n")
        assert connection.recv(100) == b"second\n"
        assert connection.recv(100) == b""
        draining.join(DEADLINE_SECONDS)
        assert not draining.is_alive()
        assert not server.log.of("cut")
        connection.close()
        server.engine.drain = lambda: None if server.loop is None else asyncio.sleep(0)


def test_a_drain_closes_idle_connections_properly_and_at_once(start: Start, dial: Any) -> None:
    limits = Limits(drain_seconds=DEADLINE_SECONDS)
    with start(limits=limits) as server:
        connection = dial(server.address)
        round_trip(connection)
    assert connection.recv(100) == b""  # close_notify, and `start` did not take its 20 seconds
    connection.close()
    assert not server.log.of("cut")
    assert not server.log.of("connection_failed")


def test_what_does_not_finish_is_cut_at_the_drain_deadline(start: Start, dial: Any) -> None:
    with start((two_lines, two_lines_blocking), limits=Limits(drain_seconds=0.3)) as server:
        connection = dial(server.address)
        connection.sendall(b"go\n")
        assert connection.recv(100) == b"first\n"
    with pytest.raises(TruncatedStream):
        connection.recv(100)
    connection.close()
    assert [one["reason"] for one in server.log.of("cut")] == ["not finished when draining ended"]


def test_a_handshake_that_does_not_finish_ends_with_the_drain(start: Start) -> None:
    with start(limits=Limits(drain_seconds=0.3)) as server:
        silent = socket.create_connection(server.address)
        server.until_open(1)
    silent.settimeout(DEADLINE_SECONDS)
    assert silent.recv(100) == b""
    silent.close()
    assert [one["reason"] for one in server.log.of("cut")] == ["not finished when draining ended"]
    assert server.engine.open_connections == 0


@pytest.mark.parametrize("waiting", [1, 200])
def test_a_drain_resets_nobody_who_has_connected(start: Start, waiting: int) -> None:
    with ExitStack() as stack:
        with start(limits=Limits(drain_seconds=0.1)) as server:
            if server.loop is not None:
                server.loop.call_soon_threadsafe(time.sleep, 0.5)  # so that it accepts nobody yet
            clients = [
                stack.enter_context(socket.create_connection(server.address, DEADLINE_SECONDS))
                for _ in range(waiting)
            ]
        for client in clients:
            while client.recv(1000):  # an alert perhaps, and the end, but no reset
                pass


def test_a_drain_accepts_no_more_than_fit_in_a_queue(
    monkeypatch: pytest.MonkeyPatch, identities: Any
) -> None:
    monkeypatch.setattr("transport.acceptor.MOST_QUEUED", 64)  # and 200 wait
    settings = ServerSettings(
        handler=echo,
        log=Recorded(),
        credentials=(ServedCredential(identities.ec),),
        limits=Limits(drain_seconds=0.1),
    )
    reset = 0
    with ExitStack() as stack:
        with run_engine(Engine.ASYNCIO, settings, Recorded()) as server:
            assert server.loop is not None
            go_on = threading.Event()  # until then it accepts nobody
            server.loop.call_soon_threadsafe(go_on.wait, DEADLINE_SECONDS)
            clients = [
                stack.enter_context(socket.create_connection(server.address, DEADLINE_SECONDS))
                for _ in range(200)
            ]
            threading.Timer(0.5, go_on.set).start()  # when the drain has been asked for
        for client in clients:
            try:
                client.recv(1000)
            except ConnectionResetError:
                reset += 1
    assert reset > 0
