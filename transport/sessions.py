"""Sessions that a client keeps, to resume them: TLS 1.3 alone, with a fresh key exchange each time.

A `ClientSessions` is handed to `connect` or `open_connection`, under a policy that resumes; without
one a client neither keeps nor offers anything. It lives in memory alone, since what it holds are
secrets: whoever has a ticket's key can pose as this client's peer until the ticket ends. They are
in no repr, cannot be pickled, do not follow a `fork`, and are wiped when they are dropped.

**Who is authenticated.** A resumed handshake shows no certificate and checks none: it says only
that the peer is the one of the session before. What that one was checked against must therefore be
the same now. So tickets are found by everything that decided about it: the address connected to,
the name asked for and expected, the context's scope (policy, trust anchors, own certificate,
application protocols: see `EndpointContext.scope`), and the authorization. If any of them differs
there is no ticket, and the handshake is a full one. The authorization is applied again each time,
to the certificate that the session remembers. For what changes without showing in these, such as a
revocation that came to light, there is `clear`.

**How long.** A ticket ends at the earliest of: the server's hint (RFC 9846 section 4.7.1, at most
seven days), the policy's `session_lifetime_seconds`, and the end of any certificate in the chain
that was verified. The last two run from the full handshake, and tickets that a resumed session
brings inherit them: otherwise a client that comes back often enough would never look at a
certificate again. Ages are taken from a clock that nobody sets and that goes on through a suspend.

**Once.** A ticket is taken out before it is offered and never put back (appendix C.4: one that is
seen twice links its connections). The newest is taken, since it lives longest. A server that
declines one is not offered its siblings, which it has probably forgotten too, or which belong to a
certificate that it had a reason to replace.

**When they come.** TLS 1.3 sends tickets after the handshake, so they come with what is read first.
The binding has no callback for them, and the session that one can ask for is the last alone; but
a core reads one message at a time and looks after each, so that each of several tickets is kept. A
client that never read does so when it closes.

**Bad ends.** A connection that fails takes its tickets along: RFC 9846 section 6.2 asks for that
after a fatal alert, and a truncation is treated alike. So does one that is closed without
close_notify; there the library spoils the last ticket by itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Self

from cryptography import x509

from transport import openssl
from transport.errors import APIMisuse, CertificateRejected
from transport.policy import MAX_SESSION_LIFETIME_SECONDS, Resumption

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from OpenSSL import SSL

    from transport.context import EndpointContext
    from transport.negotiated import NegotiatedSession
    from transport.openssl import TicketSession

__all__ = [
    "ClientSessions",
    "ConnectionTickets",
    "Moment",
    "connection_tickets",
    "require_valid_certificate",
]

_DEFAULT_MAX_SERVERS: Final = 256
_DEFAULT_MAX_TICKETS_PER_SERVER: Final = 4
_MAX_SESSION_BYTES: Final = 64 * 1024  # with its ticket and certificate; theirs are 2 KiB
_AGEING_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Moment(NamedTuple):
    """Now, by two clocks: seconds that nobody can set, and seconds since 1970."""

    elapsed_seconds: float
    wall_seconds: float


def _read_clocks() -> Moment:
    return Moment(time.clock_gettime(_AGEING_CLOCK), time.time())


@dataclass(frozen=True, slots=True)
class _Lineage:
    """Until when sessions that go back to one full handshake may be resumed, by either clock."""

    ends_elapsed_seconds: float
    ends_wall_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    session: TicketSession = field(repr=False)
    lineage: _Lineage
    ends_elapsed_seconds: float
    earned_by: object = field(repr=False)

    def is_usable(self, now: Moment) -> bool:
        """Return whether it may still be offered."""
        return (
            now.elapsed_seconds < self.ends_elapsed_seconds
            and now.wall_seconds < self.lineage.ends_wall_seconds
        )


class ClientSessions:
    """Sessions of a client's connections, kept in memory to be resumed; for any number of threads.

    At most `max_servers` servers, the least recently used dropped first, and the newest
    `max_tickets_per_server` tickets of each. `close`, or leaving a `with` block, drops all of them;
    connecting with it raises `APIMisuse` then. Give the same one to connections that may share
    sessions: they can be linked with each other by the server.
    """

    def __init__(
        self,
        *,
        max_servers: int = _DEFAULT_MAX_SERVERS,
        max_tickets_per_server: int = _DEFAULT_MAX_TICKETS_PER_SERVER,
        clock: Callable[[], Moment] = _read_clocks,
    ) -> None:
        if max_servers < 1 or max_tickets_per_server < 1:
            raise APIMisuse(
                "a store for no sessions was asked for",
                advice="ask for at least one server and one ticket, or pass no sessions",
            )
        self._max_servers = max_servers
        self._max_tickets_per_server = max_tickets_per_server
        self._clock = clock
        self._tickets: OrderedDict[Hashable, list[_Ticket]] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} tickets of {len(self._tickets)} servers"
        return f"<ClientSessions {state}>"

    def __len__(self) -> int:
        """Return how many tickets are kept, those that have just become too old included."""
        self._begin_anew_after_fork()
        with self._lock:
            return sum(map(len, self._tickets.values()))

    def __bool__(self) -> bool:
        """Return True: a store without a ticket yet is a store."""
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("sessions hold secrets and stay in their process")

    def clear(self) -> None:
        """Drop every ticket, such as after a revocation; the store stays in use."""
        self._begin_anew_after_fork()
        with self._lock:
            self._tickets.clear()

    def close(self) -> None:
        """Drop every ticket and take no more; later calls do nothing."""
        self._closed = True
        self.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise APIMisuse("the store of sessions is closed", advice="make another one")

    def _now(self) -> Moment:
        return self._clock()

    def _take(self, server: Hashable) -> _Ticket | None:
        """Take out the newest usable ticket of a server."""
        self._begin_anew_after_fork()
        now = self._now()
        with self._lock:
            kept = self._tickets.get(server)
            while kept:
                ticket = kept.pop()
                if not kept:
                    del self._tickets[server]
                if ticket.is_usable(now):
                    return ticket
        return None

    def _keep(self, server: Hashable, ticket: _Ticket) -> None:
        """Keep a ticket, dropping what there is no more room for."""
        self._begin_anew_after_fork()
        with self._lock:
            if self._closed:
                return
            kept = self._tickets.setdefault(server, [])
            self._tickets.move_to_end(server)
            kept.append(ticket)
            del kept[: -self._max_tickets_per_server]
            while len(self._tickets) > self._max_servers:
                self._tickets.popitem(last=False)

    def _drop(self, server: Hashable, *, earned_by: object | None = None) -> None:
        """Drop a server's tickets: all of them, or those that one connection brought."""
        self._begin_anew_after_fork()
        with self._lock:
            kept = self._tickets.pop(server, [])
            left = [ticket for ticket in kept if earned_by not in {None, ticket.earned_by}]
            if left:
                self._tickets[server] = left

    def _begin_anew_after_fork(self) -> None:
        # Two processes with one ticket would use it twice. The lock may be held by a thread that
        # does not exist on this side, so it is replaced too.
        if self._process != os.getpid():
            self._lock = threading.Lock()
            self._tickets = OrderedDict()
            self._process = os.getpid()


