"""Somebody else's server as a target: a live one, which whoever runs this must own.

Its executions are counted where it says how many there were: `count_url` is asked with a GET and
answers with one decimal number, which must count the requests of this run and nothing else, the
question itself included. Without one only reactions are seen, and every verdict is *not counted*.

A count may lag behind the connection that caused it, so it is read until it stands still.
"""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import h11

import transport
from interop.capture.files import read_streams
from interop.capture.streams import Direction, StreamData
from interop.errors import InputError, InteropError
from interop.peers.early_data import EarlyDataClient
from interop.replay.application import make_request
from interop.replay.cases import FRESH, Case, Recorded
from interop.replay.flights import ClientUnits, Flight
from interop.replay.model import How, What
from interop.replay.targets import Count, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from certs.credential import TrustAnchors
    from interop.http_exchange import ByteStream
    from interop.identity import Identity
    from interop.replay.application import Request
    from interop.replay.deliveries import Deliver, Delivery
    from interop.replay.flights import Framing
    from interop.replay.targets import Address
    from transport import ProtocolVersion

__all__ = ["ForeignServer", "captured_case", "read_count"]

_DEADLINE_SECONDS: Final = 5.0
_STILL_SECONDS: Final = 0.1
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_DIGITS: Final = 18
_MAX_FLIGHTS: Final = 1000
_MAX_FLIGHT_BYTES: Final = 64 * 1024 * 1024
_OK: Final = 200
_CLIENT_HELLO: Final = 1
_HANDSHAKE: Final = 22
_HELLO_TYPE_OFFSET: Final = 5


@dataclass(frozen=True, kw_only=True)
class ForeignServer:
    """How to reach a server and make it execute something.

    Raises `InputError` for a method, path or name that no request can have.
    """

    address: Address
    server_name: str
    trust_anchors: TrustAnchors
    method: str = "GET"
    path: str = "/"
    count_url: str | None = None

    def __post_init__(self) -> None:
        if not self.path.startswith("/"):
            raise InputError(f"no request has the path {self.path!r}: it begins with /")
        try:
            self._make()
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise InputError(f"no request can be made of these options: {error}") from error
        if self.count_url is not None:
            _split_url(self.count_url)

    def _make(self, body: bytes = b"", *, close: bool = False) -> Request:
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return make_request(body, host=host, method=self.method, target=self.path, close=close)

    def targets(self, _stack: ExitStack, _identity: Identity) -> Iterator[Target]:
        """Yield a target for each version that an honest session comes about with.

        Raises `InputError` where none does, or the count cannot be read.
        """
        self._count()
        problems: list[str] = []
        found = False
        for version in transport.DEFAULT_POLICY.versions:
            try:
                with self._connect(version, self.address):
                    pass
            except OSError as error:
                problems.append(f"{version}: {error}")
                continue
            found = True
            yield self._target(version)
        if not found:
            host, port = self.address
            raise InputError(f"no honest session with {host}:{port}: {'; '.join(problems)}")

    def _target(self, version: ProtocolVersion) -> Target:
        new = version == "TLS 1.3"
        host, port = self.address
        return Target(
            name=f"target-tls{version.removeprefix('TLS ').replace('.', '')}",
            title=f"{host}:{port}, {version}",
            framing="TLS 1.3" if new else "TLS 1.2",
            dial=lambda: socket.create_connection(self.address, _DEADLINE_SECONDS),
            connect=partial(self._connect, version),
            settle=self._settle,
            count=self._count,
            request=self._make,
            method=self.method,
            tickets=EarlyDataClient(self.trust_anchors.pem(), self.server_name) if new else None,
            resumes=None,
            deadline_seconds=_DEADLINE_SECONDS,
        )

    @contextlib.contextmanager
    def _connect(self, version: ProtocolVersion, address: Address) -> Iterator[ByteStream]:
        with transport.connect(
            address,
            trust_anchors=self.trust_anchors,
            server_hostname=self.server_name,
            policy=transport.DEFAULT_POLICY.narrowed(versions=(version,)),
            timeout_seconds=_DEADLINE_SECONDS,
        ) as connection:
            connection.settimeout(_DEADLINE_SECONDS)
            yield connection

    def _count(self) -> Count:
        if self.count_url is None:
            return Count()
        return Count(read_count(self.count_url, self.trust_anchors))

    def _settle(self) -> tuple[str, ...]:
        """Wait until the count stands still."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        last = self._count()
        while last.total is not None and time.monotonic() < deadline:
            time.sleep(_STILL_SECONDS)  # nobody tells us when somebody else's count is final
            now = self._count()
            if now == last:
                break
            last = now
        return ()


def read_count(url: str, trust_anchors: TrustAnchors) -> int:
    """GET a decimal number from an http or https URL; raises `InputError` for anything else."""
    https, address, target, host = _split_url(url)
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", host), ("Connection", "close")]
    try:
        request = connection.send(h11.Request(method="GET", target=target, headers=headers))
        request = (request or b"") + (connection.send(h11.EndOfMessage()) or b"")
        with contextlib.ExitStack() as stack:
            stream: ByteStream
            if https:
                stream = stack.enter_context(
                    transport.connect(
                        address, trust_anchors=trust_anchors, timeout_seconds=_DEADLINE_SECONDS
                    )
                )
            else:
                stream = stack.enter_context(socket.create_connection(address, _DEADLINE_SECONDS))
            stream.sendall(request)
            status, body = _read_answer(connection, stream)
    except (OSError, h11.ProtocolError) as error:
        raise InputError(f"{url} cannot be read: {error}") from error
    text = body.decode("ascii", "replace").strip()
    if status != _OK or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise InputError(f"{url} answers {status} and {text[:40]!r}, and not a decimal number")
    return int(text)


def _read_answer(connection: h11.Connection, stream: ByteStream) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    while True:
        event = connection.next_event()
        match event:
            case h11.Response():
                status = event.status_code
            case h11.Data():
                body += event.data
                if len(body) > _MAX_ANSWER_BYTES:
                    return status, bytes(body)
            case h11.EndOfMessage() | h11.ConnectionClosed():
                return status, bytes(body)
            case h11.NEED_DATA:
                connection.receive_data(stream.recv(_MAX_ANSWER_BYTES))
            case _:
                pass


def _split_url(url: str) -> tuple[bool, Address, str, str]:
    """Return whether a URL is https, where it leads, its target, and its Host."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(f"{url!r} is not an http or https URL")
    https = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return https, (parts.hostname, port or (443 if https else 80)), target, parts.netloc


