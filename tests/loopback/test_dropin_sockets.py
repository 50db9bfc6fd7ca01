"""`TLSSocket` where people use `ssl.SSLSocket`: files, buffers, timeouts, selectors, unwrap."""

from __future__ import annotations

import datetime as dt
import io
import selectors
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import transport
from certs.credential import Credential, TrustAnchors
from transport.adapters.ssl_context import client_ssl_context, server_ssl_context
from transport.errors import APIMisuse
from transport.policy import SUITES

if TYPE_CHECKING:
    from collections.abc import Iterator

DEADLINE_SECONDS = 20.0
BODY = bytes(range(256)) * 8192


class Ends:
    """A client and a server, connected; the handshake happens with the first use."""

    def __init__(self, identities: Any) -> None:
        one, other = socket.socketpair()
        self.server = transport.wrap_socket(one, server_side=True, credential=identities.ec)
        self.client = transport.wrap_socket(
            other, trust_anchors=identities.anchors, server_hostname="localhost"
        )
        for end in (self.server, self.client):
            end.settimeout(DEADLINE_SECONDS)

    def shake_hands(self) -> None:
        self.meanwhile(self.server.do_handshake, self.client.do_handshake)

    @staticmethod
    def meanwhile(background: Any, foreground: Any) -> Any:
        failures: list[BaseException] = []

        def run() -> None:
            try:
                background()
            except BaseException as error:  # noqa: BLE001 - handed to the test
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        result = foreground()
        thread.join(DEADLINE_SECONDS)
        assert not thread.is_alive()
        if failures:
            raise failures[0]
        return result


@pytest.fixture
def ends(identities: Any) -> Iterator[Ends]:
    made = Ends(identities)
    made.shake_hands()
    yield made
    made.client.close()
    made.server.close()


@pytest.mark.parametrize("buffering", [-1, 0, 1 << 16])
def test_binary_files(ends: Ends, buffering: int) -> None:
    def write() -> None:
        with ends.server.makefile("wb", buffering) as file:
            view = memoryview(BODY)
            while view:  # an unbuffered file may write less
                view = view[file.write(view) :]
        ends.server.close()

    def read() -> bytes:
        with ends.client.makefile("rb", buffering) as file:
            return file.read()

    assert ends.meanwhile(write, read) == BODY


def test_text_files_and_lines(ends: Ends) -> None:
    with ends.server.makefile("w", encoding="utf-8", newline="\r\n") as file:
        file.write("première\nsecond\n")
    with ends.client.makefile("r", encoding="utf-8", newline=None) as file:
        assert file.readline() == "première\n"
        assert file.readline() == "second\n"


def test_recv_into_part_of_a_buffer(ends: Ends) -> None:
    ends.server.sendall(b"abcdef")
    buffer = bytearray(10)
    assert ends.client.recv_into(buffer, 2) == 2
    assert ends.client.recv_into(memoryview(buffer)[2:]) == 4
    assert bytes(buffer) == b"abcdef\0\0\0\0"


def test_read_and_recv_have_the_arguments_of_the_standard_library(ends: Ends) -> None:
    ends.server.sendall(b"abcdefgh")
    buffer = bytearray(10)
    assert ends.client.read(1) == b"a"
    assert ends.client.read(2, buffer) == 2
    assert ends.client.recv(1) == b"d"
    assert bytes(buffer[:2]) == b"bc"
    assert ends.client.read() == b"efgh"
    ends.server.sendall(b"ijkl")
    assert ends.client.recv() == b"ijkl"
    ends.server.close()
    assert ends.client.read(10, buffer) == 0


def test_what_a_socket_tells_of_itself(identities: Any) -> None:
    ends = Ends(identities)
    for end in (ends.client, ends.server):
        assert end.get_channel_binding() is None
        assert not end.session_reused
        assert end.session is None
        assert end.context is None
        assert (end.family, end.type, end.timeout) == (
            socket.AF_UNIX,
            socket.SOCK_STREAM,
            DEADLINE_SECONDS,
        )
    assert (ends.client.server_side, ends.client.server_hostname) == (False, "localhost")
    assert (ends.server.server_side, ends.server.server_hostname) == (True, None)
    ends.shake_hands()
    binding = ends.client.get_channel_binding("tls-exporter")
    assert binding == ends.server.get_channel_binding()
    assert binding == ends.client.export_keying_material("EXPORTER-Channel-Binding", 32, b"")
    with pytest.raises(ValueError, match="tls-unique"):
        ends.client.get_channel_binding("tls-unique")
    with socket.socket(fileno=ends.client.detach()) as raw:
        assert ends.client.fileno() == -1
        with pytest.raises(APIMisuse):
            ends.client.recv()
        ends.server.sendall(b"sealed")
        assert raw.recv(100)  # neither closed nor shut down
    ends.client.close()
    ends.server.close()


