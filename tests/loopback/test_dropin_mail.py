"""smtplib, ftplib, imaplib and poplib with our context, against small servers over TLSSocket."""

from __future__ import annotations

import ftplib
import imaplib
import io
import poplib
import smtplib
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import transport
from transport.adapters.ssl_context import client_ssl_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEADLINE_SECONDS = 20.0
BODY = bytes(range(256)) * 2048


@contextmanager
def one_client(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve one client on a thread; what `talk` raises is raised at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(DEADLINE_SECONDS)
            with connection:
                talk(connection)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_SECONDS)
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(DEADLINE_SECONDS)
            assert not thread.is_alive()
            if failures:  # why the client failed, if it did
                raise failures[0]


class Lines:
    """Lines over a socket of either kind."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def say(self, *lines: str) -> None:
        self.connection.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def hear(self) -> str:
        line = bytearray()  # byte by byte: what follows may be a handshake
        while not line.endswith(b"\n") and (byte := self.connection.recv(1)):
            line += byte
        return line.decode().rstrip("\r\n")


class SMTPServer:
    def __init__(self, identities: Any) -> None:
        self._credential = identities.ec
        self.mail: list[str] = []
        self.group: str | None = None

    def talk(self, connection: socket.socket) -> None:
        lines = Lines(connection)
        lines.say("220 localhost ready")
        while command := lines.hear():
            verb = command.split()[0].upper()
            if verb == "EHLO":
                lines.say("250-localhost", "250 STARTTLS" if self.group is None else "250 SIZE")
            elif verb == "STARTTLS":
                lines.say("220 go ahead")
                wrapped = transport.wrap_socket(
                    connection, server_side=True, credential=self._credential
                )
                wrapped.do_handshake()
                self.group = wrapped.negotiated.group
                lines = Lines(wrapped)
            elif verb == "DATA":
                assert self.group is not None, "mail in the clear"
                lines.say("354 go on")
                while (line := lines.hear()) != ".":
                    self.mail.append(line)
                lines.say("250 taken")
            elif verb == "QUIT":
                lines.say("221 bye")
                lines.connection.close()
                return
            else:
                lines.say("250 fine")


def test_smtplib_starttls(identities: Any) -> None:
    server = SMTPServer(identities)
    with (
        one_client(server.talk) as port,
        smtplib.SMTP("localhost", port, timeout=DEADLINE_SECONDS) as client,
    ):
        client.starttls(context=client_ssl_context(identities.anchors))
        client.sendmail("a@localhost", ["b@localhost"], "Subject: hello\r\n\r\nsecret\r\n")
    assert server.mail == ["Subject: hello", "", "secret"]
    assert server.group == "X25519MLKEM768"


def test_smtplib_refuses_the_server_of_another_authority(identities: Any) -> None:
    server = SMTPServer(identities)
    with (  # noqa: PT012 - the server's error comes out when the block ends
        pytest.raises(transport.AlertReceived, match="unknown_ca"),
        one_client(server.talk) as port,
    ):
        client = smtplib.SMTP("localhost", port, timeout=DEADLINE_SECONDS)
        with pytest.raises(transport.CertificateRejected):
            client.starttls(context=client_ssl_context(identities.foreign_anchors))
        client.close()
    assert server.mail == []
    assert server.group is None


class FTPServer:
    """AUTH TLS, PROT P, passive mode, one file."""

    def __init__(self, identities: Any) -> None:
        self._credential = identities.rsa
        self.stored = b""

    def talk(self, connection: socket.socket) -> None:
        lines = Lines(connection)
        lines.say("220 ready")
        passive: socket.socket | None = None
        protected = False
        while command := lines.hear():
            verb = command.split()[0].upper()
            if verb == "AUTH":
                lines.say("234 go ahead")
                lines = Lines(self._wrap(connection))
            elif verb == "PROT":
                protected = command.endswith("P")
                lines.say("200 private")
            elif verb == "EPSV":
                passive = socket.create_server(("127.0.0.1", 0))
                lines.say(f"229 entering (|||{passive.getsockname()[1]}|)")
            elif verb == "PASV":
                passive = socket.create_server(("127.0.0.1", 0))
                high, low = divmod(passive.getsockname()[1], 256)
                lines.say(f"227 entering (127,0,0,1,{high},{low})")
            elif verb in {"STOR", "RETR"}:
                assert protected
                assert passive is not None
                lines.say("150 go on")
                with passive, self._wrap(passive.accept()[0]) as data:
                    if verb == "STOR":
                        with data.makefile("rb") as file:
                            self.stored = file.read()  # raises if it is cut short
                    else:
                        data.sendall(self.stored)
                lines.say("226 done")
            elif verb == "QUIT":
                lines.say("221 bye")
                lines.connection.close()
                return
            else:
                lines.say("230 fine" if verb in {"USER", "PASS"} else "200 fine")

    def _wrap(self, connection: socket.socket) -> transport.TLSSocket:
        connection.settimeout(DEADLINE_SECONDS)
        wrapped = transport.wrap_socket(connection, server_side=True, credential=self._credential)
        wrapped.do_handshake()
        return wrapped


def test_ftplib_with_private_data_connections(identities: Any) -> None:
    server = FTPServer(identities)
    with one_client(server.talk) as port:
        client = ftplib.FTP_TLS(  # noqa: S321 - over TLS, which is the point
            timeout=DEADLINE_SECONDS, context=client_ssl_context(identities.anchors)
        )
        client.connect("localhost", port)
        client.login("anyone", "anything")  # which says AUTH first
        client.prot_p()
        client.storbinary("STOR file", io.BytesIO(BODY))
        received = io.BytesIO()
        client.retrbinary("RETR file", received.write)
        client.quit()
    assert server.stored == BODY
    assert received.getvalue() == BODY


def test_imaplib_over_tls(identities: Any) -> None:
    def talk(connection: socket.socket) -> None:
        wrapped = transport.wrap_socket(connection, server_side=True, credential=identities.ec)
        with wrapped:
            lines = Lines(wrapped)
            lines.say("* OK ready")
            while command := lines.hear():
                tag, verb = command.split()[:2]
                if verb == "CAPABILITY":
                    lines.say("* CAPABILITY IMAP4rev1")
                elif verb == "LOGOUT":
                    lines.say("* BYE", f"{tag} OK bye")
                    return
                lines.say(f"{tag} OK done")

    with one_client(talk) as port:
        client = imaplib.IMAP4_SSL(
            "localhost",
            port,
            ssl_context=client_ssl_context(identities.anchors),
            timeout=DEADLINE_SECONDS,
        )
        assert client.noop()[0] == "OK"
        client.logout()


def test_poplib_stls(identities: Any) -> None:
    def talk(connection: socket.socket) -> None:
        lines = Lines(connection)
        lines.say("+OK ready")
        while command := lines.hear():
            if command == "CAPA":
                lines.say("+OK", "STLS", ".")
            elif command == "STLS":
                lines.say("+OK go ahead")
                lines = Lines(
                    transport.wrap_socket(connection, server_side=True, credential=identities.ec)
                )
            elif command == "STAT":
                lines.say(f"+OK 0 {len(lines.connection.negotiated.group)}")
            elif command == "QUIT":
                lines.say("+OK bye")
                lines.connection.close()
                return

    with one_client(talk) as port:
        client = poplib.POP3("localhost", port, timeout=DEADLINE_SECONDS)
        client.stls(context=client_ssl_context(identities.anchors))
        assert client.stat() == (0, len("X25519MLKEM768"))
        client.quit()
