"""Serve an ASGI application with uvicorn, over our TLS.

`TLSConfig` is a `uvicorn.Config` with our `ssl.SSLContext`, and the application wrapped so that it
sees the session (`transport.adapters.asgi`). Everything else of uvicorn is as it was. One process:
uvicorn's own `workers` start processes that would need the private key sent to them, so start
several of your own, or use `transport.server` in front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvicorn

from transport.adapters.asgi import Application, TLSExtension
from transport.adapters.ssl_context import TLSContext, server_ssl_context
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, SecurityPolicy

if TYPE_CHECKING:
    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.authorization import Authorization
    from transport.revocation import CRLFiles
    from transport.stapling import StapleSource

__all__ = ["TLSConfig", "run"]


class TLSConfig(uvicorn.Config):
    """A `uvicorn.Config` whose server speaks our TLS; `options` are uvicorn's own.

    `tls_context` is the context in use: its `replace_credential` renews the certificate of the
    running server. Raises `APIMisuse` for uvicorn's own ``ssl_…`` options, which this replaces, and
    for several workers.
    """

    def __init__(
        self,
        application: Application | str,
        *,
        credential: Credential,
        policy: SecurityPolicy = DEFAULT_POLICY,
        client_anchors: TrustAnchors | None = None,
        authorization: Authorization | None = None,
        client_crls: RevocationLists | CRLFiles | None = None,
        ocsp_staple: StapleSource | None = None,
        **options: Any,
    ) -> None:
        if theirs := sorted(name for name in options if name.startswith("ssl_")):
            raise APIMisuse(f"{theirs[0]} has no effect here", advice="pass credential=")
        if options.get("workers", 1) != 1:
            raise APIMisuse("this runs one process", advice="start several, on one socket")
        self.tls_context: TLSContext = server_ssl_context(
            credential,
            policy=policy,
            client_anchors=client_anchors,
            authorization=authorization,
            client_crls=client_crls,
            ocsp_staple=ocsp_staple,
            alpn_protocols=("http/1.1",),
        )
        super().__init__(
            application,
            ssl_context_factory=lambda _config, _default: self.tls_context,
            **options,
        )

    def load(self) -> None:
        """Load the application, and wrap it."""
        super().load()
        self.loaded_app = TLSExtension(self.loaded_app)


def run(
    application: Application | str,
    *,
    credential: Credential,
    policy: SecurityPolicy = DEFAULT_POLICY,
    client_anchors: TrustAnchors | None = None,
    authorization: Authorization | None = None,
    client_crls: RevocationLists | CRLFiles | None = None,
    ocsp_staple: StapleSource | None = None,
    **options: Any,
) -> None:
    """Serve until a signal says to stop; `options` are those of `uvicorn.Config`.

    With `client_anchors`, each client must have a certificate that ends in one of them, with
    `authorization` be one that it admits, and with `client_crls` be on none of these; `ocsp_staple`
    is stapled.
    """
    config = TLSConfig(
        application,
        credential=credential,
        policy=policy,
        client_anchors=client_anchors,
        authorization=authorization,
        client_crls=client_crls,
        ocsp_staple=ocsp_staple,
        **options,
    )
    uvicorn.Server(config).run()
