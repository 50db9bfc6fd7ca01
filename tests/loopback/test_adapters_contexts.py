"""Our `ssl.SSLContext` in asyncio and httpx; Python's own one with our checks; live renewal."""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import httpx
import plain_http
import pytest
import requests
import urllib3
from cryptography.hazmat.primitives.serialization import Encoding
from running_application import RunningApplication

import transport
from transport.adapters import httpx as over_httpx
from transport.adapters import requests as over_requests
from transport.adapters.asgi import TLSExtension
from transport.adapters.ssl_context import client_ssl_context, server_ssl_context
from transport.adapters.ssl_object import CertificateFailure, TLSFailure
from transport.adapters.standard_library import checked_client_context, checked_server_context
from transport.adapters.uvicorn import TLSConfig
from transport.errors import AlertDescription, APIMisuse, PolicyViolation

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE_SECONDS = 20.0
TLS_1_2 = transport.DEFAULT_POLICY.narrowed(versions=["TLS 1.2"])
TLS_1_3 = transport.DEFAULT_POLICY.narrowed(versions=["TLS 1.3"])
MAKERS = {
    "ours": (server_ssl_context, client_ssl_context),
    "Python's": (checked_server_context, checked_client_context),
}


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError:
        writer.close()


@pytest.mark.parametrize("server", list(MAKERS))
@pytest.mark.parametrize("client", list(MAKERS))
async def test_asyncio_streams_with_contexts_of_both_kinds(
    server: str, client: str, identities: Any
) -> None:
    body = bytes(range(256)) * 4096
    served = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=MAKERS[server][0](identities.ec))
    async with served, asyncio.timeout(DEADLINE_SECONDS):
        address = served.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(
            *address, ssl=MAKERS[client][1](identities.anchors), server_hostname="localhost"
        )
        negotiated = writer.get_extra_info("ssl_object").negotiated
        assert isinstance(negotiated, transport.NegotiatedSession)
        hybrid = server == client == "ours"
        assert negotiated.group == ("X25519MLKEM768" if hybrid else "secp256r1")
        writer.write(body)
        assert await reader.readexactly(len(body)) == body
        writer.close()
        await writer.wait_closed()

        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(
                *address,
                ssl=MAKERS[client][1](identities.foreign_anchors),
                server_hostname="localhost",
            )
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection(
                *address, ssl=MAKERS[client][1](identities.anchors), server_hostname="other.example"
            )


async def test_a_failure_carries_who_erred(identities: Any) -> None:
    served = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_ssl_context(identities.ec))
    async with served, asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(CertificateFailure) as failed:
            await asyncio.open_connection(
                *served.sockets[0].getsockname(),
                ssl=client_ssl_context(identities.foreign_anchors),
                server_hostname="localhost",
            )
    assert isinstance(failed.value, TLSFailure)
    assert isinstance(failed.value.transport_error, transport.CertificateRejected)


async def test_a_server_in_asyncio_sends_the_alert_that_ends_a_handshake(identities: Any) -> None:
    context = server_ssl_context(identities.ec, policy=TLS_1_3)
    served = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=context)
    async with served, asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(transport.AlertReceived, match="protocol_version"):
            await transport.open_connection(
                *served.sockets[0].getsockname(), trust_anchors=identities.anchors, policy=TLS_1_2
            )


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[object, object]:
    """Return what became of each side: its socket, or what was raised."""
    one, other = socket.socketpair()
    outcomes: list[object] = [None, None]

    def run(side: int, context: ssl.SSLContext, sock: socket.socket, **options: Any) -> None:
        sock.settimeout(DEADLINE_SECONDS)
        try:
            with context.wrap_socket(sock, **options) as connection:
                outcomes[side] = getattr(connection, "negotiated", connection.version())
        except OSError as error:
            outcomes[side] = error
        finally:
            sock.close()

    thread = threading.Thread(target=run, args=(0, server, one), kwargs={"server_side": True})
    thread.start()
    run(1, client, other, server_hostname="localhost")
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()
    return outcomes[0], outcomes[1]


