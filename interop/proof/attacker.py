"""The attacker: recorded streams and stolen keys in, what they open out.

One attacker serves every experiment and `pfs attack` alike, whatever was stolen and whoever's
capture it is, so that a session that stays closed stayed closed to the very code that opened its
control.

The sessions of a capture share what opening one of them tells about others: a session that resumes
one that opened earlier in the same capture opens too (see `interop.wire.learned`).

Which connections are TLS is seen from their first bytes, or from a ClientHello soon after them: TLS
may begin behind an agreement in the clear, such as STARTTLS. Where a connection's opening was not
captured, client and server are told apart by ports only and may be the wrong way round; then the
side that sends a ClientHello is the client. Memory is bounded by open connections: plaintext goes
to the sink as it is recovered, of a closed connection only its result is kept, and what directions
hold back while they wait for each other has one bound for all (see `interop.wire.held`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from interop.capture.streams import StreamClosed, StreamConflict, StreamData, StreamGap
from interop.direction import Direction
from interop.wire.held import HeldBytes
from interop.wire.learned import LearnedSecrets
from interop.wire.material import KeyMaterial
from interop.wire.record import HEADER_LENGTH, find_client_hello, not_tls_reason
from interop.wire.session import TLSSession

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interop.capture.streams import Connection, StreamEvent
    from interop.wire.facts import SessionFacts
    from interop.wire.key_log import KeyLog
    from interop.wire.material import Secret

__all__ = ["Attacker", "PlaintextSink", "SessionResult", "discard"]

PlaintextSink: TypeAlias = Callable[[int, Direction, bytes | bytearray], None]
"""Called with the number of a stream, a direction, and recovered application data."""

_SEARCHED_BYTES = 64 * 1024  # of a connection that begins as something else than TLS
_HELLO_TYPE_OFFSET = 5  # behind the record header
_CLIENT_HELLO = 1
_HANDSHAKE_RECORD = 0x16


def discard(_stream: int, _direction: Direction, _data: bytes | bytearray) -> None:
    """Take recovered application data and let it go; it is counted all the same."""


class SessionResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one TLS session.

    `stream` numbers the TCP connections of the capture from 0. Wireshark's ``tcp.stream`` counts
    some more, a stray acknowledgement's say; compare addresses and ports.
    `client_bytes` and `server_bytes` are octets of application data recovered from each side;
    `encrypted_bytes`, octets of application records on the wire, opened or not. `forward_secret`
    is None where the recording does not tell. `reason` says why records stayed closed, and of which
    byte, counted from 0, the capture holds two versions; it is empty where none stayed closed.
    """

    stream: int
    client: str
    server: str
    server_name: str | None
    version: str | None
    suite: str | None
    group: str | None
    forward_secret: bool | None
    resumed: bool | None
    client_random: str | None
    opened: bool
    opened_by: str | None
    client_bytes: int
    server_bytes: int
    encrypted_bytes: int
    reason: str


class Attacker:
    """Tries one theft on all connections of a capture.

    `stolen` is one secret, or several put together in `KeyMaterial`. Feed it the events of
    `interop.capture.files.read_streams` in their order, then `finish`; or let `attack` do both.
    What stays closed is a result with a reason, whatever was stolen and whatever was recorded: no
    method raises for that. `connections` counts TCP connections with data, TLS or not. With
    `settled`, each result goes there as soon as its session has ended, in no order, and `finish`
    returns none. `learned` is what opening other captures told, and is added to; `inspect` is given
    all facts of each session that ended.
    """

    def __init__(
        self,
        stolen: KeyMaterial | Secret,
        sink: PlaintextSink = discard,
        settled: Callable[[SessionResult], None] | None = None,
        *,
        learned: LearnedSecrets | None = None,
        inspect: Callable[[SessionFacts], None] | None = None,
    ) -> None:
        keys = stolen if isinstance(stolen, KeyMaterial) else KeyMaterial.of(stolen)
        self._keys = replace(keys, key_log=keys.key_log.copy())  # which `add_key_log` adds to
        self._learned = LearnedSecrets() if learned is None else learned
        self._begin = partial(TLSSession, self._keys, learned=self._learned, held=HeldBytes())
        self._inspect = inspect
        self._sink = sink
        self._targets: dict[Connection, _Target] = {}
        self._results: list[SessionResult] = []
        self._settled = settled or self._results.append
        self.connections = 0

    def attack(self, recorded: Iterable[object]) -> list[SessionResult]:
        """Take all events of a recording, and return the results."""
        for event in recorded:
            self.feed(event)
        return self.finish()

    def feed(self, event: StreamEvent | object) -> None:
        """Take the next event of a capture; what is not of a stream is passed over."""
        match event:
            case StreamData(connection=connection, direction=direction, data=data):
                target = self._targets.get(connection) or self._open(connection)
                target.feed(direction, data)
            case StreamGap(connection=connection, direction=direction):
                target = self._targets.get(connection) or self._open(connection)
                target.gap(direction)
            case StreamConflict(connection=connection, direction=direction, offset=offset):
                target = self._targets.get(connection) or self._open(connection)
                target.conflict(direction, offset)
            case StreamClosed(connection=connection) if connection in self._targets:
                if self._targets[connection].close():
                    self._settle(connection)
            case _:
                pass

    def add_key_log(self, key_log: KeyLog) -> None:
        """Take further secrets, for connections whose ServerHello has not come yet.

        Some programs write the secrets of each session into the capture when it shakes hands.
        """
        self._keys.key_log.add(key_log)

    def finish(self) -> list[SessionResult]:
        """Return the results of all TLS sessions, in the order of their streams."""
        for connection in list(self._targets):
            self._settle(connection)
        return sorted(self._results, key=lambda result: result.stream)

    def _open(self, connection: Connection) -> _Target:
        self.connections += 1
        target = self._targets[connection] = _Target(connection, self._begin, self._sink)
        return target

    def _settle(self, connection: Connection) -> None:
        target = self._targets.pop(connection)
        result = target.result()
        if result is None:
            return
        if self._inspect is not None:
            self._inspect(target.session)
        self._settled(result)


