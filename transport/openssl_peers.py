"""What a handshake asks Python about the peer's certificates, and what a server staples to its own.

The second and last module that reaches below pyOpenSSL's public API; see `transport.openssl` for
the first. pyOpenSSL has callbacks for all of this, but each lacks something:

- its verification callback cannot say *why* it refuses, so the peer would get internal_error
  instead of certificate_revoked. The one here sets the library's code, from which the library
  makes the alert. It acts once in a handshake, at the leaf: the library goes along the path
  it built from the trust anchor down, so by then all signatures, dates and purposes have held;
- its OCSP callbacks keep the exception of a failed check on the *context*, where the next
  connection of any thread raises it. Here the reason belongs to the connection.

The callbacks are functions of this module, made once. What a connection's peer is checked against
is found by the connection, so contexts can be shared by connections that check differently.
Nothing that a check raises crosses into the library: a peer's certificate that cannot be read here
though the library can is refused like any other.

**Stapling.** A client asks for each connection (RFC 6066 section 8); the library calls back once
the server's certificates have been verified, with or without a staple, and not at all in a resumed
session. A server's callback belongs to the context, which is the one that server_name chose, so
each credential has its own staple. On a refusal the alert is bad_certificate_status_response (113).
"""

# ruff: noqa: SLF001 - pyOpenSSL keeps the pointers that the binding wants in private attributes

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

from transport.errors import AlertDescription, CertificateRejected

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    PathCheck = Callable[[Sequence[x509.Certificate]], "PeerRefusal | None"]
    StapleCheck = Callable[[bytes | None, Sequence[x509.Certificate]], "PeerRefusal | None"]

__all__ = [
    "PeerRefusal",
    "accept_staples",
    "check_peer",
    "error_of_refusal",
    "remembered_chain",
    "set_staple",
]


class PeerRefusal(NamedTuple):
    """Why a peer is refused in the middle of a handshake, and by which alert."""

    alert: AlertDescription
    problem: str
    advice: str

    def error(self) -> CertificateRejected:
        """Return it as the error that the handshake ends in."""
        return CertificateRejected(self.problem, advice=self.advice, alert_sent=self.alert)


# Verification codes of x509_vfy.h, by the alert that the library makes of them.
_VERIFY_CODES: Final = {
    AlertDescription.certificate_revoked: 23,  # X509_V_ERR_CERT_REVOKED
    AlertDescription.certificate_unknown: 54,  # X509_V_ERR_CRL_PATH_VALIDATION_ERROR
}
_UNREADABLE: Final = PeerRefusal(
    AlertDescription.certificate_unknown,
    "the peer's certificates cannot be checked for revocation: one of them is malformed",
    "issue it anew, by RFC 5280",
)


class _Checks:
    """What one connection's peer is checked against, and what came of it."""

    __slots__ = ("path", "refusal", "staple")

    def __init__(self, path: PathCheck | None, staple: StapleCheck | None) -> None:
        self.path = path
        self.staple = staple
        self.refusal: PeerRefusal | None = None


_CHECKS: Final[WeakKeyDictionary[SSL.Connection, _Checks]] = WeakKeyDictionary()
_VERIFIED_CONNECTION: Final = lib.SSL_get_ex_data_X509_STORE_CTX_idx()


def check_peer(
    connection: SSL.Connection, *, path: PathCheck | None, staple: StapleCheck | None
) -> None:
    """Let the handshake fail unless these checks return None; call it before the handshake.

    `path` gets the verified certificates, leaf first and trust anchor last; it is asked in full
    handshakes only. `staple`, for clients, gets the server's OCSP response or None, and the path.
    """
    _CHECKS[connection] = _Checks(path, staple)
    if path is not None:
        lib.SSL_set_verify(connection._ssl, connection.get_verify_mode(), _on_certificate)
    if staple is not None:
        connection.request_ocsp()


def error_of_refusal(connection: SSL.Connection) -> CertificateRejected | None:
    """Return what to raise if a check of `check_peer` refused this connection's peer."""
    checks = _CHECKS.get(connection)
    return None if checks is None or checks.refusal is None else checks.refusal.error()


