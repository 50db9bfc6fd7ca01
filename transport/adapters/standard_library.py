"""A genuine `ssl.SSLContext`, as close to a policy as Python's `ssl` can be brought.

For code that looks for a real `ssl.SSLSocket` or hands the context to C. Everything else should use
`transport.adapters.ssl_context`, whose connections are made by our engine. What differs here:

| of the policy                | with Python's ssl                                                |
|------------------------------|------------------------------------------------------------------|
| versions, TLS 1.2 suites     | set, read back from a ClientHello, checked after each handshake  |
| TLS 1.3 suites               | the library's own three; one outside the policy fails the check  |
| groups                       | exactly one can be set, so one is: P-256 or else the first that  |
|                              | the library knows. No hybrids. Read back from a ClientHello      |
| signature schemes            | cannot be set: the library's own                                 |
| resumption                   | off; a resumed session fails the check                           |
| peer's RSA key length        | checked after each handshake                                     |
| extended main secret         | cannot be seen, so TLS 1.2 is offered only on request            |

The check is made where Python's own sockets and objects finish their handshake, so every framework
that drives them, asyncio included, gets `TLSFailure` instead of a connection. No alert can be sent
from there: the peer sees the connection close. With one group set, a TLS 1.3 session has forward
secrecy by that group and no other, which is why `NegotiatedSession.group` can be filled in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization

from transport.adapters.ssl_object import TLSFailure
from transport.client_hello import parse_client_hello
from transport.context import SUITE_ALIASES
from transport.errors import APIMisuse, PolicyViolation
from transport.negotiated import HandshakeFacts, NegotiatedSession, verify_negotiated
from transport.policy import DEFAULT_POLICY, GROUPS, SUITES, ProtocolVersion, SecurityPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certs.credential import Credential, TrustAnchors

__all__ = [
    "CheckedContext",
    "CheckedObject",
    "CheckedSocket",
    "checked_client_context",
    "checked_server_context",
]

_VERSIONS: Final = {
    ProtocolVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2,
    ProtocolVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3,
}
_VERSION_NAMES: Final = {
    "TLSv1.2": ProtocolVersion.TLS_1_2,
    "TLSv1.3": ProtocolVersion.TLS_1_3,
}
# In the order of preference: P-256 is what every peer has to have (RFC 9846 section 9.1).
_LIBRARY_GROUPS: Final = {"secp256r1": "prime256v1", "x25519": "X25519", "secp384r1": "secp384r1"}
_SIGNALLING_SUITES: Final = frozenset({0x00FF, 0x5600})
_CODE_POINTS: Final = {ProtocolVersion.TLS_1_2: 0x0303, ProtocolVersion.TLS_1_3: 0x0304}


class CheckedContext(ssl.SSLContext):
    """An `ssl.SSLContext` that knows what its handshakes have to end in.

    Made by `checked_server_context` and `checked_client_context`. It is as open to change as any
    `ssl.SSLContext`; whatever is done to it, the check after each handshake stands.
    """

    policy: SecurityPolicy
    group: str
    suites: dict[str, str]
    require_peer_certificate: bool


class _Checked:
    """Turns what Python's ssl reports about a finished handshake into a proof."""

    _proof: NegotiatedSession | None = None

    @property
    def negotiated(self) -> NegotiatedSession:
        """The proof of what was negotiated. Raises `APIMisuse` before the handshake is done."""
        if self._proof is None:
            raise APIMisuse("the handshake is not done yet", advice="call do_handshake() first")
        return self._proof

    def _check(self, connection: ssl.SSLObject | ssl.SSLSocket) -> None:
        context, cipher = connection.context, connection.cipher()
        if not isinstance(context, CheckedContext) or cipher is None:
            raise TLSFailure(
                APIMisuse("a connection changed its context", advice="do not set sni_callback")
            )
        version = connection.version() or "none"
        tls_1_3 = version == "TLSv1.3"
        if connection.compression() is not None:
            raise TLSFailure(
                PolicyViolation("the handshake negotiated compression", advice="update the peer")
            )
        facts = HandshakeFacts(
            version=_VERSION_NAMES.get(version, version),
            suite=context.suites.get(cipher[0], cipher[0]),
            group=context.group,
            resumed=bool(connection.session_reused),
            extended_main_secret=tls_1_3,
            server_name=None if connection.server_side else connection.server_hostname,
            alpn=connection.selected_alpn_protocol(),
            peer_certificate=connection.getpeercert(binary_form=True),
        )
        try:
            self._proof = verify_negotiated(
                facts, context.policy, require_peer_certificate=context.require_peer_certificate
            )
        except PolicyViolation as violation:
            raise TLSFailure(violation) from violation


