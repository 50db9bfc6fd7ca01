"""The two ends of a handshake in memory, and where they come from.

An `End` is one side. `Ends` makes pairs of them: which group and version the pair of a number uses
is a table, `OFFERS`, gone through again and again. `TransportEnds` are the contexts of `transport`,
which decide everything that a census looks at; the connections are driven without the engine above
them (deadlines, sockets, errors in words), but each handshake is judged by the policy, as there.

The server's certificate is itself what its clients trust. What is counted does not depend on it,
and a longer chain would be verified anew in each handshake, at half the cost of all the rest.

Secrets come from the client's key log, for a census of somebody else's server has no other.
`KeyLogLines` keeps each thread's lines apart, since threads share contexts: the library calls back
on the thread that makes the handshake.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, Protocol

from OpenSSL import SSL

from certs.credential import Credential, TrustAnchors
from interop.errors import InteropError
from interop.peers.endpoints import is_ip_address
from transport import ProtocolVersion, get_policy, openssl
from transport.context import client_context, read_handshake_facts, server_context
from transport.translation import queued_reasons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transport.context import EndpointContext
    from transport.policy import SecurityPolicy

__all__ = [
    "EXPORTER_BYTES",
    "EXPORTER_LABEL",
    "OFFERS",
    "End",
    "Ends",
    "KeyLogLines",
    "Offer",
    "OpenSSLEnd",
    "OpenSSLPair",
    "Pair",
    "Recipe",
    "ResumingEnds",
    "ResumingTransportEnds",
    "TransportEnds",
    "TransportRecipe",
]

EXPORTER_LABEL: Final = "EXPORTER-pfs-census"
EXPORTER_BYTES: Final = 32
_RESUMING_POLICY: Final = "2026-11-tls13-resumption"


class KeyLogLines(threading.local):
    """A key log in memory, of this thread's handshakes alone."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def take(self) -> list[bytes]:
        """Return the lines since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def write_line(self, line: bytes) -> None:
        """Take one line (`transport.KeyLog`)."""
        self._lines.append(line)


class End(Protocol):
    """One side of a handshake in memory."""

    def handshake(self) -> bool:
        """Take the handshake as far as it goes; True when it is done."""

    def receive_data(self, data: bytes) -> None:
        """Hand over bytes of the peer."""

    def data_to_send(self) -> bytes:
        """Return the bytes to take to the peer, perhaps none."""

    def export(self) -> bytes:
        """Return `EXPORTER_BYTES` of keying material under `EXPORTER_LABEL`."""


class Pair(Protocol):
    """Both sides of one handshake."""

    @property
    def client(self) -> End:
        """The side that begins."""

    @property
    def server(self) -> End:
        """The side that is judged."""

    def negotiated(self) -> str:
        """Say what the finished handshake negotiated; raises if it is not what was meant."""


class Ends(Protocol):
    """Makes pairs of ends."""

    @property
    def key_log(self) -> KeyLogLines:
        """Where the clients log their secrets."""

    def pair(self, number: int) -> Pair:
        """Return both ends of handshake `number`."""

    def renewed(self) -> Ends:
        """Return the like with new contexts."""

    def resuming(self) -> ResumingEnds | None:
        """Return the like that resumes, with new contexts; None where it cannot."""


class ResumingEnds(Protocol):
    """Makes pairs of ends whose handshakes resume sessions."""

    @property
    def key_log(self) -> KeyLogLines:
        """Where the clients log their secrets."""

    def pair(self, session: SSL.Session | None) -> OpenSSLPair:
        """Return both ends of a handshake that resumes `session`, or a full one."""


class Recipe(Protocol):
    """What ends are made of; it goes to each worker process, and is pickled for that."""

    def open(self) -> Ends:
        """Return the ends."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What both ends are narrowed to; `weight` is how many there are of it in a round."""

    policy: str
    version: ProtocolVersion
    groups: tuple[str, ...] | None
    weight: int

    def narrow(self, policy: SecurityPolicy) -> SecurityPolicy:
        """Return the client's policy."""
        return policy.narrowed(versions=[self.version], groups=self.groups)


_1_2, _1_3 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
# Each key exchange that a policy has, weighted by how much they are used; and the dear ones less.
# TLS 1.2 with a P-256 certificate needs secp256r1 beside the group that the exchange uses.
OFFERS: Final = (
    Offer("2026-11", _1_3, None, 18),
    Offer("2026-11", _1_3, ("x25519",), 8),
    Offer("2026-11", _1_2, ("x25519", "secp256r1"), 4),
    Offer("2026-11", _1_3, ("secp256r1",), 2),
    Offer("2026-11", _1_2, ("secp256r1",), 2),
    Offer("2026-11", _1_2, ("secp384r1", "secp256r1"), 2),
    Offer("2026-11-pq", _1_3, ("SecP256r1MLKEM768",), 2),
    Offer("2026-11", _1_3, ("secp384r1",), 1),
    Offer("2026-11-pq", _1_3, ("SecP384r1MLKEM1024",), 1),
)


def _round() -> Iterator[int]:
    """Yield the place in `OFFERS` of each handshake of a round; each offer once to begin with."""
    for row in zip_longest(*([place] * offer.weight for place, offer in enumerate(OFFERS))):
        yield from (place for place in row if place is not None)


_ROUND: Final = tuple(_round())


