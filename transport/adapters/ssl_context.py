"""An `ssl.SSLContext` whose connections are made by our engine: one adapter for all frameworks.

Whatever takes an `ssl.SSLContext` ends up calling one of two methods of it: `wrap_socket` (http,
smtplib, ftplib, urllib3, requests, httpx) or `wrap_bio` (asyncio, so uvicorn and hypercorn; anyio,
so httpx again; trio). `TLSContext` overrides both. The sessions that come out are held to the
whole policy (hybrid groups, signature schemes and extended main secret included) and checked after
each handshake, none of which the `ssl` module can do: see `transport.adapters.standard_library` for
the difference.

**It cannot be weakened.** Frameworks set attributes of a context and load files into it. The
object inherits all of that from a real context, which is never used for a connection, so every such
call would be without effect; and a caller who turns a check off, or believes to have turned one on,
must not be left in that belief. Attributes may be set to what they are, loading is refused, and
ALPN, which is the framework's business, is taken.

**Reload.** `replace_credential` makes new connections use another credential; those that exist go
on as they are, so a server gets a new certificate without a restart.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING, Final, NoReturn, Self

from cryptography.hazmat.primitives.serialization import Encoding

from transport.adapters.ssl_object import TLSObject
from transport.adapters.ssl_socket import TLSContextListener, TLSContextSocket
from transport.context import (
    SUITE_ALIASES,
    EndpointContext,
    server_context,
    shared_client_context,
)
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, ProtocolVersion, SecurityPolicy
from transport.revocation import StaplePolicy
from transport.tls_socket import DEFAULT_HANDSHAKE_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from _ssl import _Cipher
    from collections.abc import Callable, Iterable

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.key_log import KeyLog
    from transport.revocation import CRLFiles
    from transport.stapling import StapleSource

    Build = Callable[[tuple[str, ...]], EndpointContext]

__all__ = ["TLSContext", "client_ssl_context", "server_ssl_context"]

_SEALED: Final = frozenset(
    {
        "check_hostname",
        "hostname_checks_common_name",
        "keylog_filename",
        "maximum_version",
        "minimum_version",
        "num_tickets",
        "options",
        "post_handshake_auth",
        "sni_callback",
        "verify_flags",
        "verify_mode",
    }
)


class _Endpoints:
    """The contexts of one credential, one for each list of application protocols."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._made: dict[tuple[str, ...], EndpointContext] = {}

    def get(self, alpn_protocols: tuple[str, ...]) -> EndpointContext:
        made = self._made.get(alpn_protocols)
        if made is None:
            made = self._made.setdefault(alpn_protocols, self._build(alpn_protocols))
        return made