def test_sendfile_whole_and_in_part(ends: Ends, tmp_path: Any) -> None:
    path = tmp_path / "body"
    path.write_bytes(BODY)

    def send() -> None:
        with path.open("rb") as file:
            assert ends.server.sendfile(file) == len(BODY)
            assert ends.server.sendfile(file, offset=10, count=300) == 300
        ends.server.close()

    def receive() -> bytes:
        received = io.BytesIO()
        while data := ends.client.recv(1 << 16):
            received.write(data)
        return received.getvalue()

    assert ends.meanwhile(send, receive) == BODY + BODY[10:310]


def test_timeouts_are_those_of_a_socket(ends: Ends) -> None:
    ends.client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        ends.client.recv(1)
    ends.client.settimeout(0)
    with pytest.raises(ssl.SSLWantReadError):
        ends.client.recv(1)
    ends.server.sendall(b"x")
    ends.client.settimeout(DEADLINE_SECONDS)
    assert ends.client.recv(1) == b"x"  # none of that hurt


def test_non_blocking_with_selectors(identities: Any) -> None:
    ends = Ends(identities)
    for end in (ends.client, ends.server):
        end.settimeout(0)
    waits = {
        ssl.SSLWantReadError: selectors.EVENT_READ,
        ssl.SSLWantWriteError: selectors.EVENT_WRITE,
    }
    to_send = {ends.client: memoryview(BODY), ends.server: memoryview(b"")}
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        for end in (ends.client, ends.server):
            selector.register(end, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while len(received) < len(BODY):
            ready = selector.select(DEADLINE_SECONDS)
            assert ready, "nobody can go on"
            for key, _ in ready:
                end: Any = key.fileobj
                try:
                    end.do_handshake()
                    if end is ends.server:
                        while True:
                            received += end.recv(1 << 16)
                    elif view := to_send[end]:
                        to_send[end] = view[end.send(view) :]
                    else:
                        selector.modify(end, selectors.EVENT_READ)
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as want:
                    kinds = [event for kind, event in waits.items() if isinstance(want, kind)]
                    selector.modify(end, kinds[0])
    assert bytes(received) == BODY
    for end in (ends.client, ends.server):
        end.close()


def test_unwrap_goes_back_to_plain_text(ends: Ends) -> None:
    plain: list[socket.socket] = []
    ends.meanwhile(
        lambda: plain.append(ends.server.unwrap()), lambda: plain.append(ends.client.unwrap())
    )
    one, other = plain
    with one, other:
        one.sendall(b"in the clear")
        assert other.recv(100) == b"in the clear"


def test_a_socket_wrapped_before_it_is_connected(identities: Any) -> None:
    raw = socket.create_server(("127.0.0.1", 0))
    with transport.wrap_listener(raw, credential=identities.ec) as listener:
        context = client_ssl_context(identities.anchors)
        client: Any = context.wrap_socket(socket.socket(), server_hostname="localhost")
        client.settimeout(DEADLINE_SECONDS)
        served: list[transport.TLSSocket] = []

        def serve() -> None:
            served.append(listener.accept()[0])
            served[0].do_handshake()

        Ends.meanwhile(serve, lambda: client.connect(listener.getsockname()))
        served[0].sendall(b"hello")
        assert client.recv(10) == b"hello"
        client.close()
        served[0].close()


def test_a_handshake_that_was_put_off_is_not_done_by_connect(identities: Any) -> None:
    context = client_ssl_context(identities.anchors)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = context.wrap_socket(
            socket.socket(), do_handshake_on_connect=False, server_hostname="localhost"
        )
        assert isinstance(client, transport.TLSSocket)
        client.settimeout(1.0)
        client.connect(silent.getsockname())
        assert client.context is context
        client.close()


def show(context: ssl.SSLContext, policy: transport.SecurityPolicy, anchors: Any) -> None:
    versions = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
    assert context.minimum_version == min(versions[one] for one in policy.versions)
    assert context.maximum_version == max(versions[one] for one in policy.versions)
    context.minimum_version = context.minimum_version  # as it is
    shown = [cipher["id"] & 0xFFFF for cipher in context.get_ciphers()]
    assert shown == [SUITES[suite].code_point for suite in policy.suites]
    expected = [one.public_bytes(Encoding.DER) for one in anchors.certificates] if anchors else []
    assert context.get_ca_certs(binary_form=True) == expected


@pytest.mark.parametrize("name", transport.policy_names())
def test_a_clients_context_shows_what_is_checked(name: str, identities: Any) -> None:
    policy = transport.get_policy(name)
    show(client_ssl_context(identities.anchors, policy=policy), policy, identities.anchors)


@pytest.mark.parametrize("name", ["2026-11", "2026-11-tls13"])
@pytest.mark.parametrize("mutual", [False, True])
def test_a_servers_context_shows_what_is_checked(
    name: str, identities: Any, *, mutual: bool
) -> None:
    policy = transport.get_policy(name)
    anchors = identities.anchors if mutual else None
    context = server_ssl_context(identities.ec, policy=policy, client_anchors=anchors)
    show(context, policy, anchors)


def test_what_the_session_is_in_the_words_of_the_standard_library(ends: Ends) -> None:
    assert ends.client.version() == "TLSv1.3"
    assert ends.client.cipher() == ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)
    assert ends.client.compression() is None
    assert ends.client.selected_alpn_protocol() is None
    certificate = ends.client.getpeercert(binary_form=True)
    assert certificate == ends.client.negotiated.peer_certificate
    assert ends.server.getpeercert() is None


