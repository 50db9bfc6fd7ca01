"""A census of a live server: connect again and again, and take down what a client can see.

That is both randoms, both sides' public values, the tickets it is given, and the secrets that it
shares with the server, from its own key log. Connections are made by threads, for most of the time
goes by waiting. Each is one handshake under a deadline, a polite end, and no application data.
Every few, a client stays a moment for a ticket, and comes back with it (TLS 1.3 alone: TLS 1.2
resumes with the main secret of the session before, which is a repetition by design).

What the server refuses (a version, a group) is found by asking once, left out, and said. It stops
early when time is up, or the server stops answering; the report then covers what there was.

Nothing is verified unless trust anchors are given: the census is of whoever answers.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from interop.census.conditions import Condition
from interop.census.ends import KeyLogLines, OpenSSLEnd
from interop.census.hellos import HandshakeWatch
from interop.census.sampling import records_of, take_tickets
from interop.census.values import Findings, Gathered
from interop.errors import InteropError, PeerUnavailable
from interop.peers.observer import OBSERVER_OFFERS, ObserverOffer, observer_context
from interop.wire.record import HEADER_LENGTH
from transport import openssl

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import TrustAnchors
    from interop.census.workers import Sink

__all__ = ["Target", "TargetRun", "survey"]

_CONNECTION_SECONDS: Final = 10.0
_TICKET_SECONDS: Final = 0.5
_WAITS_FOR_TICKETS: Final = 5  # every fifth connection
_MOST_TICKET_BYTES: Final = 1 << 17
_RECEIVE_BYTES: Final = 1 << 16
_MOST_FLIGHT_BYTES: Final = 1 << 20
_FAILURES_IN_A_ROW: Final = 20
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Target:
    """A server to look at, and how: `trust_anchors` None means that anybody may answer."""

    address: tuple[str, int]
    server_name: str
    trust_anchors: TrustAnchors | None = None


@dataclass(frozen=True, slots=True)
class TargetRun:
    """How a survey went: what the server refused, and why it ended early, if it did."""

    seconds: float
    refused: tuple[str, ...]
    shortfall: str | None


class _Failed(Exception):
    """A connection that came to nothing, and why."""


class _Unreachable(_Failed):
    """A connection that could not even be made."""


def survey(
    handshakes: int,
    target: Target,
    sink: Sink,
    *,
    workers: int,
    seconds: float,
    progress: Callable[[int], None] = lambda _done: None,
) -> TargetRun:
    """Make `handshakes` handshakes with `target`, by `workers` threads, within `seconds`.

    Raises `PeerUnavailable` if it cannot be reached, or takes none of the offers.
    """
    started = time.monotonic()
    client = _Client(target)
    refused: list[str] = []
    offers: list[ObserverOffer] = []
    done = 0
    for offer in OBSERVER_OFFERS[:handshakes]:
        try:
            gathered = client.observe(offer, None, wait_for_tickets=False).gathered
        except _Unreachable as failure:
            raise PeerUnavailable(f"{_name(target)} cannot be reached: {failure}") from None
        except _Failed as failure:
            refused.append(f"{offer.name}, which the server refused: {failure}")
            continue
        offers.append(offer)
        sink.add(gathered)
        done += 1
        progress(done)
    if not offers:
        raise PeerUnavailable(f"{_name(target)}: no handshake succeeded; not tested: {refused[0]}")
    work = _Work(client, tuple(offers), handshakes - done, started + seconds)
    threads = [threading.Thread(target=work.run, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) or not work.results.empty():
            try:
                sink.add(work.results.get(timeout=_LOOK_SECONDS))
                done += 1
            except queue.Empty:
                pass
            progress(done)
    finally:
        work.stop()
    return TargetRun(time.monotonic() - started, tuple(refused), work.shortfall)


def _name(target: Target) -> str:
    return "{}:{}".format(*target.address)


class _Work:
    """What the threads of a survey share."""

    def __init__(
        self, client: _Client, offers: tuple[ObserverOffer, ...], handshakes: int, ends: float
    ) -> None:
        self._client, self._offers, self._left, self._ends = client, offers, handshakes, ends
        self._wanted = handshakes
        self._lock = threading.Lock()
        self._stopped = False
        self._failures = 0
        self._reasons: Counter[str] = Counter()
        self._defect: Exception | None = None
        self.results: queue.SimpleQueue[Gathered] = queue.SimpleQueue()

    def stop(self) -> None:
        """Let threads end with the connection that they are at; raise what ended one by mistake."""
        self._stopped = True
        if self._defect is not None:
            raise self._defect

    @property
    def shortfall(self) -> str | None:
        """Why there were fewer handshakes than asked for, or failures among them."""
        (reason, _), *_ = self._reasons.most_common(1) or [("none", 0)]
        failed = sum(self._reasons.values())
        if self._left > 0:
            why = (
                f"the last {self._failures} connections failed in a row"
                if self._failures >= _FAILURES_IN_A_ROW
                else "time was up"
            )
            return f"ended early: {why}; {failed} failed in all, most often: {reason}"
        return f"{failed} connections failed, most often: {reason}" if failed else None

    def run(self) -> None:
        """Make connections until there are enough of them."""
        sessions: dict[ObserverOffer, SSL.Session] = {}
        while (number := self._next()) is not None:
            offer = self._offers[number % len(self._offers)]
            try:
                seen = self._client.observe(
                    offer,
                    sessions.pop(offer, None),
                    wait_for_tickets=number // len(self._offers) % _WAITS_FOR_TICKETS == 0,
                )
            except _Failed as failure:
                self._failed(str(failure))
                continue
            except Exception as error:  # noqa: BLE001 - raised again by `stop`
                self._defect, self._stopped = error, True
                return
            if seen.session is not None:
                sessions[offer] = seen.session
            with self._lock:
                self._failures = 0
            self.results.put(seen.gathered)

    def _next(self) -> int | None:
        with self._lock:
            if (
                self._left <= 0
                or self._stopped
                or self._failures >= _FAILURES_IN_A_ROW
                or time.monotonic() > self._ends
            ):
                return None
            self._left -= 1
            return self._wanted - self._left

    def _failed(self, reason: str) -> None:
        with self._lock:
            self._left += 1
            self._failures += 1
            self._reasons[reason] += 1


@dataclass(slots=True)
class _Seen:
    """One connection: what it brought, and a session to come back with."""

    gathered: Gathered
    session: SSL.Session | None = field(default=None, repr=False)


class _Client:
    """Makes single connections; for any number of threads."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._key_log = KeyLogLines()
        self._contexts = {
            offer: observer_context(offer, self._key_log.write_line, target.trust_anchors)
            for offer in OBSERVER_OFFERS
        }

    def observe(
        self, offer: ObserverOffer, session: SSL.Session | None, *, wait_for_tickets: bool
    ) -> _Seen:
        """Connect, shake hands, take down what there is, and leave. Raises `_Failed`."""
        self._key_log.take()
        deadline = time.monotonic() + _CONNECTION_SECONDS
        try:
            sock = socket.create_connection(self._target.address, _CONNECTION_SECONDS)
        except OSError as error:
            raise _Unreachable(error.strerror or str(error) or type(error).__name__) from error
        try:
            with sock:
                return self._talk(sock, offer, session, deadline, wait_for_tickets=wait_for_tickets)
        except OSError as error:
            raise _Failed(error.strerror or str(error) or type(error).__name__) from error
        except InteropError as error:
            raise _Failed(str(error)) from error

    def _talk(
        self,
        sock: socket.socket,
        offer: ObserverOffer,
        session: SSL.Session | None,
        deadline: float,
        *,
        wait_for_tickets: bool,
    ) -> _Seen:
        name = self._target.server_name
        end = OpenSSLEnd(self._contexts[offer], server_name=name, session=session)
        self._expect(end.connection, name)
        watch = HandshakeWatch()
        _shake_hands(end, sock, watch, deadline)
        resumed = openssl.session_reused(end.connection)
        findings = Findings()
        findings.handshake(_describe(end.connection, resumed=resumed), watch.values)
        findings.add_secrets(self._key_log.take())
        findings.add((("exporter", end.export()),))
        later = None
        if wait_for_tickets and end.connection.get_protocol_version() == SSL.TLS1_3_VERSION:
            psks = _wait_for_tickets(end, sock, deadline)
            findings.add(("psk", psk) for psk in psks)
            later = end.connection.get_session() if psks else None
        with contextlib.suppress(SSL.Error, OSError):
            end.connection.shutdown()
            sock.sendall(end.data_to_send())
        end.connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)  # keep the session
        condition = Condition.RESUMPTION if resumed else Condition.LIVE_TARGET
        return _Seen(findings.gathered(condition), later)

    def _expect(self, connection: SSL.Connection, name: str) -> None:
        if self._target.trust_anchors is None:
            return
        try:
            openssl.expect_address(connection, ip_address(name))
        except ValueError:
            openssl.expect_name(connection, name)