class TLSContext(ssl.SSLContext):
    """An `ssl.SSLContext` whose `wrap_socket` and `wrap_bio` give connections of our engine.

    Made by `server_ssl_context` and `client_ssl_context`. Setting an attribute that would weaken a
    connection, and loading certificates, suites or groups, raises `APIMisuse`.
    """

    def __new__(
        cls,
        build: Callable[[Credential | None], Build],  # noqa: ARG004 - for __init__
        *,
        credential: Credential | None,  # noqa: ARG004 - the same
        policy: SecurityPolicy,
        server_side: bool,
        peer_anchors: TrustAnchors | None,
        alpn_protocols: Iterable[str] = (),  # noqa: ARG004 - the same
        handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,  # noqa: ARG004 - the same
    ) -> Self:
        """Make the real context that is inherited from, and shows what is checked."""
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if server_side else _CLIENT)
        versions = [_VERSIONS[version] for version in policy.versions]
        super().__setattr__(self, "minimum_version", min(versions))
        super().__setattr__(self, "maximum_version", max(versions))
        super().set_ciphers(self, ":".join(SUITE_ALIASES.values()))  # `get_ciphers` chooses
        if peer_anchors is not None:
            super().__setattr__(self, "verify_mode", ssl.CERT_REQUIRED)
            for anchor in peer_anchors.certificates:
                super().load_verify_locations(self, cadata=anchor.public_bytes(Encoding.DER))
        return self

    def __init__(
        self,
        build: Callable[[Credential | None], Build],
        *,
        credential: Credential | None,
        policy: SecurityPolicy,
        server_side: bool,
        peer_anchors: TrustAnchors | None,  # noqa: ARG002 - for __new__
        alpn_protocols: Iterable[str] = (),
        handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
    ) -> None:
        self._build_for = build
        self._policy = policy
        self._server_side = server_side
        self._handshake_timeout_seconds = handshake_timeout_seconds
        self._alpn_protocols = tuple(alpn_protocols)
        self.replace_credential(credential)

    def replace_credential(self, credential: Credential | None) -> None:
        """Use another credential for new connections.

        Raises what making the context raised, and then keeps the one it has.
        """
        endpoints = _Endpoints(self._build_for(credential))
        endpoints.get(self._alpn_protocols)  # so that what is wrong with it is said here
        self._endpoints = endpoints

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Set the application protocols of new connections, most preferred first."""
        protocols = tuple(alpn_protocols)
        self._endpoints.get(protocols)
        self._alpn_protocols = protocols

    def wrap_socket(  # type: ignore[override] # noqa: PLR0917 - the shape of ssl.SSLContext
        self,
        sock: socket.socket,
        server_side: bool = False,  # noqa: FBT001 - the signature of ssl.SSLContext
        do_handshake_on_connect: bool = True,  # noqa: FBT001 - the same
        suppress_ragged_eofs: bool = True,  # noqa: ARG002, FBT001 - truncation is always told
        server_hostname: str | bytes | None = None,
        session: None = None,
    ) -> TLSContextSocket | TLSContextListener:
        """Wrap a connected socket, and do its handshake unless told not to; or a listening one.

        A listening socket becomes a `TLSListener`, whose connections do their handshakes with
        first use. A non-blocking socket does its handshake later, too. They raise `TLSFailure`,
        `ConnectionError` and `TimeoutError` (see `transport.adapters.ssl_socket`).
        """
        self._require(server_side=server_side, session=session)
        endpoint = self._endpoints.get(self._alpn_protocols)
        timeout_seconds = self._handshake_timeout_seconds
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return TLSContextListener(
                sock, endpoint, context=self, handshake_timeout_seconds=timeout_seconds
            )
        connection = TLSContextSocket(
            sock,
            endpoint,
            context=self,
            server_hostname=None if server_side else _text(server_hostname),
            handshake_timeout_seconds=timeout_seconds,
            do_handshake_on_connect=do_handshake_on_connect,
        )
        if do_handshake_on_connect and connection.gettimeout() != 0 and _is_connected(sock):
            try:
                connection.do_handshake()
            except BaseException:
                connection.close()
                raise
        return connection

    def wrap_bio(  # type: ignore[override] # a TLSObject has the shape of an SSLObject
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # noqa: FBT001 - the signature of ssl.SSLContext
        server_hostname: str | bytes | None = None,
        session: None = None,
    ) -> TLSObject:
        """Make a connection over two buffers, for a library that does its own input and output."""
        self._require(server_side=server_side, session=session)
        return TLSObject(
            self._endpoints.get(self._alpn_protocols),
            incoming,
            outgoing,
            context=self,
            server_hostname=None if server_side else _text(server_hostname),
        )

    def _require(self, *, server_side: bool, session: object) -> None:
        if server_side != self._server_side:
            ours, other = ("server", "client") if self._server_side else ("client", "server")
            raise APIMisuse(
                f"a {ours}'s context was used for a {other}",
                advice=f"make one with {other}_ssl_context",
            )
        if session is not None:
            raise APIMisuse("sessions are not resumed here", advice="leave session out")

    def __setattr__(self, name: str, value: object) -> None:
        if name in _SEALED:
            if getattr(self, name) == value:
                return
            raise APIMisuse(
                f"{name} of this context is set by its policy and cannot become {value!r}",
                advice="pass trust anchors, credential and policy to the function that made it",
            )
        super().__setattr__(name, value)

    def get_ciphers(self) -> list[_Cipher]:
        """Return the policy's suites, most preferred first."""
        known = {cipher["name"]: cipher for cipher in super().get_ciphers()}
        names = (SUITE_ALIASES.get(suite, suite) for suite in self._policy.suites)
        return [known[name] for name in names if name in known]

    def load_cert_chain(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refuse: the credential is given to `server_ssl_context` or `client_ssl_context`."""
        _refuse_loading("a certificate chain", "credential=")

    def load_verify_locations(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refuse: trust anchors are given when the context is made."""
        _refuse_loading("trust anchors", "trust_anchors=")

    def load_default_certs(self, *_arguments: object, **_options: object) -> NoReturn:
        """Refuse: the system's trust anchors are never used unasked."""
        _refuse_loading("the system's trust anchors", "trust_anchors=")

    def set_default_verify_paths(self) -> NoReturn:
        """Refuse: the system's trust anchors are never used unasked."""
        _refuse_loading("the system's trust anchors", "trust_anchors=")

    def set_ciphers(self, *_arguments: object) -> NoReturn:
        """Refuse: suites are the policy's."""
        _refuse_loading("suites", "policy=")

    def set_ecdh_curve(self, *_arguments: object) -> NoReturn:
        """Refuse: groups are the policy's."""
        _refuse_loading("a group", "policy=")

    def load_dh_params(self, *_arguments: object) -> NoReturn:
        """Refuse: there is no finite-field key exchange here."""
        _refuse_loading("parameters of finite-field key exchange", "policy=")


_VERSIONS: Final = {
    ProtocolVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2,
    ProtocolVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3,
}
_CLIENT: Final = ssl.PROTOCOL_TLS_CLIENT  # host names are checked, certificates required


def server_ssl_context(
    credential: Credential,
    *,
    policy: SecurityPolicy = DEFAULT_POLICY,
    client_anchors: TrustAnchors | None = None,
    authorization: Authorization | None = None,
    alpn_protocols: Iterable[str] = (),
    key_log: KeyLog | None = None,
    client_crls: RevocationLists | CRLFiles | None = None,
    ocsp_staple: StapleSource | None = None,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSContext:
    """Return a server's `ssl.SSLContext` over our engine; raises what `wrap_listener` raises.

    With `client_anchors`, each client must have a certificate that ends in one of them, with
    `authorization` be one that it admits, and with `client_crls` be on none of these. `ocsp_staple`
    is stapled; `replace_credential` goes on with it, so that it had better be a function or a file
    where credentials are renewed (`transport.stapling`). The handshake's time limit holds for
    `wrap_socket`; with `wrap_bio` it is the framework's.
    """

    def build_for(credential: Credential | None) -> Build:
        if credential is None:
            raise APIMisuse("a server needs a credential", advice="pass one")
        return lambda protocols: server_context(
            credential,
            policy,
            client_anchors=client_anchors,
            authorization=authorization,
            alpn_protocols=protocols,
            key_log=key_log,
            client_crls=client_crls,
            ocsp_staple=ocsp_staple,
        )

    return TLSContext(
        build_for,
        credential=credential,
        policy=policy,
        server_side=True,
        peer_anchors=client_anchors,
        alpn_protocols=_protocols(alpn_protocols),
        handshake_timeout_seconds=handshake_timeout_seconds,
    )


def client_ssl_context(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    authorization: Authorization | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    alpn_protocols: Iterable[str] = (),
    key_log: KeyLog | None = None,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    handshake_timeout_seconds: float = DEFAULT_HANDSHAKE_TIMEOUT_SECONDS,
) -> TLSContext:
    """Return a client's `ssl.SSLContext` over our engine; raises what `wrap_socket` raises.

    `crls` and `staples` say what a server's revocation is judged by (`transport.revocation`). It
    also is what `smtplib`, `ftplib`, `imaplib` and `poplib` take as `context`.
    """

    def build_for(credential: Credential | None) -> Build:
        return lambda protocols: shared_client_context(
            trust_anchors,
            policy,
            credential=credential,
            authorization=authorization,
            alpn_protocols=protocols,
            key_log=key_log,
            crls=crls,
            staples=staples,
        )

    return TLSContext(
        build_for,
        credential=credential,
        policy=policy,
        server_side=False,
        peer_anchors=trust_anchors,
        alpn_protocols=_protocols(alpn_protocols),
        handshake_timeout_seconds=handshake_timeout_seconds,
    )


def _protocols(alpn_protocols: Iterable[str]) -> tuple[str, ...]:
    if isinstance(alpn_protocols, str):
        raise APIMisuse("alpn_protocols is one string", advice="pass a list of protocol names")
    return tuple(alpn_protocols)


def _text(server_hostname: str | bytes | None) -> str | None:
    return (
        server_hostname.decode("ascii") if isinstance(server_hostname, bytes) else server_hostname
    )


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _refuse_loading(what: str, parameter: str) -> NoReturn:
    raise APIMisuse(
        f"{what} cannot be loaded into this context",
        advice=f"pass {parameter} to the function that makes it",
    )