def test_getpeercert_is_what_the_standard_library_makes_of_it() -> None:
    """Both read the same certificate, with every kind of name that there is."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    serial = "even"
    while len(serial) % 2 == 0:  # a serial number that begins with a zero, which is easily lost
        leaf = authority.issue_cert(
            "localhost",
            "*.example",
            "127.0.0.1",
            common_name="käse",
            key_type=trustme.KeyType.ECDSA,
            not_after=dt.datetime(2031, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
        )
        pem = leaf.cert_chain_pems[0].bytes()
        serial = f"{x509.load_pem_x509_certificate(pem).serial_number:x}"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    leaf.configure_cert(server)
    authority.configure_trust(client)
    one, other = socket.socketpair()
    theirs: list[Any] = []

    def serve() -> None:
        with server.wrap_socket(one, server_side=True) as connection:
            connection.recv(1)

    def ask() -> None:
        with client.wrap_socket(other, server_hostname="localhost") as connection:
            theirs.append(connection.getpeercert())

    Ends.meanwhile(serve, ask)
    chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
    credential = Credential.from_pem(chain, leaf.private_key_pem.bytes())
    one, other = socket.socketpair()
    serving = transport.wrap_socket(one, server_side=True, credential=credential)
    asking = transport.wrap_socket(
        other,
        trust_anchors=TrustAnchors.from_pem(authority.cert_pem.bytes()),
        server_hostname="localhost",
    )
    Ends.meanwhile(serving.do_handshake, asking.do_handshake)
    assert asking.getpeercert() == theirs[0]
    asking.close()
    serving.close()


def test_the_context_cannot_be_weakened_or_misled(identities: Any, tmp_path: Any) -> None:
    context = client_ssl_context(identities.anchors)
    assert isinstance(context, ssl.SSLContext)
    context.check_hostname = True  # it is
    context.verify_mode = ssl.CERT_REQUIRED
    for name, value in (
        ("check_hostname", False),
        ("verify_mode", ssl.CERT_NONE),
        ("minimum_version", ssl.TLSVersion.TLSv1),
        ("keylog_filename", str(tmp_path / "keys")),
    ):
        with pytest.raises(APIMisuse, match=name):
            setattr(context, name, value)
    listener = socket.create_server(("127.0.0.1", 0))
    for call in (
        context.load_default_certs,
        lambda: context.load_verify_locations("ca.pem"),
        lambda: context.load_cert_chain("server.pem"),
        lambda: context.set_ciphers("ALL"),
        lambda: context.set_ecdh_curve("prime256v1"),
        lambda: context.wrap_socket(listener, server_side=True),
        lambda: server_ssl_context(identities.ec).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()),
    ):
        with pytest.raises(APIMisuse):
            call()
    listener.close()
