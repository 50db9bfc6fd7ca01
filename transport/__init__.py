"""How bytes move: TLS endpoints that negotiate forward-secret key exchange and nothing else.

`wrap_listener`, `wrap_socket` and `connect` are the blocking engine, `open_connection` and
`start_server` the asyncio one. Both are held to a `SecurityPolicy`, and what was really negotiated
is checked after each handshake: see `transport.negotiated`.
"""

from __future__ import annotations

from transport.authorization import (
    Authorization,
    AuthorizedPeer,
    DNSRule,
    IssuerRule,
    PeerNotAuthorized,
    SPKIRule,
    URIRule,
    spki_pin,
)
from transport.blocking import TLSListener, connect, wrap_listener, wrap_socket
from transport.errors import (
    AlertDescription,
    AlertReceived,
    APIMisuse,
    CertificateRejected,
    HandshakeTimeout,
    PeerIncompatible,
    PeerMisbehaved,
    PolicyError,
    PolicyViolation,
    TransportError,
    TruncatedStream,
)
from transport.key_log import KeyLog, KeyLogBuffer, KeyLogFile
from transport.negotiated import NegotiatedSession
from transport.policy import (
    DEFAULT_POLICY,
    ProtocolVersion,
    SecurityPolicy,
    get_policy,
    policy_names,
)
from transport.revocation import CRLFiles, StaplePolicy
from transport.sessions import ClientSessions
from transport.stream import TLSServer, open_connection, start_server
from transport.tls_socket import TLSSocket, WantRead, WantWrite
from transport.tls_stream import TLSStream

__all__ = [
    "DEFAULT_POLICY",
    "APIMisuse",
    "AlertDescription",
    "AlertReceived",
    "Authorization",
    "AuthorizedPeer",
    "CRLFiles",
    "CertificateRejected",
    "ClientSessions",
    "DNSRule",
    "HandshakeTimeout",
    "IssuerRule",
    "KeyLog",
    "KeyLogBuffer",
    "KeyLogFile",
    "NegotiatedSession",
    "PeerIncompatible",
    "PeerMisbehaved",
    "PeerNotAuthorized",
    "PolicyError",
    "PolicyViolation",
    "ProtocolVersion",
    "SPKIRule",
    "SecurityPolicy",
    "StaplePolicy",
    "TLSListener",
    "TLSServer",
    "TLSSocket",
    "TLSStream",
    "TransportError",
    "TruncatedStream",
    "URIRule",
    "WantRead",
    "WantWrite",
    "connect",
    "get_policy",
    "open_connection",
    "policy_names",
    "spki_pin",
    "start_server",
    "wrap_listener",
    "wrap_socket",
]