class ConnectionTickets:
    """What one connection spends and earns; made by `connection_tickets`, used by its `TLSCore`."""

    __slots__ = (
        "_last_session",
        "_lifetime_seconds",
        "_lineage",
        "_mark",
        "_offered",
        "_server",
        "_store",
    )

    def __init__(self, store: ClientSessions, server: Hashable, lifetime_seconds: float) -> None:
        self._store: ClientSessions | None = store
        self._server = server
        self._lifetime_seconds = lifetime_seconds
        self._mark = object()
        self._offered: _Ticket | None = None
        self._lineage: _Lineage | None = None
        self._last_session: TicketSession | None = None

    def offer(self, connection: SSL.Connection) -> None:
        """Let a new connection offer a ticket, if there is one; call it before the handshake."""
        if self._store is not None:
            self._offered = self._store._take(self._server)  # noqa: SLF001 - the store's other half
            if self._offered is not None:
                openssl.offer_session(connection, self._offered.session)

    def established(self, connection: SSL.Connection, negotiated: NegotiatedSession) -> None:
        """Learn whom the tickets to come are of; call it after a checked handshake."""
        store, offered, self._offered = self._store, self._offered, None
        if store is None:
            return
        if negotiated.resumed and offered is not None:
            self._lineage = offered.lineage
        else:
            if offered is not None:
                store._drop(self._server)  # noqa: SLF001 - as above
            now = store._now()  # noqa: SLF001 - as above
            self._lineage = _Lineage(
                now.elapsed_seconds + self._lifetime_seconds, _end_of_chain(connection)
            )
        self._last_session = openssl.take_session(connection, None)

    def look(self, connection: SSL.Connection) -> None:
        """Keep the ticket that has just come, if it was one; call it after each message."""
        if self._store is not None and self._lineage is not None:
            session = openssl.take_session(connection, self._last_session)
            if session is not None:
                self._last_session = session
                self._keep(self._store, self._lineage, session)

    def discard(self) -> None:
        """Drop what this connection earned and take no more: it ended badly."""
        store, self._store, self._offered = self._store, None, None
        self._last_session = None
        if store is not None:
            store._drop(self._server, earned_by=self._mark)  # noqa: SLF001 - as above

    def _keep(self, store: ClientSessions, lineage: _Lineage, session: TicketSession) -> None:
        size_bytes, hint_seconds = session.measure()
        now = store._now()  # noqa: SLF001 - as above
        lifetime_seconds = min(hint_seconds, MAX_SESSION_LIFETIME_SECONDS)
        ends = min(now.elapsed_seconds + lifetime_seconds, lineage.ends_elapsed_seconds)
        ticket = _Ticket(session, lineage, ends, self._mark)
        if ticket.is_usable(now) and size_bytes <= _MAX_SESSION_BYTES:
            store._keep(self._server, ticket)  # noqa: SLF001 - as above