class OpenSSLEnd:
    """One side, on a context of OpenSSL."""

    __slots__ = ("connection",)

    def __init__(
        self, context: SSL.Context, *, server_name: str | None, session: SSL.Session | None = None
    ) -> None:
        self.connection = connection = SSL.Connection(context)
        if server_name is None:
            connection.set_accept_state()
            return
        if not is_ip_address(server_name):  # RFC 6066 section 3: addresses are no server names
            connection.set_tlsext_host_name(server_name.encode("ascii"))
        if session is not None:
            connection.set_session(session)
        connection.set_connect_state()

    def handshake(self) -> bool:
        """Take the handshake as far as it goes; True when it is done. Raises `InteropError`."""
        try:
            outcome = openssl.do_handshake(self.connection)
        except SSL.Error as error:
            reasons = ", ".join(queued_reasons(error)) or "no reason given"
            raise InteropError(f"the handshake failed: {reasons}") from error
        if outcome not in {0, openssl.WANT_READ}:
            raise InteropError("the peer ended the handshake")
        return outcome == 0

    def receive_data(self, data: bytes) -> None:
        """Hand over bytes of the peer."""
        openssl.feed(self.connection, data)

    def data_to_send(self) -> bytes:
        """Return the bytes to take to the peer, perhaps none."""
        return openssl.take_output(self.connection)

    def export(self) -> bytes:
        """Return `EXPORTER_BYTES` of keying material under `EXPORTER_LABEL`."""
        label = EXPORTER_LABEL.encode("ascii")
        return self.connection.export_keying_material(label, EXPORTER_BYTES)


class OpenSSLPair:
    """Both sides of a handshake between contexts of `transport`."""

    __slots__ = ("_resumes", "_server_endpoint", "client", "server")

    def __init__(
        self,
        client: EndpointContext,
        server: EndpointContext,
        server_name: str,
        session: SSL.Session | None = None,
    ) -> None:
        self.client = OpenSSLEnd(client.context, server_name=server_name, session=session)
        self.server = OpenSSLEnd(server.context, server_name=None)
        self._server_endpoint = server
        self._resumes = session is not None

    def negotiated(self) -> str:
        """Say what was negotiated. Raises `PolicyViolation`, and `InteropError` if not resumed."""
        session = self._server_endpoint.judge(read_handshake_facts(self.server.connection))
        if session.resumed != self._resumes:
            did = "was resumed" if session.resumed else "was not resumed"
            raise InteropError(f"a handshake of the census {did}, against its condition")
        return f"{session.version} {session.group}" + (" resumed" if session.resumed else "")

    def end(self) -> None:
        """End the connection in good order, or the library forgets the session on both sides."""
        for end in (self.client, self.server):
            end.connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)


@dataclass(frozen=True, slots=True)
class TransportRecipe:
    """A server's credential, in PEM, and its name."""

    certificates: bytes
    private_key: bytes
    server_name: str

    @classmethod
    def of(cls, credential: Credential, server_name: str) -> TransportRecipe:
        """Return the recipe for a credential."""
        return cls(credential.certificates_pem(), credential.private_key_pem(), server_name)

    def open(self) -> TransportEnds:
        """Return ends with contexts of their own."""
        return TransportEnds(
            Credential.from_pem(self.certificates, self.private_key), self.server_name
        )


class TransportEnds:
    """Ends with the contexts of `transport`: made once, on first use, and used for all pairs."""

    def __init__(self, credential: Credential, server_name: str) -> None:
        # The leaf alone: nobody asks for the rest of its chain.
        self._credential = replace(credential, chain=credential.chain[:1])
        self._anchors = TrustAnchors((credential.leaf,))
        self._server_name = server_name
        self._servers: dict[str, EndpointContext] = {}
        self._endpoints: dict[int, tuple[EndpointContext, EndpointContext]] = {}
        self._lock = threading.Lock()
        self.key_log = KeyLogLines()

    def pair(self, number: int) -> OpenSSLPair:
        """Return both ends of handshake `number`; for any number of threads."""
        place = _ROUND[number % len(_ROUND)]
        endpoints = self._endpoints.get(place)
        if endpoints is None:
            with self._lock:
                endpoints = self._endpoints.get(place) or self._make(place)
        return OpenSSLPair(*endpoints, self._server_name)

    def _make(self, place: int) -> tuple[EndpointContext, EndpointContext]:
        """Make what an offer needs: a client of its own, and the server of its policy."""
        offer = OFFERS[place]
        policy = get_policy(offer.policy)
        if offer.policy not in self._servers:
            self._servers[offer.policy] = server_context(self._credential, policy)
        made = self._client(offer.narrow(policy)), self._servers[offer.policy]
        self._endpoints[place] = made
        return made

    def renewed(self) -> TransportEnds:
        """Return the like with new contexts."""
        return TransportEnds(self._credential, self._server_name)

    def resuming(self) -> ResumingTransportEnds:
        """Return the like that resumes, with new contexts."""
        policy = get_policy(_RESUMING_POLICY)
        return ResumingTransportEnds(
            self._client(policy),
            server_context(self._credential, policy),
            self._server_name,
            self.key_log,
        )

    def _client(self, policy: SecurityPolicy) -> EndpointContext:
        return client_context(self._anchors, policy, key_log=self.key_log)


@dataclass(frozen=True, slots=True)
class ResumingTransportEnds:
    """Ends that resume, in one context each."""

    client: EndpointContext
    server: EndpointContext
    server_name: str
    key_log: KeyLogLines

    def pair(self, session: SSL.Session | None) -> OpenSSLPair:
        """Return both ends of a handshake that resumes `session`, or a full one."""
        return OpenSSLPair(self.client, self.server, self.server_name, session)