def test_a_sockets_failure_is_of_the_same_family_as_that_of_an_object(identities: Any) -> None:
    served, refused = shake_hands(
        server_ssl_context(identities.ec), client_ssl_context(identities.foreign_anchors)
    )
    assert isinstance(refused, CertificateFailure)
    assert isinstance(refused, ssl.SSLCertVerificationError)
    assert isinstance(refused, transport.CertificateRejected)
    assert str(refused) == str(refused.transport_error)
    assert (refused.errno, refused.alert_sent) == (ssl.SSL_ERROR_SSL, AlertDescription.unknown_ca)
    assert copy.copy(refused).transport_error is refused.transport_error
    assert isinstance(served, TLSFailure)
    assert isinstance(served.transport_error, transport.AlertReceived)


def test_a_failure_of_a_socket_that_came_later_is_of_that_family_too(identities: Any) -> None:
    context = server_ssl_context(identities.ec, client_anchors=identities.anchors)
    raw = socket.create_server(("127.0.0.1", 0))
    with context.wrap_socket(raw, server_side=True) as listener:
        assert isinstance(listener, transport.TLSListener)
        bare = socket.create_connection(listener.getsockname(), DEADLINE_SECONDS)
        server, _ = listener.accept()
        assert server.context is context
        refusals: list[OSError] = []

        def serve() -> None:
            with pytest.raises(ssl.SSLError) as caught:
                server.recv()
            refusals.append(caught.value)
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        client = client_ssl_context(identities.anchors).wrap_socket(
            bare, server_hostname="localhost"
        )
        with pytest.raises(ssl.SSLError, match="certificate_required"):  # after the handshake
            client.recv()
        client.close()
        thread.join(DEADLINE_SECONDS)
    assert isinstance(refusals[0], CertificateFailure)


def test_an_end_and_a_timeout_are_what_the_standard_library_has_types_for(identities: Any) -> None:
    near, far = socket.socketpair()
    near.settimeout(0.1)
    context = client_ssl_context(identities.anchors)
    with pytest.raises(TimeoutError):
        context.wrap_socket(near, server_hostname="localhost")
    far.close()
    near, far = socket.socketpair()
    far.close()
    with pytest.raises(ConnectionError):
        context.wrap_socket(near, server_hostname="localhost")


@pytest.mark.parametrize(
    ("weaken", "what"),
    [
        (lambda context: setattr(context, "policy", TLS_1_2), "version"),
        (
            lambda context: setattr(
                context,
                "policy",
                TLS_1_3.narrowed(suites=["TLS_CHACHA20_POLY1305_SHA256"]),
            ),
            "suite",
        ),
    ],
)
def test_what_pythons_own_context_negotiated_is_checked(
    weaken: Callable[[Any], None], what: str, identities: Any
) -> None:
    server, client = (
        checked_server_context(identities.ec),
        checked_client_context(identities.anchors),
    )
    assert all(isinstance(one, transport.NegotiatedSession) for one in shake_hands(server, client))
    weaken(client)  # as if the library had not done what it was told
    _, refused = shake_hands(server, client)
    assert isinstance(refused, TLSFailure)
    assert isinstance(refused.transport_error, PolicyViolation)
    assert what in str(refused)


def test_tls_1_2_with_pythons_own_context_is_only_on_request(identities: Any) -> None:
    ours = client_ssl_context(identities.anchors, policy=TLS_1_2)
    _, refused = shake_hands(checked_server_context(identities.ec), ours)
    assert isinstance(refused, transport.TransportError)
    served, _ = shake_hands(checked_server_context(identities.ec, offer_tls_1_2=True), ours)
    assert isinstance(served, transport.NegotiatedSession)
    assert served.version == "TLS 1.2"
    assert not served.extended_main_secret  # not proven, so not claimed
    assert "without proof" in served.policy
    with pytest.raises(APIMisuse, match="extended main secret"):
        checked_server_context(identities.ec, policy=TLS_1_2)


def test_pythons_own_context_refuses_a_policy_that_it_cannot_carry_out(identities: Any) -> None:
    hybrid = TLS_1_3.narrowed(groups=["X25519MLKEM768"])
    with pytest.raises(APIMisuse, match="no group"):
        checked_client_context(identities.anchors, policy=hybrid)


@pytest.mark.parametrize("maker", list(MAKERS))
def test_mutual_tls_and_its_foreign_client(maker: str, identities: Any) -> None:
    make_server, make_client = MAKERS[maker]
    server = make_server(identities.ec, client_anchors=identities.anchors)
    served, _ = shake_hands(server, make_client(identities.anchors, credential=identities.rsa))
    assert isinstance(served, transport.NegotiatedSession)
    assert served.peer_certificate == identities.rsa.leaf.public_bytes(Encoding.DER)
    for credential in (None, identities.foreign):
        refused, _ = shake_hands(server, make_client(identities.anchors, credential=credential))
        assert isinstance(refused, OSError)


