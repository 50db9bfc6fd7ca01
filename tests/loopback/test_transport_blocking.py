"""The blocking engine where code expects an `ssl.SSLSocket`: servers, files, timeouts, threads."""

from __future__ import annotations

import errno
import hashlib
import http.client
import http.server
import io
import os
import resource
import select
import selectors
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import transport
from transport import APIMisuse, KeyLogFile, TLSSocket, TruncatedStream, WantRead

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_SECONDS = 20.0
MONTHS_SECONDS = 100 * 24 * 3600.0  # more than poll(2) takes
BODY = bytes(range(256)) * 4096


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = DEADLINE_SECONDS

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = hashlib.sha256(body).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def http_server(identities: Any, kind: type[http.server.HTTPServer]) -> Iterator[tuple[str, int]]:
    server = kind(("127.0.0.1", 0), Handler)
    server.socket = transport.wrap_listener(server.socket, credential=identities.ec)  # type: ignore[assignment] # what users write
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[0], server.server_address[1]  # type: ignore[misc] # IPv4
    finally:
        server.shutdown()
        thread.join(DEADLINE_SECONDS)
        server.server_close()


class TLSConnection(http.client.HTTPConnection):
    def __init__(self, address: tuple[str, int], anchors: Any) -> None:
        super().__init__(*address)
        self._anchors = anchors

    def connect(self) -> None:
        self.sock = transport.connect((self.host, self.port), trust_anchors=self._anchors)


SERVERS = pytest.mark.parametrize(
    "kind",
    [http.server.HTTPServer, http.server.ThreadingHTTPServer],
    ids=lambda kind: kind.__name__,
)


@SERVERS
def test_http_server_and_http_client(identities: Any, kind: type[http.server.HTTPServer]) -> None:
    with http_server(identities, kind) as address:
        client = TLSConnection(address, identities.anchors)
        for _ in range(3):  # one connection, kept alive
            client.request("GET", "/")
            assert client.getresponse().read() == BODY
        client.request("POST", "/", body=BODY)
        assert client.getresponse().read() == hashlib.sha256(BODY).hexdigest().encode()
        client.close()


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@SERVERS
@pytest.mark.parametrize("version", [["--tlsv1.3"], ["--tlsv1.2", "--tls-max", "1.2"]])
def test_curl(
    identities: Any, kind: type[http.server.HTTPServer], version: list[str], tmp_path: Path
) -> None:
    (tmp_path / "anchors.pem").write_bytes(identities.anchors.pem())
    (tmp_path / "body").write_bytes(BODY)
    with http_server(identities, kind) as (_host, port):
        base = ["curl", "--silent", "--show-error", "--max-time", "20", *version]
        trust = ["--cacert", str(tmp_path / "anchors.pem")]
        url = f"https://localhost:{port}/"
        got = subprocess.run([*base, *trust, url, url], capture_output=True, check=True)
        assert got.stdout == BODY * 2
        sent = subprocess.run(
            [*base, *trust, "--data-binary", f"@{tmp_path / 'body'}", url],
            capture_output=True,
            check=True,
        )
        assert sent.stdout == hashlib.sha256(BODY).hexdigest().encode()
        # The control: without our root, curl refuses.
        refused = subprocess.run([*base, url], capture_output=True, check=False)
        assert refused.returncode == 60


def test_socketserver(identities: Any) -> None:
    class Upper(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line.upper())

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Upper) as server:
        server.socket = transport.wrap_listener(server.socket, credential=identities.ec)  # type: ignore[assignment] # what users write
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        with (
            transport.connect(server.server_address, trust_anchors=identities.anchors) as client,  # type: ignore[arg-type] # IPv4
            client.makefile("rw", encoding="utf-8", newline="\n") as file,
        ):
            for word in ("one", "two"):
                file.write(f"{word}\n")
                file.flush()
                assert file.readline() == f"{word.upper()}\n"
        server.shutdown()
        thread.join(DEADLINE_SECONDS)