def captured_case(captures: Sequence[Path]) -> Case:
    """Return the case of sending all client flights of capture files again, at once and paced.

    Raises `InputError` for a file that is no capture, and where there is no such flight.
    """
    flights = tuple(flight for path in captures for flight in _client_flights(path))
    if not flights:
        raise InputError("the captures hold no TLS session that begins with its ClientHello")
    return Case(
        name="captured-flights",
        what=What.FLIGHT,
        how=How.DUPLICATED,
        sentence=f"{len(flights)} client flights of the captures, sent again",
        experiment=Recorded(_deliver_all(flights)),
        basis=FRESH,
    )


def _deliver_all(flights: Iterable[bytes]) -> Deliver:
    deliveries: list[Delivery] = []
    for raw in flights:
        framing: Framing = "TLS 1.3"  # the hello and the rest are cut alike in both
        flight = Flight(tuple(ClientUnits(framing).feed(raw)))
        deliveries += [(raw,), flight.split_after_hello()]
    return lambda _first, _second: tuple(deliveries)


def _client_flights(capture: Path) -> list[bytes]:
    sent: dict[int, bytearray] = {}
    total = 0
    for event in read_streams(capture):
        if isinstance(event, StreamData) and event.direction is Direction.CLIENT_TO_SERVER:
            total += len(event.data)
            sent.setdefault(event.connection.index, bytearray()).extend(event.data)
            if total > _MAX_FLIGHT_BYTES or len(sent) > _MAX_FLIGHTS:
                raise InteropError(
                    f"{capture}: more than {_MAX_FLIGHTS} connections or "
                    f"{_MAX_FLIGHT_BYTES >> 20} MiB from clients; cut it into smaller captures"
                )
    return [
        bytes(raw)
        for raw in sent.values()
        if len(raw) > _HELLO_TYPE_OFFSET
        and raw[0] == _HANDSHAKE
        and raw[_HELLO_TYPE_OFFSET] == _CLIENT_HELLO
    ]
