"""The standard library's servers over `wrap_listener`, and its clients over our context."""

from __future__ import annotations

import http.client
import socket
import socketserver
import threading
import urllib.error
import urllib.request
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

import transport
from transport.adapters.ssl_context import client_ssl_context, server_ssl_context

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_SECONDS = 20.0
BODY = bytes(range(256)) * 1024


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join(DEADLINE_SECONDS)
        server.server_close()
        assert not thread.is_alive()


class EchoHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Group", self.connection.negotiated.group)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture(params=[HTTPServer, ThreadingHTTPServer])
def web(request: pytest.FixtureRequest, identities: Any) -> Iterator[HTTPServer]:
    server: HTTPServer = request.param(("127.0.0.1", 0), EchoHandler)
    server.socket = transport.wrap_listener(server.socket, credential=identities.ec)
    with serving(server):
        yield server


def test_http_server_with_two_requests_on_one_connection(web: HTTPServer, identities: Any) -> None:
    client = http.client.HTTPSConnection(
        "localhost",
        web.server_port,
        context=client_ssl_context(identities.anchors),
        timeout=DEADLINE_SECONDS,
    )
    for body in (b"first", BODY):
        client.request("POST", "/", body)
        response = client.getresponse()
        assert response.headers["X-Group"] == "X25519MLKEM768"
        assert response.read() == body
    client.close()


def test_urllib_refuses_the_server_of_another_authority(web: HTTPServer, identities: Any) -> None:
    url = f"https://localhost:{web.server_port}/"
    with pytest.raises(urllib.error.URLError) as refused:
        urllib.request.urlopen(
            url, b"x", DEADLINE_SECONDS, context=client_ssl_context(identities.foreign_anchors)
        )
    assert isinstance(refused.value.reason, transport.CertificateRejected)
    with urllib.request.urlopen(
        url, b"x", DEADLINE_SECONDS, context=client_ssl_context(identities.anchors)
    ) as response:
        assert response.read() == b"x"


def test_threading_http_server_is_not_held_up_by_a_silent_client(identities: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), EchoHandler)
    server.socket = transport.wrap_listener(
        server.socket, credential=identities.ec, handshake_timeout_seconds=DEADLINE_SECONDS
    )
    with serving(server):
        silent = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(5)]
        with transport.connect(
            ("localhost", server.server_port), trust_anchors=identities.anchors
        ) as client:
            client.settimeout(DEADLINE_SECONDS)
            client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
            assert client.makefile("rb").read().endswith(b"\r\n\r\nhi")
        for one in silent:
            one.close()


class LineHandler(socketserver.StreamRequestHandler):
    timeout = DEADLINE_SECONDS
    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def test_socketserver_with_threads(identities: Any) -> None:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), LineHandler)
    server.socket = transport.wrap_listener(server.socket, credential=identities.rsa)
    with serving(server):
        clients = [
            transport.connect(server.server_address, trust_anchors=identities.anchors)
            for _ in range(4)
        ]
        for number, client in enumerate(clients):
            client.settimeout(DEADLINE_SECONDS)
            with client, client.makefile("rw", encoding="ascii", newline="\n") as lines:
                lines.write(f"line {number}\n")
                lines.flush()
                assert lines.readline() == f"LINE {number}\n"


def test_a_listener_made_by_the_context(identities: Any) -> None:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), LineHandler)
    context = server_ssl_context(identities.ec)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with (
        serving(server),
        transport.connect(server.server_address, trust_anchors=identities.anchors) as client,
    ):
        client.settimeout(DEADLINE_SECONDS)
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"


def test_wsgiref(identities: Any) -> None:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))[::-1]]

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base's name
            pass

    server = wsgiref.simple_server.make_server("127.0.0.1", 0, application, handler_class=Quiet)
    server.socket = transport.wrap_listener(server.socket, credential=identities.ec)
    with (
        serving(server),
        urllib.request.urlopen(
            f"https://localhost:{server.server_port}/",
            BODY,
            DEADLINE_SECONDS,
            context=client_ssl_context(identities.anchors),
        ) as response,
    ):
        assert response.read() == BODY[::-1]


def test_xmlrpc_both_sides(identities: Any) -> None:
    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False)
    server.socket = transport.wrap_listener(server.socket, credential=identities.ec)
    server.register_function(lambda a, b: a + b, "add")
    url = f"https://localhost:{server.server_address[1]}/"
    with serving(server):
        trusting = client_ssl_context(identities.anchors)
        with xmlrpc.client.ServerProxy(url, context=trusting) as proxy:
            assert proxy.add(2, 3) == 5
            assert proxy.add("a" * 100_000, "b") == "a" * 100_000 + "b"
        doubting = client_ssl_context(identities.foreign_anchors)
        with (
            xmlrpc.client.ServerProxy(url, context=doubting) as proxy,
            pytest.raises(transport.CertificateRejected),
        ):
            proxy.add(2, 3)