def test_the_scope_says_what_the_asgi_extension_says(identities: Any) -> None:
    options = {"credential": identities.ec, "client_anchors": identities.anchors}
    with (
        RunningApplication(**options) as running,
        over_httpx.client(identities.anchors, credential=identities.rsa) as client,
    ):
        responses = [client.get(running.url + path) for path in ("a", "b")]  # one connection
    assert [response.text for response in responses] == ["/a", "/b"]
    for scope in running.scopes:
        tls, session = scope["extensions"]["tls"], scope["extensions"]["pfs.negotiated"]
        assert tls["server_cert"] == identities.ec.certificates_pem().decode()
        assert [ssl.PEM_cert_to_DER_cert(pem) for pem in tls["client_cert_chain"]] == [
            session.peer_certificate
        ]
        assert tls["client_cert_name"] == identities.rsa.leaf.subject.rfc4514_string()
        assert tls["client_cert_error"] is None
        assert (tls["tls_version"], tls["cipher_suite"]) == (0x0304, 0x1301)


async def test_async_httpx_and_an_application_that_fetches_is_not_its_own_client(
    identities: Any,
) -> None:
    with RunningApplication(credential=identities.ec) as running:
        async with over_httpx.async_client(identities.anchors) as client:
            response = await client.get(running.url)
        proof = over_httpx.negotiated_session(response)
        assert proof.group == "X25519MLKEM768"

        seen: list[Any] = []

        async def application(scope: Any, _receive: Any, _send: Any) -> None:
            seen.append(scope)

        await TLSExtension(application)({"type": "http"}, None, None)  # type: ignore[arg-type]
        assert seen == [{"type": "http"}]
        async with over_httpx.async_client(identities.foreign_anchors) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(running.url)


def test_only_authorized_clients_reach_the_application(identities: Any) -> None:
    def answer(name: str) -> str:
        running_options = {
            "credential": identities.ec,
            "client_anchors": identities.anchors,
            "authorization": transport.Authorization((transport.DNSRule(name),)),
        }
        with (
            RunningApplication(**running_options) as running,
            over_httpx.client(identities.anchors, credential=identities.rsa) as client,
        ):
            text = client.get(running.url).text
            peer = running.scopes[0]["extensions"]["pfs.authorized_peer"]
            assert name in peer.dns_names
            return text

    assert answer("localhost") == "/"
    with pytest.raises(httpx.TransportError, match="the peer refused"):
        answer("other.example")


def test_a_running_uvicorn_gets_a_new_certificate(identities: Any) -> None:
    def shown() -> bytes | None:
        with over_httpx.client(identities.anchors) as client:
            return over_httpx.negotiated_session(client.get(running.url)).peer_certificate

    with (
        RunningApplication(credential=identities.ec) as running,
        over_httpx.client(identities.anchors) as old,
    ):
        before = over_httpx.negotiated_session(old.get(running.url))
        assert before.peer_certificate == shown()
        running.config.tls_context.replace_credential(identities.rsa)
        assert shown() == identities.rsa.leaf.public_bytes(Encoding.DER)
        assert over_httpx.negotiated_session(old.get(running.url)) == before  # goes on as it was
    told = [scope["extensions"]["tls"]["server_cert"] for scope in running.scopes]
    ours, renewed = (one.certificates_pem().decode() for one in (identities.ec, identities.rsa))
    assert told == [ours, ours, renewed, ours]