class CheckedSocket(_Checked, ssl.SSLSocket):
    """An `ssl.SSLSocket` that checks what it negotiated."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001 - the signature of SSLSocket
        """Do the handshake, then check it. Raises `TLSFailure`, and closes the socket then."""
        super().do_handshake(block)
        try:
            self._check(self)
        except TLSFailure:
            self.close()
            raise


class CheckedObject(_Checked, ssl.SSLObject):
    """An `ssl.SSLObject` that checks what it negotiated."""

    def do_handshake(self) -> None:
        """Take the handshake on, and check it at its end. Raises `TLSFailure`."""
        super().do_handshake()
        self._check(self)


def checked_server_context(
    credential: Credential,
    *,
    policy: SecurityPolicy = DEFAULT_POLICY,
    client_anchors: TrustAnchors | None = None,
    alpn_protocols: Sequence[str] = (),
    offer_tls_1_2: bool = False,
) -> CheckedContext:
    """Return a server's context; with `client_anchors`, every client must have a certificate.

    `offer_tls_1_2` takes TLS 1.2 in where the policy has it, although nobody can tell whether such
    a session has extended main secret. Raises `APIMisuse` for a policy that the library cannot
    carry out, and for a key that cannot leave its store; `PolicyViolation` if it does not take it.
    """
    policy = _reachable(policy, offer_tls_1_2=offer_tls_1_2)
    context = CheckedContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context, policy)
    context.num_tickets = 0
    context.require_peer_certificate = client_anchors is not None
    if client_anchors is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_anchors.pem().decode("ascii"))
    _load_credential(context, credential)
    if alpn_protocols:
        context.set_alpn_protocols(list(alpn_protocols))
    return context


def checked_client_context(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    alpn_protocols: Sequence[str] = (),
    offer_tls_1_2: bool = False,
) -> CheckedContext:
    """Return a client's context; otherwise as `checked_server_context`."""
    policy = _reachable(policy, offer_tls_1_2=offer_tls_1_2)
    context = CheckedContext(ssl.PROTOCOL_TLS_CLIENT)
    _configure(context, policy)
    context.require_peer_certificate = True
    context.load_verify_locations(cadata=trust_anchors.pem().decode("ascii"))
    if credential is not None:
        _load_credential(context, credential)
    if alpn_protocols:
        context.set_alpn_protocols(list(alpn_protocols))
    return context


def _reachable(policy: SecurityPolicy, *, offer_tls_1_2: bool) -> SecurityPolicy:
    """Return the part of a policy that can be seen to hold."""
    if ProtocolVersion.TLS_1_2 not in policy.versions or not policy.require_extended_main_secret:
        return policy
    if offer_tls_1_2:
        return dataclasses.replace(
            policy,
            name=f"{policy.name} without proof of extended main secret",
            require_extended_main_secret=False,
        )
    if ProtocolVersion.TLS_1_3 not in policy.versions:
        raise APIMisuse(
            f"policy {policy.name!r} has TLS 1.2 alone and requires extended main secret, which "
            "Python's ssl does not tell",
            advice="use transport.adapters.ssl_context, or pass offer_tls_1_2=True",
        )
    return policy.narrowed(versions=(ProtocolVersion.TLS_1_3,))


def _configure(context: CheckedContext, policy: SecurityPolicy) -> None:
    group = next((name for name in _LIBRARY_GROUPS if name in policy.groups), None)
    if group is None:
        raise APIMisuse(
            f"policy {policy.name!r} has no group that Python's ssl can be limited to",
            advice="use transport.adapters.ssl_context, which has the hybrid groups",
        )
    context.policy, context.group = policy, group
    context.suites = {alias: name for name, alias in SUITE_ALIASES.items()}
    context.sslobject_class, context.sslsocket_class = CheckedObject, CheckedSocket
    _apply(context, policy, group)
    # What a server will accept cannot be read from it: a client with the same settings shows it.
    twin = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _apply(twin, policy, group)
    _verify(twin, policy, group)


def _apply(context: ssl.SSLContext, policy: SecurityPolicy, group: str) -> None:
    numbers = [_VERSIONS[version] for version in policy.versions]
    context.minimum_version, context.maximum_version = min(numbers), max(numbers)
    if suites := policy.suites_for(ProtocolVersion.TLS_1_2):
        context.set_ciphers(":".join(SUITE_ALIASES[suite] for suite in suites))
    context.set_ecdh_curve(_LIBRARY_GROUPS[group])
    context.options |= (
        ssl.OP_NO_COMPRESSION
        | ssl.OP_NO_TICKET
        | ssl.OP_NO_RENEGOTIATION
        | ssl.OP_CIPHER_SERVER_PREFERENCE
    )


def _verify(twin: ssl.SSLContext, policy: SecurityPolicy, group: str) -> None:
    outgoing = ssl.MemoryBIO()
    connection = twin.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="self-check.invalid")
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    hello = parse_client_hello(outgoing.read())
    tls_1_2 = {SUITES[suite].code_point for suite in policy.suites_for(ProtocolVersion.TLS_1_2)}
    tls_1_3 = {suite.code_point for suite in SUITES.values() if suite.version == "TLS 1.3"}
    for what, wanted, taken in (
        ("versions", {_CODE_POINTS[version] for version in policy.versions}, hello.versions),
        ("suites of TLS 1.2", tls_1_2, hello.suites - _SIGNALLING_SUITES - tls_1_3),
        ("groups", {GROUPS[group].code_point}, hello.groups),
    ):
        if wanted != taken:
            raise PolicyViolation(
                f"Python's ssl ({ssl.OPENSSL_VERSION}) did not take the {what} of policy "
                f"{policy.name!r}",
                advice="use transport.adapters.ssl_context",
            )


def _load_credential(context: ssl.SSLContext, credential: Credential) -> None:
    """Load a credential, which Python's ssl takes from files alone.

    The key is in its file for a moment, encrypted under a password that is only in memory.
    """
    password = secrets.token_hex(32)
    key = credential.private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password.encode("ascii")),
    )
    with tempfile.TemporaryDirectory(prefix="pfs-credential-") as folder:
        path = Path(folder) / "credential.pem"
        path.touch(mode=0o600)
        path.write_bytes(key + credential.certificates_pem())
        context.load_cert_chain(path, password=password)