@contextmanager
def two_ends(identities: Any, **options: Any) -> Iterator[tuple[TLSSocket, TLSSocket]]:
    """Yield a client and a server end, the handshake done, both with a timeout."""
    with transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec, **options
    ) as listener:
        raw = socket.create_connection(listener.getsockname())
        raw.settimeout(DEADLINE_SECONDS)
        client = transport.wrap_socket(
            raw, trust_anchors=identities.anchors, server_hostname="localhost"
        )
        server, _ = listener.accept()
        server.settimeout(DEADLINE_SECONDS)
        thread = threading.Thread(target=server.do_handshake)
        thread.start()
        client.do_handshake()
        thread.join(DEADLINE_SECONDS)
    with client, server:
        yield client, server


def test_the_handshake_is_done_at_the_first_use(identities: Any) -> None:
    with transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec
    ) as listener:
        thread = threading.Thread(
            target=lambda: transport.connect(
                listener.getsockname(), trust_anchors=identities.anchors
            ).close()
        )
        thread.start()
        server, address = listener.accept()
        assert address == server.getpeername()
        with pytest.raises(APIMisuse, match="do_handshake"):
            _ = server.negotiated
        assert "not established" in repr(server)
        assert server.recv(1) == b""
        assert server.negotiated.version == "TLS 1.3"
        thread.join(DEADLINE_SECONDS)
        server.close()


