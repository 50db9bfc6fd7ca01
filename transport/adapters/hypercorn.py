"""Serve an ASGI application with hypercorn, over our TLS, HTTP/2 included.

`TLSConfig` is a `hypercorn.config.Config` with our `ssl.SSLContext`; `serve` runs it in the event
loop of the caller, and wraps the application so that it sees the session. One process, and no
HTTP/3: QUIC does TLS on its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypercorn.asyncio
from hypercorn.config import Config

from transport.adapters.asgi import Application, TLSExtension
from transport.adapters.ssl_context import TLSContext, server_ssl_context
from transport.policy import DEFAULT_POLICY, SecurityPolicy

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.revocation import CRLFiles
    from transport.stapling import StapleSource

__all__ = ["TLSConfig", "serve"]


class TLSConfig(Config):
    """A `hypercorn.config.Config` whose server speaks our TLS.

    `tls_context` is the context in use: its `replace_credential` renews the certificate of the
    running server. hypercorn's own options for TLS have no effect.
    """

    def __init__(
        self,
        *,
        credential: Credential,
        policy: SecurityPolicy = DEFAULT_POLICY,
        client_anchors: TrustAnchors | None = None,
        authorization: Authorization | None = None,
        client_crls: RevocationLists | CRLFiles | None = None,
        ocsp_staple: StapleSource | None = None,
    ) -> None:
        super().__init__()
        self.tls_context: TLSContext = server_ssl_context(
            credential,
            policy=policy,
            client_anchors=client_anchors,
            authorization=authorization,
            client_crls=client_crls,
            ocsp_staple=ocsp_staple,
        )

    @property
    def ssl_enabled(self) -> bool:
        """Whether `bind` means TLS: always."""
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        """Return our context, with hypercorn's application protocols."""
        self.tls_context.set_alpn_protocols(self.alpn_protocols)
        return self.tls_context


async def serve(
    application: Application,
    config: TLSConfig,
    *,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve until `shutdown_trigger` returns, or a signal says to stop."""
    await hypercorn.asyncio.serve(
        TLSExtension(application),  # type: ignore[arg-type] # the same
        config,
        shutdown_trigger=shutdown_trigger,
        mode="asgi",
    )
