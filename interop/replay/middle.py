"""The attacker's sockets: a man in the middle of one connection, and deliveries of recorded bytes.

`Middle` is a real TCP relay for one connection: a thread for each direction reads, cuts what it
read into records, asks an `Interferer` what to send instead, and sends that. A direction that
ended, or was cut, is ended towards the other side, and read to its end so that its sender is never
stuck. Each connection and each wait has a deadline.

(The relay of `interop.capture` has one poll loop for any number of connections and records before
it passes on. This one alters, and waits where it is told to, which is a thread's work.)

The relay keeps what the client sent, unit by unit, before any interference: with none it is the
recorder that the replays are made from.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from interop.direction import Direction
from interop.errors import DissectError
from interop.replay.flights import ClientUnits, Flight, Role, ServerUnits
from interop.replay.interference import CUT, Interferer, Pause
from interop.wire.record import RecordSplitter
from interop.wire.registry import AlertDescription, ContentType, name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from interop.replay.deliveries import Delivery
    from interop.replay.flights import Framing, Unit
    from interop.replay.interference import Step

    Dial = Callable[[], socket.socket]

__all__ = ["DEADLINE_SECONDS", "Middle", "Reaction", "deliver"]

DEADLINE_SECONDS: Final = 20.0
_READ_BYTES: Final = 64 * 1024
_MAX_HEARD_BYTES: Final = 1024 * 1024
_CLEAR_ALERT_BYTES: Final = 2
# A server answers a hello, be it with an alert; what comes in mid-handshake, perhaps not.
_MOMENTS_SECONDS: Final = (5.0, 0.05)


class Middle:
    """Relays one connection to what `dial` connects to, and interferes with it.

    Connect to `address`. `flight` is what the client sent; `interferer.applied` says whether there
    was anything to interfere with. Leaving the context waits for the connection's end, and raises
    the `OSError` that kept the server from being reached.
    """

    def __init__(self, dial: Dial, framing: Framing, interferer: Interferer | None = None) -> None:
        self._dial = dial
        self._client_units = ClientUnits(framing)
        self._server_units = ServerUnits(framing)
        self._interferer = interferer or Interferer(None)
        self._sent: list[Unit] = []
        self._failure: OSError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pfs-middle", daemon=True)
        self.address: tuple[str, int] = ("", 0)

    @property
    def flight(self) -> Flight:
        """What the client sent."""
        return Flight(tuple(self._sent))

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # on Linux this wakes the accept
        self._thread.join(2 * DEADLINE_SECONDS)
        self._listener.close()
        if self._failure is not None and kind is None:
            raise self._failure

    def _run(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # nobody came
            return
        with client:
            try:
                server = self._dial()
            except OSError as error:
                self._failure = error
                return
            with server:
                for end in (client, server):
                    end.settimeout(DEADLINE_SECONDS)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = threading.Thread(
                    target=self._pump,
                    args=(Direction.SERVER_TO_CLIENT, self._server_units, server, client),
                    daemon=True,
                )
                back.start()
                self._pump(Direction.CLIENT_TO_SERVER, self._client_units, client, server)
                back.join(DEADLINE_SECONDS)

    def _pump(
        self,
        direction: Direction,
        units: ClientUnits | ServerUnits,
        source: socket.socket,
        sink: socket.socket,
    ) -> None:
        """Pass one direction on until it ends; then end it towards the other side."""
        passing = True
        with contextlib.suppress(OSError):  # a reset ends a direction too
            while data := source.recv(_READ_BYTES):
                for unit in units.feed(data):
                    steps = self._steps(direction, unit)
                    passing = passing and self._carry_out(steps, sink)
        if passing:
            rest: list[Step] = [unit.raw for unit in units.finish()]
            passing = self._carry_out([*rest, *self._interferer.finish(direction)], sink)
        if passing:
            _end(sink)

    def _steps(self, direction: Direction, unit: Unit) -> list[Step]:
        if direction is Direction.CLIENT_TO_SERVER:
            self._sent.append(unit)
            self._server_units.asked |= unit.role in {Role.REQUEST, Role.EARLY_DATA}
        return self._interferer.take(direction, unit)

    def _carry_out(self, steps: list[Step], sink: socket.socket) -> bool:
        """Do as the interferer says; return whether the direction is still open."""
        for step in steps:
            if isinstance(step, Pause):
                self._closing.wait(step.seconds)
            elif step is CUT:
                _end(sink)
                return False
            else:
                try:
                    sink.sendall(step)
                except OSError:  # the other side is gone; what it said last still comes back
                    return False
        return True


def _end(sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Reaction:
    """How a server took a delivery, as far as an outsider can see.

    `alert` is one that came in clear; `ending` is *closed*, *reset*, or *still open* in the end.
    """

    answered_bytes: int
    alert: str
    ending: str

    def __str__(self) -> str:
        """Return it in a few words."""
        words = [f"alert {self.alert}"] if self.alert else []
        return ", ".join([*words, self.ending])


def deliver(dial: Dial, parts: Delivery, *, deadline_seconds: float = DEADLINE_SECONDS) -> Reaction:
    """Send recorded bytes on a connection of their own; end it, and wait for the server's end.

    Between parts the server is given a moment to answer. Raises `OSError` where the server cannot
    be reached.
    """
    deadline = time.monotonic() + deadline_seconds
    heard = bytearray()
    ending = "closed"
    with dial() as connection:
        connection.settimeout(deadline_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for number, part in enumerate(filter(None, parts)):
                if number:
                    heard += _hear(connection, _MOMENTS_SECONDS[number > 1])
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(_READ_BYTES):
                heard += data[: max(_MAX_HEARD_BYTES - len(heard), 0)]
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            ending = "still open"
        except OSError:
            ending = "reset"  # a server that refuses may reset while the rest is being sent
    return Reaction(len(heard), _clear_alert(bytes(heard)), ending)


def _hear(connection: socket.socket, seconds: float) -> bytes:
    """Return what the server says next, or nothing if it says nothing in that time."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return connection.recv(_READ_BYTES) if poll.poll(seconds * 1000) else b""


def _clear_alert(heard: bytes) -> str:
    """Return the last alert that a server sent in clear; empty if there was none."""
    try:
        records = RecordSplitter().feed(heard)
    except DissectError:
        return ""
    alerts = [
        record.fragment[1]
        for record in records
        if record.content_type == ContentType.ALERT and len(record.fragment) == _CLEAR_ALERT_BYTES
    ]
    return name_of(AlertDescription, alerts[-1]) if alerts else ""