def test_receiving_times_out_and_goes_on(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        server.sendall(b"late")
        client.settimeout(DEADLINE_SECONDS)
        assert client.recv(100) == b"late"
        client.settimeout(MONTHS_SECONDS)
        sender = threading.Timer(0.1, server.sendall, [b"later"])
        sender.start()
        assert client.recv(100) == b"later"
        sender.join(DEADLINE_SECONDS)


def test_a_send_that_timed_out_ends_the_connection(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.sendall(bytes(64 << 20))
        with pytest.raises(APIMisuse, match="timed out"):
            client.sendall(b"more")
        client.close()
        with server.makefile("rb") as file, pytest.raises(TruncatedStream):
            file.read()


def wait_for_reset(connection: TLSSocket) -> None:
    poll = select.poll()
    poll.register(connection, 0)
    assert poll.poll(DEADLINE_SECONDS * 1000)


def test_what_a_peer_said_before_it_went_can_be_read_after_a_send_failed(identities: Any) -> None:
    """As of a server that refuses an upload half-way and closes."""
    with two_ends(identities) as (client, server):
        server.sendall(b"413")
        server.close()
        client.sendall(b"upload")  # which draws the reset
        wait_for_reset(client)
        with pytest.raises(ConnectionError, match="can still be read") as caught:
            client.sendall(b"upload")
        assert caught.value.errno in {errno.EPIPE, errno.ECONNRESET}
        with pytest.raises(type(caught.value), match="can still be read"):  # and it stays so
            client.send(b"more")
        assert client.recv(100) == b"413"
        assert client.recv(100) == b""


def test_an_error_of_the_socket_ends_the_connection_for_good(identities: Any) -> None:
    with two_ends(identities) as (client, _server):
        with Path(os.devnull).open("wb") as cannot_be_read:
            os.dup2(cannot_be_read.fileno(), client.fileno())
        for operation in (lambda: client.recv(1), lambda: client.send(b"x")):
            with pytest.raises(OSError, match="descriptor") as caught:
                operation()
            assert caught.value.errno == errno.EBADF


def test_non_blocking_with_a_selector(identities: Any) -> None:
    payload = os.urandom(4 << 20)
    with two_ends(identities) as (client, server), selectors.DefaultSelector() as selector:
        client.setblocking(flag=False)
        server.setblocking(flag=False)
        with pytest.raises(WantRead) as caught:
            server.recv(1)
        assert isinstance(caught.value, ssl.SSLWantReadError)
        selector.register(client, selectors.EVENT_WRITE)
        selector.register(server, selectors.EVENT_READ)
        sent, received = 0, bytearray()
        while len(received) < len(payload):
            for key, _ in selector.select(DEADLINE_SECONDS):
                if key.fileobj is client:
                    try:
                        sent += client.send(payload[sent : sent + (1 << 20)])
                    except ssl.SSLWantWriteError:
                        continue
                    if sent == len(payload):
                        selector.unregister(client)
                else:
                    try:
                        while True:
                            received += server.recv(1 << 16)
                    except ssl.SSLWantReadError:
                        continue
        assert bytes(received) == payload


def test_a_non_blocking_handshake(identities: Any) -> None:
    near, far = socket.socketpair()
    client = transport.wrap_socket(
        near, trust_anchors=identities.anchors, server_hostname="localhost"
    )
    server = transport.wrap_socket(far, server_side=True, credential=identities.ec)
    client.setblocking(flag=False)
    server.setblocking(flag=False)
    done = set()
    for _ in range(20):
        for name, end in (("client", client), ("server", server)):
            try:
                end.do_handshake()
                done.add(name)
            except ssl.SSLWantReadError:
                pass
    assert done == {"client", "server"}
    client.close()
    server.close()


def test_many_threads_write_and_one_reads(identities: Any) -> None:
    """Each `sendall` arrives in one piece, though all of them have to wait for the reader."""
    size = 3 << 20  # several calls into the library, and more than the kernel takes at once
    with two_ends(identities) as (client, server):
        threads = [
            threading.Thread(target=client.sendall, args=(bytes([number]) * size,))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        received = bytearray()
        while len(received) < 4 * size:
            received += server.recv(1 << 20)
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    pieces = [bytes(received[start : start + size]) for start in range(0, 4 * size, size)]
    assert sorted(pieces) == [bytes([number]) * size for number in range(4)]


def test_reading_and_writing_at_once_from_two_threads(identities: Any) -> None:
    payload = os.urandom(8 << 20)
    with two_ends(identities) as (client, server):
        results: dict[str, bytes] = {}

        def receive(name: str, end: TLSSocket) -> None:
            data = bytearray()
            while len(data) < len(payload):
                data += end.recv(1 << 20)
            results[name] = bytes(data)

        threads = [
            threading.Thread(target=target, args=arguments)
            for target, arguments in (
                (client.sendall, (payload,)),
                (server.sendall, (payload,)),
                (receive, ("client", client)),
                (receive, ("server", server)),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
    assert results == {"client": payload, "server": payload}


def test_closing_wakes_a_thread_that_waits_to_read(identities: Any) -> None:
    with two_ends(identities) as (client, _server):
        failures = []

        def read() -> None:
            try:
                client.recv(1)
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        client.close()
        thread.join(DEADLINE_SECONDS / 2)  # its own timeout would wake it only after the whole
        assert not thread.is_alive()
        assert isinstance(failures[0], APIMisuse)


def test_closing_the_listener_wakes_every_thread_in_accept(identities: Any) -> None:
    listener = transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec
    )
    failures = []

    def accept() -> None:
        try:
            listener.accept()
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=accept) for _ in range(3)]
    for thread in threads:
        thread.start()
    listener.close()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(failures) == 3
    listener.close()


def test_a_listener_that_gets_no_descriptor_says_so_and_goes_on_when_it_does(
    identities: Any,
) -> None:
    raw = socket.create_server(("127.0.0.1", 0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with transport.wrap_listener(raw, credential=identities.ec) as listener:
        listener.settimeout(0.05)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with pytest.raises(TimeoutError):
            listener.accept()


def test_accept_has_timeouts(identities: Any) -> None:
    with transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec
    ) as listener:
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.settimeout(MONTHS_SECONDS)
        closer = threading.Timer(0.1, listener.close)
        closer.start()
        with pytest.raises(OSError, match="descriptor"):
            listener.accept()
        closer.join(DEADLINE_SECONDS)


def test_accept_need_not_wait(identities: Any) -> None:
    with transport.wrap_listener(
        socket.create_server(("127.0.0.1", 0)), credential=identities.ec
    ) as listener:
        listener.setblocking(flag=False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_half_close(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert server.recv(100) == b"question"
        assert server.recv(100) == b""
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"


def test_unwrap_gives_the_plain_socket_back(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        plain: list[socket.socket] = []
        thread = threading.Thread(target=lambda: plain.append(server.unwrap()))
        thread.start()
        near = client.unwrap()
        thread.join(DEADLINE_SECONDS)
        assert near.gettimeout() == DEADLINE_SECONDS
        with near, plain[0] as far:
            near.sendall(b"in the clear")
            assert far.recv(100) == b"in the clear"
        with pytest.raises(APIMisuse):
            client.recv(1)


def test_unwrap_refuses_to_lose_data(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        server.sendall(b"still sending")
        with pytest.raises(APIMisuse, match="still sending"):
            client.unwrap()


def test_files_keep_the_connection_open(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        file = client.makefile("rb")
        client.close()
        server.sendall(b"a line\nand the rest")
        server.close()
        assert file.readline() == b"a line\n"
        assert file.read() == b"and the rest"
        assert client.fileno() >= 0
        file.close()
        assert client.fileno() == -1


@pytest.mark.parametrize(("mode", "buffering"), [("x", None), ("r", 0), ("rb+", None)])
def test_makefile_refuses_what_sockets_refuse(
    identities: Any, mode: str, buffering: int | None
) -> None:
    with two_ends(identities) as (client, _), pytest.raises(ValueError, match=r"mode|binary"):
        client.makefile(mode, buffering)  # type: ignore[call-overload] # a refused mode


def test_unbuffered_and_paired_files(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        with client.makefile("wb", 0) as writer:
            assert writer.write(b"raw") == 3
        with server.makefile("rwb") as both:
            assert both.read(3) == b"raw"
            both.write(b"back")
            both.flush()
        assert client.recv(100) == b"back"


def test_a_file_that_timed_out_refuses_to_go_on(identities: Any) -> None:
    with two_ends(identities) as (client, _server), client.makefile("rb") as file:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            file.read(1)
        with pytest.raises(OSError, match="timed out object"):
            file.read(1)


def test_sendfile(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        assert client.sendfile(io.BytesIO(b"0123456789"), offset=2, count=5) == 5
        assert client.sendfile(io.BytesIO(b"abc")) == 3
        client.close()
        with server.makefile("rb") as file:
            assert file.read() == b"23456abc"


def test_recv_into_and_its_limits(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        server.sendall(b"0123456789")
        buffer = bytearray(b"-" * 8)
        assert client.recv_into(buffer, 3) == 3
        assert client.recv_into(memoryview(buffer)[4:]) == 4
        assert bytes(buffer) == b"012-3456"
        assert client.pending() == 3
        assert client.recv(0) == b""
        assert client.recv(100) == b"789"
        assert client.send(b"") == 0
        with pytest.raises(ValueError, match="negative"):
            client.recv(-1)
        with pytest.raises(ValueError, match="MSG_PEEK"):
            client.recv(1, socket.MSG_PEEK)


def test_the_exporter_is_equal_on_both_sides(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        ours = client.export_keying_material("EXPERIMENTAL test", 32, b"context")
        assert ours == server.export_keying_material("EXPERIMENTAL test", 32, b"context")


def test_the_key_log_file_is_written(identities: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.log"
    with KeyLogFile(path) as log, two_ends(identities, key_log=log) as (client, server):
        client.sendall(b"x")
        assert server.recv(1) == b"x"
    assert path.read_bytes().count(b"CLIENT_TRAFFIC_SECRET_0 ") == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_options_of_the_tcp_socket(identities: Any) -> None:
    with two_ends(identities) as (client, server):
        assert client.getpeername() == server.getsockname()
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert client.getblocking()
        with pytest.raises(ValueError, match="out of range"):
            client.settimeout(-1)


def test_close_can_be_repeated_and_ends_everything(identities: Any) -> None:
    with two_ends(identities) as (client, _server):
        client.close()
        client.close()
        for operation in (lambda: client.recv(1), lambda: client.sendall(b"x")):
            with pytest.raises(APIMisuse, match="closed"):
                operation()


def test_what_a_client_wrote_survives_its_closing_at_once(identities: Any) -> None:
    """A TLS 1.3 client that only writes leaves tickets unread: closing must not reset them away."""
    payload = os.urandom(1 << 20)
    for _ in range(20):
        with two_ends(identities) as (client, server):
            client.settimeout(None)
            sender = threading.Thread(target=lambda end=client: (end.sendall(payload), end.close()))
            sender.start()
            with server.makefile("rb") as file:
                assert file.read() == payload
            server.close()  # the client waits for that, a second at most
            sender.join(DEADLINE_SECONDS)