def connection_tickets(
    sessions: ClientSessions | None,
    endpoint: EndpointContext,
    *,
    address: Hashable,
    server_hostname: str | None,
) -> ConnectionTickets | None:
    """Return the tickets of a connection about to be made; None without `sessions`.

    `address` is what is connected to. Raises `APIMisuse` under a policy that does not resume and
    for a closed store.
    """
    if sessions is None:
        return None
    policy = endpoint.policy
    if policy.resumption is Resumption.OFF:
        raise APIMisuse(
            f"policy {policy.name!r} never resumes a session, so it has no use for sessions=",
            advice="leave it out, or choose a policy with resumption; `pfs policy list` shows them",
        )
    sessions._require_open()  # noqa: SLF001 - the store's other half
    name = server_hostname.lower() if server_hostname is not None else None
    server = (address, name, endpoint.scope, endpoint.authorization)
    return ConnectionTickets(sessions, server, policy.session_lifetime_seconds)


def _end_of_chain(connection: SSL.Connection) -> float:
    """Return when the first certificate of the verified chain ends, in seconds since 1970."""
    chain = connection.get_verified_chain(as_cryptography=True) or []
    ends = [certificate.not_valid_after_utc.timestamp() for certificate in chain]
    return min(ends, default=0.0)


def require_valid_certificate(certificate: bytes, now: datetime | None = None) -> None:
    """Raise `CertificateRejected` if a resumed session's certificate (DER) has ended by now.

    The library looks at certificates in full handshakes only. `now` is the system's time if None.
    """
    ends = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    if (now or datetime.now(UTC)) > ends:
        raise CertificateRejected(
            f"the peer resumed a session whose certificate ended on {ends:%Y-%m-%d %H:%M:%S} UTC",
            advice="renew the peer's certificate",
        )