def _shake_hands(
    end: OpenSSLEnd, sock: socket.socket, watch: HandshakeWatch, deadline: float
) -> None:
    received = 0
    while True:
        done = end.handshake()
        if data := end.data_to_send():
            watch.client(data)
            sock.settimeout(_left(deadline))
            sock.sendall(data)
        if done:
            return
        sock.settimeout(_left(deadline))
        data = sock.recv(_RECEIVE_BYTES)
        received += len(data)
        if not data:
            raise _Failed("the server closed the connection during the handshake")
        if received > _MOST_FLIGHT_BYTES:
            raise _Failed("the server sent more than a handshake takes")
        watch.server(data)
        end.receive_data(data)


def _wait_for_tickets(end: OpenSSLEnd, sock: socket.socket, deadline: float) -> list[bytes]:
    """Stay for a moment; return the PSK of each ticket that came."""
    until = min(deadline, time.monotonic() + _TICKET_SECONDS)
    psks: list[bytes] = []
    waiting, received = b"", 0
    while received < _MOST_TICKET_BYTES and (left := until - time.monotonic()) > 0:
        sock.settimeout(left if not psks else min(left, _TICKET_SECONDS / 10))
        try:
            data = sock.recv(_RECEIVE_BYTES)
        except TimeoutError:
            break
        if not data:
            break
        received += len(data)
        records = list(records_of(waiting + data))
        waiting = b"" if not records or _is_whole(records[-1]) else records.pop()
        psks += take_tickets(end, b"".join(records))
    return psks


def _is_whole(record: bytes) -> bool:
    length = int.from_bytes(record[3:HEADER_LENGTH], "big")
    return len(record) >= HEADER_LENGTH and len(record) == HEADER_LENGTH + length


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Failed(f"no handshake within {_CONNECTION_SECONDS:.0f} seconds")
    return left


def _describe(connection: SSL.Connection, *, resumed: bool) -> str:
    """Name version and group, as the census of our own endpoints does."""
    version = connection.get_protocol_version_name().replace("TLSv", "TLS ")
    group = connection.get_group_name() or "no group"
    return f"{version} {group}" + (" resumed" if resumed else "")