class _Target:
    """One connection under attack."""

    __slots__ = (
        "_awaits_server",
        "_begin",
        "_conflict",
        "_connection",
        "_open_directions",
        "_oriented",
        "_searched_bytes",
        "_sink",
        "_swapped",
        "session",
    )

    def __init__(
        self, connection: Connection, begin: Callable[[], TLSSession], sink: PlaintextSink
    ) -> None:
        self._connection = connection
        self._begin = begin
        self.session = begin()
        self._searched_bytes = 0
        self._awaits_server = False  # whether TLS began late, and its server has sent no record yet
        self._sink = sink
        self._oriented = connection.client_known
        self._swapped = False
        self._open_directions = 2
        self._conflict: tuple[Direction, int] | None = None  # the first one

    def feed(self, direction: Direction, data: memoryview) -> None:
        """Take bytes of one direction."""
        if not self._oriented:
            self._orient(direction, data)
        if self._awaits_server and not self._goes_on(direction, data):
            return
        if not self.session.not_tls:
            self._deliver(self.session.feed(self._true(direction), data))
        if self.session.not_tls and (start := self._find_beginning(direction, data)) >= 0:
            self._swapped = direction is not Direction.CLIENT_TO_SERVER
            self.session = self._begin()
            self._awaits_server = True
            self._deliver(self.session.feed(Direction.CLIENT_TO_SERVER, data[start:]))

    def _find_beginning(self, direction: Direction, data: memoryview) -> int:
        """Find where the client begins TLS on a connection that began as something else, or -1."""
        from_client = self._true(direction) is Direction.CLIENT_TO_SERVER
        room = _SEARCHED_BYTES - self._searched_bytes
        if room <= 0 or (self._connection.client_known and not from_client):
            return -1
        self._searched_bytes += len(data)
        return find_client_hello(bytes(data[:room]))

    def _goes_on(self, direction: Direction, data: memoryview) -> bool:
        """Whether data are TLS that began late: the client's are, the server's from a record on."""
        if self._true(direction) is Direction.SERVER_TO_CLIENT:
            self._awaits_server = not_tls_reason(data[:HEADER_LENGTH]) != ""
            return not self._awaits_server
        return True

    def gap(self, direction: Direction) -> None:
        """Note that bytes of one direction are not in the capture."""
        self._deliver(self.session.gap(self._true(direction)))

    def conflict(self, direction: Direction, offset: int) -> None:
        """Note that the capture holds two versions of a byte of one direction."""
        if self._conflict is None:
            self._conflict = direction, offset

    def close(self) -> bool:
        """Note that one direction ended; say whether both have."""
        self._open_directions -= 1
        return self._open_directions == 0

    def result(self) -> SessionResult | None:
        """Return what came of the session; None where there was no TLS."""
        session = self.session
        self._deliver(session.finish())
        if session.not_tls or session.client_random is None is session.server_random:
            return None
        client, server = self._connection.client, self._connection.server
        if self._swapped:
            client, server = server, client
        return SessionResult(
            stream=self._connection.index,
            client=_spelled(client.address, client.port),
            server=_spelled(server.address, server.port),
            server_name=session.server_name,
            version=session.version_name,
            suite=session.suite_name,
            group=session.group_name,
            forward_secret=session.forward_secret,
            resumed=session.resumed,
            client_random=None if session.client_random is None else session.client_random.hex(),
            opened=session.opened,
            opened_by=session.opened_by if session.opened else None,
            client_bytes=session.plaintext_bytes[Direction.CLIENT_TO_SERVER],
            server_bytes=session.plaintext_bytes[Direction.SERVER_TO_CLIENT],
            encrypted_bytes=sum(session.encrypted_application_bytes.values()),
            reason=self._reason(),
        )

    def _reason(self) -> str:
        """Say why records stayed closed; that the first of two versions counted may explain it."""
        undecryptable = self.session.undecryptable
        if undecryptable is None:
            return ""
        if self._conflict is None:
            return undecryptable.reason
        direction, offset = self._conflict
        side = "client" if self._true(direction) is Direction.CLIENT_TO_SERVER else "server"
        return (
            f"{undecryptable.reason}; the capture holds two versions of byte {offset} of the "
            f"{side}'s stream"
        )

    def _orient(self, direction: Direction, data: memoryview) -> None:
        """Take the side that sends a ClientHello for the client, the other one's for the server."""
        self._oriented = True
        if len(data) > _HELLO_TYPE_OFFSET and data[0] == _HANDSHAKE_RECORD:
            from_client = data[_HELLO_TYPE_OFFSET] == _CLIENT_HELLO
            self._swapped = from_client is not (direction is Direction.CLIENT_TO_SERVER)

    def _true(self, direction: Direction) -> Direction:
        return direction.opposite if self._swapped else direction

    def _deliver(self, recovered: list[tuple[Direction, bytearray]]) -> None:
        for direction, data in recovered:
            self._sink(self._connection.index, direction, data)


def _spelled(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