@ffi.callback("int(int, X509_STORE_CTX *)", error=0)  # type: ignore[untyped-decorator] # cffi has no types
def _on_certificate(ok: int, store_context: Any) -> int:
    if not ok or lib.X509_STORE_CTX_get_error_depth(store_context) != 0:
        return ok
    ssl = lib.X509_STORE_CTX_get_ex_data(store_context, _VERIFIED_CONNECTION)
    checks = _CHECKS[SSL.Connection._reverse_mapping[ssl]]
    if checks.path is None:
        return ok
    try:
        checks.refusal = checks.path(_built_path(store_context))
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        checks.refusal = _UNREADABLE
    if checks.refusal is None:
        return ok
    lib.X509_STORE_CTX_set_error(store_context, _VERIFY_CODES[checks.refusal.alert])
    return 0


def _built_path(store_context: Any) -> list[x509.Certificate]:
    stack = lib.X509_STORE_CTX_get1_chain(store_context)
    owned = [
        crypto.X509._from_raw_x509_ptr(lib.sk_X509_value(stack, index))
        for index in range(lib.sk_X509_num(stack))
    ]
    lib.sk_X509_free(stack)
    return [certificate.to_cryptography() for certificate in owned]


def remembered_chain(connection: SSL.Connection) -> list[x509.Certificate]:
    """Return what the peer of a resumed session showed in its full handshake, leaf first."""
    leaf = connection.get_peer_certificate(as_cryptography=True)
    chain = connection.get_peer_cert_chain(as_cryptography=True) or []
    return ([] if leaf is None or leaf in chain[:1] else [leaf]) + chain


# Staples


def accept_staples(context: SSL.Context) -> None:
    """Let connections of a client's context check staples, those that `check_peer` says so of."""
    context._ocsp_callback = _on_staple
    lib.SSL_CTX_set_tlsext_status_cb(context._context, _on_staple)


@ffi.callback("int(SSL *, void *)", error=-1)  # type: ignore[untyped-decorator] # cffi has no types
def _on_staple(ssl: Any, _argument: Any) -> int:
    connection = SSL.Connection._reverse_mapping[ssl]
    checks = _CHECKS.get(connection)
    if checks is None or checks.staple is None:
        return 1
    start = ffi.new("unsigned char **")
    length = lib.SSL_get_tlsext_status_ocsp_resp(ssl, start)
    staple = ffi.buffer(start[0], length)[:] if start[0] != ffi.NULL and length > 0 else None
    try:
        path = connection.get_verified_chain(as_cryptography=True) or []
        checks.refusal = checks.staple(staple, path)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        checks.refusal = _UNREADABLE._replace(
            alert=AlertDescription.bad_certificate_status_response
        )
    return int(checks.refusal is None)


def set_staple(context: SSL.Context, current: Callable[[], bytes | None]) -> None:
    """Let a server staple what `current` returns, if anything, for clients that ask for it.

    `current` is called in each such handshake: it must be fast and not raise.
    """

    def answer(ssl: Any, _argument: Any) -> int:
        staple = current()
        if not staple:
            return int(lib.SSL_TLSEXT_ERR_NOACK)
        copy = lib.OPENSSL_malloc(len(staple))  # the library frees it with the connection
        if copy == ffi.NULL:
            return int(lib.SSL_TLSEXT_ERR_NOACK)
        ffi.memmove(copy, staple, len(staple))
        lib.SSL_set_tlsext_status_ocsp_resp(ssl, copy, len(staple))
        return int(lib.SSL_TLSEXT_ERR_OK)

    # Without a staple the handshake goes on (NOACK), whatever happens in here.
    callback = ffi.callback("int(SSL *, void *)", answer, error=int(lib.SSL_TLSEXT_ERR_NOACK))
    context._ocsp_callback = callback
    lib.SSL_CTX_set_tlsext_status_cb(context._context, callback)
