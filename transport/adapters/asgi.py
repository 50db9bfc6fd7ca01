"""What an ASGI application sees of TLS: the peer's identity and the `NegotiatedSession`.

`TLSExtension` wraps an application. In each scope that came over one of our connections it puts

- ``scope["extensions"]["tls"]``, as the ASGI TLS extension (version 0.2) lays it out, and
- ``scope["extensions"]["pfs.negotiated"]``, the `NegotiatedSession` itself, group included, and
- ``scope["extensions"]["pfs.authorized_peer"]``, who was let in, where an authorization was asked
  for (None where not).

How it finds the connection is told in `transport.adapters.ssl_object`. Over plain HTTP all are
absent, as the extension's specification wants it.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from transport.adapters.ssl_object import current_connection
from transport.policy import SUITES, ProtocolVersion

if TYPE_CHECKING:
    from transport.adapters.ssl_object import TLSObject

__all__ = ["AUTHORIZED_PEER_EXTENSION", "NEGOTIATED_EXTENSION", "Application", "TLSExtension"]

NEGOTIATED_EXTENSION: Final = "pfs.negotiated"
AUTHORIZED_PEER_EXTENSION: Final = "pfs.authorized_peer"
_VERSION_NUMBERS: Final = {ProtocolVersion.TLS_1_2: 0x0303, ProtocolVersion.TLS_1_3: 0x0304}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class TLSExtension:
    """An ASGI application around another, which tells it of the TLS session."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket, or the lifespan, which is left alone."""
        connection = current_connection()
        if scope["type"] != "lifespan" and connection is not None:
            scope = dict(scope)
            scope["extensions"] = {
                **(scope.get("extensions") or {}),
                "tls": _describe(connection),
                NEGOTIATED_EXTENSION: connection.negotiated,
                AUTHORIZED_PEER_EXTENSION: connection.authorized_peer,
            }
        await self._application(scope, receive, send)


def _describe(connection: TLSObject) -> dict[str, object]:
    session = connection.negotiated
    chain, name = [], None
    if session.peer_certificate is not None:
        chain.append(ssl.DER_cert_to_PEM_cert(session.peer_certificate))
        parsed = x509.load_der_x509_certificate(session.peer_certificate)
        name = parsed.subject.rfc4514_string()
    return {
        "server_cert": connection.server_certificates_pem,
        "client_cert_chain": chain,
        "client_cert_name": name,
        "client_cert_error": None,
        "tls_version": _VERSION_NUMBERS[session.version],
        "cipher_suite": SUITES[session.suite].code_point,
    }
