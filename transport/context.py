"""The one builder of `SSL.Context`, for both sides and both engines.

A context is made once and used for many connections; after the first it is immutable, so a new
credential or policy means a new context. Building one costs about half a millisecond, most of it
the self-check, and a handshake then does no work in Python beyond its calls into the library: there
are no per-message callbacks, and none at all unless a key log or ALPN is asked for.

What is set, and why it is not left to the library's defaults:

- exact versions, suites, groups and signature schemes of the policy, in its order. The library
  silently ignores suite names it does not know, and ``OPENSSL_CONF`` in the environment changes
  what a fresh context starts from, so nothing is left unset, the security level included;
- no tickets and no session cache. On TLS 1.2 that ends resumption. On TLS 1.3 the library still
  sends two tickets (their number is not in the binding), but they hold nothing: without a cache
  there is no state that one could resume. A random session id context makes doubly sure that no
  server takes a session of another context. A client has none: what it may resume is decided by
  `transport.sessions`, for which a context says what its connections are checked against (`scope`);
- where the policy resumes, which can be on TLS 1.3 alone, a cache in this context's memory: a
  ticket then is only the name of a state, and there is still no ticket key. A state lives as long
  as the policy says, an hour in those that are here.
  The library keeps 20,480 at most and drops the oldest; the binding cannot change that number, nor
  make a state good for one use only, nor share it between processes. A new context (a reload)
  forgets them all. Early data is off: no ticket allows any, and what a client sends nevertheless
  is skipped unread;
- no renegotiation and no compression; the server's order of suites;
- `MODE_RELEASE_BUFFERS`: an idle connection gives its record buffers back;
- no `ENABLE_PARTIAL_WRITE`, which pyOpenSSL sets: a write then goes out in one call however many
  records it takes (see `transport.connection` for what that asks of callers);
- the chain exactly as given: otherwise the library searches its store for one in each handshake;
- trust anchors are those given and no others: the system's are never consulted;
- no check of CRLs by the library: it hashes the whole list in every handshake. What checks instead
  is asked for by each connection (`transport.revocation`), so that contexts can be shared.

**Self-check.** Before a context is handed out, a connection is made from it in memory and its
ClientHello is read: suites, groups, signature schemes and versions in it must equal the policy's.
That is what the library will really do, whatever its calls returned. Options that a configuration
file may have added and that cannot be taken off again end the build.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from transport import openssl
from transport.client_hello import parse_client_hello
from transport.errors import APIMisuse, PolicyViolation
from transport.negotiated import HandshakeFacts, key_strength, verify_negotiated
from transport.openssl_peers import accept_staples, set_staple
from transport.policy import (
    GROUPS,
    SIGNATURE_SCHEMES,
    SUITES,
    ProtocolVersion,
    Resumption,
    SecurityPolicy,
)
from transport.revocation import StaplePolicy, peer_revocation
from transport.stapling import Stapler
from transport.translation import queued_reasons

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.key_log import KeyLog
    from transport.negotiated import NegotiatedSession
    from transport.revocation import CRLFiles, PeerRevocation
    from transport.stapling import StapleSource

__all__ = [
    "SUITE_ALIASES",
    "EndpointContext",
    "client_context",
    "read_handshake_facts",
    "require_client_anchors",
    "server_context",
    "shared_client_context",
    "verify_context",
]

# OpenSSL's names of the suites of TLS 1.2; those of TLS 1.3 go by their IANA names.
SUITE_ALIASES: Final[Mapping[str, str]] = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
}
_IANA_NAMES: Final = {alias: name for name, alias in SUITE_ALIASES.items()}
_PROTOCOL_NUMBERS: Final = {
    ProtocolVersion.TLS_1_2: SSL.TLS1_2_VERSION,
    ProtocolVersion.TLS_1_3: SSL.TLS1_3_VERSION,
}
_VERSIONS: Final = {number: version for version, number in _PROTOCOL_NUMBERS.items()}

# OpenSSL's security levels by the RSA key size that each asks for at least.
_SECURITY_LEVELS: Final = ((15360, 5), (7680, 4), (3072, 3), (2048, 2))
_SESSION_ID_CONTEXT_BYTES: Final = 32
_SIGNALLING_SUITES: Final = frozenset({0x00FF, 0x5600})  # RFC 5746 and RFC 7507: not real suites
_MAX_ALPN_PROTOCOL_BYTES: Final = 255
_SHARED_CONTEXTS: Final = 16
_MAX_JUDGED: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class EndpointContext:
    """A context with what its connections must be checked against; made once, used for many.

    `scope` equals that of another client context only if both check the server, and show themselves
    to it, in the same way: whatever is added to that must be added to `client_context`'s scope.
    `server_certificates_pem` is what a server shows.
    """

    context: SSL.Context
    policy: SecurityPolicy
    server_side: bool
    require_peer_certificate: bool
    authorization: Authorization | None = None
    scope: Hashable = field(default=None, repr=False)
    revocation: PeerRevocation | None = None
    server_certificates_pem: str = field(default="", repr=False)
    _judged: dict[HandshakeFacts, NegotiatedSession] = field(
        default_factory=dict, init=False, repr=False
    )

    def judge(self, facts: HandshakeFacts) -> NegotiatedSession:
        """Return the proof that a handshake stayed within the policy, or raise `PolicyViolation`.

        The same facts have the same verdict, and of a server's clients most bring the same: what
        passed once is looked up.
        """
        session = self._judged.get(facts)
        if session is None:
            session = verify_negotiated(
                facts, self.policy, require_peer_certificate=self.require_peer_certificate
            )
            if len(self._judged) >= _MAX_JUDGED:  # names and certificates are the peers' choice
                self._judged.clear()
            self._judged[facts] = session
        return session

    def checking(self, revocation: PeerRevocation | None) -> EndpointContext:
        """Return the same context for connections that check revocation in this way."""
        scope = None if revocation is None else revocation.scope
        return replace(self, revocation=revocation, scope=(self.scope, scope))


def server_context(
    credential: Credential,
    policy: SecurityPolicy,
    *,
    client_anchors: TrustAnchors | None = None,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    client_crls: RevocationLists | CRLFiles | None = None,
    ocsp_staple: StapleSource | None = None,
) -> EndpointContext:
    """Build a server's context; with `client_anchors`, every client must have a certificate.

    `authorization` says which of those clients are wanted, and `client_crls` which were revoked
    (`transport.revocation`); `ocsp_staple` is what the server staples (`transport.stapling`).
    Raises `APIMisuse` for a credential that the policy cannot use, or an authorization or CRLs
    without `client_anchors`, `UnusableOCSPResponse` for a staple in bytes that proves nothing, and
    `PolicyViolation` if the library does not take the policy.
    """
    require_client_anchors(client_anchors, authorization=authorization, client_crls=client_crls)
    revocation = peer_revocation(client_crls, None)
    context = _common_context(policy, key_log)
    context.set_session_id(os.urandom(_SESSION_ID_CONTEXT_BYTES))
    _use_credential(context, credential, policy, server_side=True)
    if client_anchors is not None:
        _use_anchors(context, client_anchors)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        for certificate in client_anchors.certificates:
            context.add_client_ca(certificate)  # clients choose their certificate by these names
    if alpn_protocols:
        openssl.set_alpn_selection(context, _encode_alpn(alpn_protocols))
    verify_context(context, policy)
    if ocsp_staple is not None:
        set_staple(context, Stapler(ocsp_staple, credential).current)
    return EndpointContext(
        context,
        policy,
        server_side=True,
        require_peer_certificate=client_anchors is not None,
        authorization=authorization,
        revocation=revocation,
        server_certificates_pem=credential.certificates_pem().decode("ascii"),
    )


def require_client_anchors(
    client_anchors: object, *, authorization: object, client_crls: object
) -> None:
    """Raise `APIMisuse` if clients were to be judged by certificates that nobody asks them for."""
    if client_anchors is not None:
        return
    if authorization is not None:
        raise APIMisuse(
            "an authorization of clients that show no certificate would refuse them all",
            advice="pass client_anchors too",
        )
    if client_crls is not None:
        raise APIMisuse(
            "CRLs for clients that show no certificate would check nobody",
            advice="pass client_anchors too",
        )


def client_context(
    trust_anchors: TrustAnchors,
    policy: SecurityPolicy,
    *,
    credential: Credential | None = None,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
) -> EndpointContext:
    """Build a client's context; raises what `server_context` raises.

    `crls` says which servers were revoked, `staples` what to make of the OCSP response that a
    server staples (`transport.revocation`).
    """
    context = _common_context(policy, key_log)
    if credential is not None:
        _use_credential(context, credential, policy, server_side=False)
    _use_anchors(context, trust_anchors)
    context.set_verify(SSL.VERIFY_PEER)
    accept_staples(context)
    if alpn_protocols:
        context.set_alpn_protos(list(_encode_alpn(alpn_protocols)))
    verify_context(context, policy)
    shown = None if credential is None else credential.leaf.fingerprint(SHA256())
    scope = (policy, trust_anchors, shown, tuple(alpn_protocols))
    endpoint = EndpointContext(
        context,
        policy,
        server_side=False,
        require_peer_certificate=True,
        authorization=authorization,
        scope=scope,
    )
    return endpoint.checking(peer_revocation(crls, staples))


def shared_client_context(
    trust_anchors: TrustAnchors,
    policy: SecurityPolicy,
    *,
    credential: Credential | None = None,
    authorization: Authorization | None = None,
    alpn_protocols: Sequence[str] = (),
    key_log: KeyLog | None = None,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
) -> EndpointContext:
    """Return a client's context, the same one again for the same anchors, policy and protocols.

    One with a credential or a key log is built anew each time, so that nothing here keeps a private
    key or a secret longer than its owner does. Raises what `server_context` raises.
    """
    if credential is None and key_log is None and not isinstance(alpn_protocols, str):
        shared = _cached_client_context(trust_anchors, policy, tuple(alpn_protocols))
        if authorization is not None:
            shared = replace(shared, authorization=authorization)
        if crls is not None or staples != StaplePolicy.CHECK:
            shared = shared.checking(peer_revocation(crls, staples))
        return shared
    return client_context(
        trust_anchors,
        policy,
        credential=credential,
        authorization=authorization,
        alpn_protocols=alpn_protocols,
        key_log=key_log,
        crls=crls,
        staples=staples,
    )


@lru_cache(maxsize=_SHARED_CONTEXTS)
def _cached_client_context(
    trust_anchors: TrustAnchors, policy: SecurityPolicy, alpn_protocols: tuple[str, ...]
) -> EndpointContext:
    return client_context(trust_anchors, policy, alpn_protocols=alpn_protocols)


def _common_context(policy: SecurityPolicy, key_log: KeyLog | None) -> SSL.Context:
    openssl.clear_error_queue()
    context = SSL.Context(SSL.TLS_METHOD)
    numbers = [_PROTOCOL_NUMBERS[version] for version in policy.versions]
    context.set_min_proto_version(min(numbers))
    context.set_max_proto_version(max(numbers))
    _set_suites(context, policy)
    openssl.set_groups(context, _group_list(policy))
    openssl.set_signature_schemes(context, ":".join(policy.signature_schemes))
    context.set_options(
        SSL.OP_NO_TICKET
        | SSL.OP_NO_RENEGOTIATION
        | SSL.OP_NO_COMPRESSION
        | SSL.OP_CIPHER_SERVER_PREFERENCE
    )
    resumes = policy.resumption is not Resumption.OFF
    context.set_session_cache_mode(SSL.SESS_CACHE_SERVER if resumes else SSL.SESS_CACHE_OFF)
    context.set_timeout(policy.session_lifetime_seconds)
    openssl.refuse_early_data(context)
    openssl.set_modes(context)
    openssl.set_verification_strictness(context)
    context.set_verify(SSL.VERIFY_NONE)
    if key_log is not None:
        write_line = key_log.write_line
        context.set_keylog_callback(lambda _connection, line: write_line(line))
    return context


def _set_suites(context: SSL.Context, policy: SecurityPolicy) -> None:
    level = next(level for bits, level in _SECURITY_LEVELS if policy.minimum_rsa_key_bits >= bits)
    aliases = [SUITE_ALIASES[suite] for suite in policy.suites_for(ProtocolVersion.TLS_1_2)]
    # With no TLS 1.2 suite the list cannot be empty, or the call fails; the version excludes them.
    names = ":".join([*(aliases or SUITE_ALIASES.values()), f"@SECLEVEL={level}"])
    try:
        context.set_cipher_list(names.encode())
        context.set_tls13_ciphersuites(
            ":".join(policy.suites_for(ProtocolVersion.TLS_1_3)).encode()
        )
    except SSL.Error as error:
        raise _not_taken("suites", names, "nothing") from error


def _group_list(policy: SecurityPolicy) -> str:
    """Write the policy's groups in the library's list syntax.

    `/` ends a class of groups: a server would rather ask a client to retry with a hybrid group
    (HelloRetryRequest) than take a classical key share that is already there. `*` marks what a
    client sends key shares of: the first of each class, so that neither a server with the hybrid
    nor one without needs the extra round trip.
    """
    hybrid = [group for group in policy.groups if _is_hybrid(group)]
    classical = [group for group in policy.groups if not _is_hybrid(group)]
    return "/".join("*" + ":".join(groups) for groups in (hybrid, classical) if groups)


def _is_hybrid(group: str) -> bool:
    return "MLKEM" in group


def _use_credential(
    context: SSL.Context, credential: Credential, policy: SecurityPolicy, *, server_side: bool
) -> None:
    _require_usable(credential, policy, server_side=server_side)
    leaf, *rest = credential.chain
    try:
        context.use_certificate(leaf)
        for certificate in rest:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credential.private_key)  # type: ignore[arg-type,unused-ignore] # checked above
        context.check_privatekey()
    except (SSL.Error, TypeError) as error:
        openssl.clear_error_queue()
        raise APIMisuse(
            f"the TLS library refuses the credential: {_words(error)}",
            advice="check that key and certificate belong together and are strong enough",
        ) from error


def _words(error: Exception) -> str:
    if isinstance(error, SSL.Error):
        return ", ".join(queued_reasons(error)) or "no reason given"
    return str(error)


def _require_usable(credential: Credential, policy: SecurityPolicy, *, server_side: bool) -> None:
    key = credential.leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        authentication = "RSA"
    elif isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        authentication = "ECDSA"
    else:
        raise APIMisuse(
            f"the credential's key is a {type(key).__name__}, which no policy can use",
            advice="use an ECDSA, Ed25519 or RSA key",
        )
    kind, bits, least = key_strength(key, policy)
    if bits < least:
        raise APIMisuse(
            f"the credential's {kind} key has {bits} bits, below the {least} of policy "
            f"{policy.name!r}",
            advice="issue a certificate for a larger key",
        )
    if not server_side or ProtocolVersion.TLS_1_2 not in policy.versions:
        return
    if not any(f"_{authentication}_" in suite for suite in policy.suites):
        raise APIMisuse(
            f"policy {policy.name!r} has no TLS 1.2 suite for a certificate with this key",
            advice=f"keep a TLS_ECDHE_{authentication}_… suite, or narrow the policy to TLS 1.3",
        )
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in policy.groups:
        # RFC 8422 section 5.1: on TLS 1.2 the groups govern the certificate's curve too.
        raise APIMisuse(
            f"policy {policy.name!r} lacks group {key.curve.name}, so no TLS 1.2 client could "
            "take this certificate",
            advice=f"keep {key.curve.name}, narrow to TLS 1.3, or use an RSA certificate",
        )


def _use_anchors(context: SSL.Context, anchors: TrustAnchors) -> None:
    store = context.get_cert_store()
    if store is None:
        raise APIMisuse("the context has no certificate store", advice="report this")
    for certificate in anchors.certificates:
        store.add_cert(crypto.X509.from_cryptography(certificate))


def _encode_alpn(protocols: Sequence[str]) -> tuple[bytes, ...]:
    if isinstance(protocols, str):
        raise APIMisuse("alpn_protocols is one string", advice="pass a list of protocol names")
    encoded = tuple(protocol.encode("utf-8") for protocol in protocols)
    if not all(0 < len(protocol) <= _MAX_ALPN_PROTOCOL_BYTES for protocol in encoded):
        raise APIMisuse(
            "an application protocol's name has to be of 1 to 255 bytes",
            advice="use a registered name such as 'h2' or 'http/1.1'",
        )
    return encoded


def verify_context(context: SSL.Context, policy: SecurityPolicy) -> None:
    """Check that the library took the whole policy and nothing else; seals the context.

    Raises `PolicyViolation` naming what differs.
    """
    if weakening := openssl.weakening_options(context):
        raise PolicyViolation(
            f"the TLS library starts with options that weaken it ({', '.join(weakening)})",
            advice="take them out of the file that OPENSSL_CONF names, or unset OPENSSL_CONF",
        )
    connection = SSL.Connection(context)
    connection.set_connect_state()
    openssl.clear_error_queue()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        pass
    except SSL.Error as error:
        words = ", ".join(queued_reasons(error))
        raise _not_taken("policy", policy.name, words) from error
    hello = parse_client_hello(connection.bio_read(openssl.pending_output_bytes(connection)))
    for what, wanted, taken in (
        ("versions", {_PROTOCOL_NUMBERS[v] for v in policy.versions}, hello.versions),
        (
            "suites",
            {SUITES[suite].code_point for suite in policy.suites},
            hello.suites - _SIGNALLING_SUITES,
        ),
        ("groups", {GROUPS[group].code_point for group in policy.groups}, hello.groups),
        (
            "signature schemes",
            {SIGNATURE_SCHEMES[scheme] for scheme in policy.signature_schemes},
            hello.signature_schemes,
        ),
    ):
        if wanted != taken:
            raise _not_taken(what, _hexadecimal(wanted), _hexadecimal(taken))


def _hexadecimal(code_points: set[int] | frozenset[int]) -> str:
    return " ".join(f"{code_point:#06x}" for code_point in sorted(code_points))


def _not_taken(what: str, wanted: str, taken: str) -> PolicyViolation:
    return PolicyViolation(
        f"the TLS library ({openssl.library_version()}) did not take the {what} {wanted}: "
        f"it would offer {taken}",
        advice="unset OPENSSL_CONF, and install the cryptography wheel from PyPI",
    )


def read_handshake_facts(connection: SSL.Connection) -> HandshakeFacts:
    """Read what the library says about a finished handshake."""
    version = connection.get_protocol_version()
    suite = connection.get_cipher_name() or "none"
    tls_1_3 = version == SSL.TLS1_3_VERSION
    certificate = connection.get_peer_certificate(as_cryptography=True)
    server_name = connection.get_servername()
    alpn = connection.get_alpn_proto_negotiated()
    return HandshakeFacts(
        version=_VERSIONS.get(version) or connection.get_protocol_version_name(),
        suite=_IANA_NAMES.get(suite, suite),
        group=connection.get_group_name(),
        resumed=openssl.session_reused(connection),
        extended_main_secret=tls_1_3 or openssl.extended_main_secret(connection),
        server_name=server_name.decode("ascii", "backslashreplace") if server_name else None,
        alpn=alpn.decode("utf-8", "backslashreplace") if alpn else None,
        peer_certificate=None if certificate is None else certificate.public_bytes(Encoding.DER),
    )
