"""What every driver takes and gives: options, results, and a running server.

Certificates, keys and trust come as paths of PEM files, so that no driver depends on how this
project makes them. Versions are written ``"1.2"`` and ``"1.3"``, suites and groups as IANA writes
them (see `interop.peers.names`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Required, TypedDict

from interop.errors import InputError
from interop.peers.messages import HTTPResponse, parse_response

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interop.peers.names import TLSVersion
    from interop.peers.processes import ChildProcess
    from interop.peers.programs import Program

__all__ = [
    "MAXIMUM_PAYLOAD_BYTES",
    "Address",
    "ClientOptions",
    "ClientResult",
    "CredentialFiles",
    "Negotiated",
    "RunningServer",
    "ServerOptions",
    "absolute_file",
    "address_text",
    "check_server_name",
    "is_ip_address",
    "open_request_body",
    "prepare_key_log",
    "request_stream",
]

Address = tuple[str, int]

MAXIMUM_PAYLOAD_BYTES: Final = 64 << 20
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFiles:
    """PEM files of one endpoint: its chain, leaf first, and its unencrypted private key."""

    certificate_chain: Path
    private_key: Path


class ClientOptions(TypedDict, total=False):
    """How a foreign client is to behave; what is absent is the stack's own default.

    The server's chain is verified against `ca_file` alone, and its name against `server_name`
    (a host name, or an IP address, which is then not sent as a server name). With `credential` the
    client authenticates too. `key_log` is where the client shall write its session secrets, made
    with mode 0600 if it is not there. `timeout_seconds` bounds the whole session.
    """

    ca_file: Required[Path]
    server_name: Required[str]
    timeout_seconds: Required[float]
    version: TLSVersion | None
    groups: Sequence[str] | None
    suites: Sequence[str] | None
    credential: CredentialFiles | None
    key_log: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How a foreign server is to behave; what is None or absent is the stack's own default.

    `key_log` is where the server shall write its session secrets (made with mode 0600 if it is
    not there); a driver whose program cannot do that raises PeerUnavailable. Without `tickets`
    the server issues none, on either version. With `client_ca_file` it takes only clients that
    show a certificate from there.
    """

    credential: CredentialFiles
    versions: tuple[TLSVersion, ...] = ("1.2", "1.3")
    groups: tuple[str, ...] | None = None
    suites: tuple[str, ...] | None = None
    tickets: bool = False
    client_ca_file: Path | None = None
    key_log: Path | None = None
    start_seconds: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A foreign server that is accepting connections at `address`, on loopback.

    `key_log` is the file it writes its session secrets to, None if it does not. `child` is its
    process, or the first of them, which leads the group of all.
    """

    program: Program
    address: Address
    key_log: Path | None
    child: ChildProcess


@dataclass(frozen=True, slots=True, kw_only=True)
class Negotiated:
    """What a client printed about its session, in IANA names; empty where it does not say."""

    version: str
    suite: str
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResult:
    """What became of one client session.

    `exit_code` is the program's. `response` is every byte of application data the server sent, as
    the program handed it on. `negotiated` is None if no handshake completed.
    """

    program: Program
    exit_code: int
    response: bytes
    stderr_tail: str
    negotiated: Negotiated | None

    def http(self) -> HTTPResponse:
        """Read `response` as HTTP; raises PeerFailed if it is not a complete response."""
        return parse_response(self.response)


def is_ip_address(name: str) -> bool:
    """Say whether `name` is an IP address, which is verified but never sent as a server name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def check_server_name(name: str) -> str:
    """Return `name`; raises InputError unless it can stand in a URL and on a command line."""
    if not is_ip_address(name) and _HOST_NAME.fullmatch(name) is None:
        raise InputError(f"{name!r} is not a host name or an IP address")
    return name


def address_text(address: Address) -> str:
    """Write an address as ``host:port``, IPv6 in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def absolute_file(path: Path, what: str) -> Path:
    """Make `path` absolute (the programs run elsewhere); raises InputError if it is no file."""
    if not path.is_file():
        raise InputError(f"{what}: {path} is not a file")
    return path.absolute()


def prepare_key_log(path: Path) -> Path:
    """Make an empty key log with mode 0600 unless the file exists; the programs append to it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass  # several sessions may share a log
    except OSError as error:
        raise InputError(f"key log {path} cannot be written: {error.strerror}") from error
    return absolute_file(path, "key log")


@contextlib.contextmanager
def open_request_body(payload: bytes | Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open `payload`, bytes or a file, for reading; yield it and its length in bytes.

    Raises InputError if it cannot be read or is longer than `MAXIMUM_PAYLOAD_BYTES`.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(payload, Path):
            try:
                body: IO[bytes] = stack.enter_context(payload.open("rb"))
            except OSError as error:
                raise InputError(f"payload {payload}: {error.strerror}") from error
            length = os.fstat(body.fileno()).st_size
        else:
            length = len(payload)
            body = stack.enter_context(tempfile.TemporaryFile())
            if length <= MAXIMUM_PAYLOAD_BYTES:
                body.write(payload)
                body.seek(0)
        if length > MAXIMUM_PAYLOAD_BYTES:
            raise InputError(f"a payload of {length} bytes is more than {MAXIMUM_PAYLOAD_BYTES}")
        yield body, length


@contextlib.contextmanager
def request_stream(head: bytes, body: IO[bytes]) -> Iterator[IO[bytes]]:
    """Yield an unnamed file that holds `head` and then the rest of `body`, at its beginning.

    A file, not a pipe: a program that reads its request from one can never wait for us while we
    wait for it.
    """
    with tempfile.TemporaryFile() as stream:
        stream.write(head)
        shutil.copyfileobj(body, stream, 1 << 20)
        stream.flush()
        stream.seek(0)
        yield stream