def test_requests_and_urllib3(identities: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunningApplication(credential=identities.ec) as running:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")  # which is not asked
        with over_requests.session(identities.anchors) as session:
            response = session.get(running.url + "x", timeout=DEADLINE_SECONDS)
            assert response.text == "/x"
            assert over_requests.negotiated_session(response).group == "X25519MLKEM768"
            del response  # which keeps its urllib3 pool open, and with it the connection
            with pytest.raises(APIMisuse, match="verify=False"):
                session.get(running.url, verify=False, timeout=DEADLINE_SECONDS)
            with pytest.raises(requests.exceptions.InvalidSchema):
                session.get("http://localhost/", timeout=DEADLINE_SECONDS)
        with (
            over_requests.session(identities.foreign_anchors) as session,
            pytest.raises(requests.ConnectionError),
        ):
            session.get(running.url, timeout=DEADLINE_SECONDS)
        with over_requests.pool_manager(identities.anchors, retries=False) as pool:
            answer = pool.request("GET", running.url + "y")
            assert answer.data == b"/y"
            assert over_requests.negotiated_session(answer).version == "TLS 1.3"
            del answer
        with (
            over_requests.pool_manager(identities.foreign_anchors, retries=False) as pool,
            pytest.raises(urllib3.exceptions.HTTPError),
        ):
            pool.request("GET", running.url)


def test_a_proxy_gets_what_is_to_be_tunnelled_and_no_plain_http(identities: Any) -> None:
    adapter = over_requests.TLSAdapter(identities.anchors)
    for _ in range(2):  # made once, and found again
        manager = adapter.proxy_manager_for("http://localhost:3128")
        assert manager.connection_from_url("https://localhost/").scheme == "https"
        with pytest.raises(urllib3.exceptions.URLSchemeUnknown):
            manager.connection_from_url("http://localhost/")
    adapter.close()


class Redirecting(RunningApplication):
    """Sends every client elsewhere."""

    def __init__(self, target: str, **options: Any) -> None:
        super().__init__(**options)
        self._target = target

    async def _application(self, scope: Any, _receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        headers = [(b"location", self._target.encode())]
        await send({"type": "http.response.start", "status": 302, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def httpx_gets(anchors: Any, url: str) -> None:
    with over_httpx.client(anchors, follow_redirects=True) as client:
        client.get(url)


def async_httpx_gets(anchors: Any, url: str) -> None:
    async def get() -> None:
        async with over_httpx.async_client(anchors, follow_redirects=True) as client:
            await client.get(url)

    asyncio.run(get())


def httpx_with_other_hooks_gets(anchors: Any, url: str) -> None:
    asked: list[Any] = []
    hooks = {"request": [asked.append]}
    with over_httpx.client(anchors, follow_redirects=True, event_hooks=hooks) as client:
        try:
            client.get(url)
        finally:
            assert asked[0].url == url
            client.event_hooks["request"] = []
            client.get(url)


def httpx_with_the_environment_gets(anchors: Any, url: str) -> None:
    with over_httpx.client(anchors, follow_redirects=True, trust_env=True) as client:
        client.get(url)


def urllib3_gets(anchors: Any, url: str) -> None:
    with over_requests.pool_manager(anchors) as pool:
        pool.request("GET", url)


@pytest.mark.parametrize(
    ("get", "refusal"),
    [
        (httpx_gets, httpx.UnsupportedProtocol),
        (async_httpx_gets, httpx.UnsupportedProtocol),
        (httpx_with_other_hooks_gets, httpx.UnsupportedProtocol),
        (httpx_with_the_environment_gets, httpx.UnsupportedProtocol),
        (urllib3_gets, urllib3.exceptions.URLSchemeUnknown),
    ],
    ids=lambda value: value.__name__,
)
def test_nothing_is_asked_for_in_plain_text(
    get: Callable[[Any, str], None],
    refusal: type[Exception],
    identities: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    class Plain(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with plain_http.serving(Plain) as (host, port):
        plain = f"http://{host}:{port}/"
        with Redirecting(plain, credential=identities.ec) as running:
            for url in (plain, running.url):
                with pytest.raises(refusal):
                    get(identities.anchors, url)
            assert running.scopes
    assert not asked


def test_options_that_would_go_around_are_refused(identities: Any) -> None:
    for call in (
        lambda: over_httpx.client(identities.anchors, verify=False),
        lambda: over_httpx.async_client(identities.anchors, cert="client.pem"),
        lambda: over_httpx.client(
            identities.anchors, transport=httpx.HTTPTransport(verify=ssl.create_default_context())
        ),
        lambda: over_httpx.async_client(
            identities.anchors, mounts={"https://": httpx.AsyncHTTPTransport()}
        ),
        lambda: TLSConfig("app:app", credential=identities.ec, ssl_certfile="server.pem"),
        lambda: TLSConfig("app:app", credential=identities.ec, workers=2),
    ):
        with pytest.raises(APIMisuse):
            call()
