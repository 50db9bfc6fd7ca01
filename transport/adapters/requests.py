"""requests and urllib3 over our TLS.

urllib3 takes an `ssl.SSLContext`; `pool_manager` gives it ours. requests adds its own bundle of
trust anchors to whatever context it is given, so `TLSAdapter` keeps it from that: a session that it
is mounted on trusts the anchors given here and no others, whatever `verify` or the environment's
``REQUESTS_CA_BUNDLE`` name. `verify=False` and `cert=` are refused, not ignored. Nothing is sent in
plain text: a URL of http is a `urllib3.exceptions.URLSchemeUnknown`, or a
`requests.exceptions.InvalidSchema`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import requests
import requests.adapters
import urllib3
import urllib3.connection

from transport.adapters.ssl_context import client_ssl_context
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.revocation import StaplePolicy

if TYPE_CHECKING:
    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.negotiated import NegotiatedSession
    from transport.revocation import CRLFiles

__all__ = ["TLSAdapter", "negotiated_session", "pool_manager", "session"]

_NEGOTIATED: Final = "_transport_negotiated"


def pool_manager(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    **options: Any,
) -> urllib3.PoolManager:
    """Return a `urllib3.PoolManager` that speaks https over our TLS, and no plain http at all.

    `options` are urllib3's own.
    """
    context = client_ssl_context(
        trust_anchors, credential=credential, policy=policy, crls=crls, staples=staples
    )
    manager = urllib3.PoolManager(**options, ssl_context=context)
    _use_our_connections(manager)
    return manager


class _Connection(urllib3.connection.HTTPSConnection):
    """Leaves the proof on each response: its socket may be gone by the time somebody asks."""

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # urllib3's own
        negotiated: NegotiatedSession | None = getattr(self.sock, "negotiated", None)
        response = super().getresponse()
        vars(response)[_NEGOTIATED] = negotiated
        return response


class _Pool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Connection


def _use_our_connections(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {"https": _Pool}
    manager.key_fn_by_scheme.pop("http", None)  # or it would look for a pool that is not there


class TLSAdapter(requests.adapters.HTTPAdapter):
    """Mount it on ``https://`` of a `requests.Session`; `options` are those of `HTTPAdapter`."""

    def __init__(
        self,
        trust_anchors: TrustAnchors,
        *,
        credential: Credential | None = None,
        policy: SecurityPolicy = DEFAULT_POLICY,
        crls: RevocationLists | CRLFiles | None = None,
        staples: StaplePolicy = StaplePolicy.CHECK,
        **options: Any,
    ) -> None:
        self._context = client_ssl_context(
            trust_anchors, credential=credential, policy=policy, crls=crls, staples=staples
        )
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pool with our context."""
        super().init_poolmanager(*arguments, **options, ssl_context=self._context)
        _use_our_connections(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pool of a proxy with our context for what is tunnelled through it."""
        manager = super().proxy_manager_for(proxy, **options, ssl_context=self._context)
        _use_our_connections(manager)
        return manager

    def build_connection_pool_key_attributes(
        self,
        request: requests.PreparedRequest,
        verify: bool | str,  # noqa: FBT001 - the signature of HTTPAdapter
        cert: Any = None,
    ) -> Any:
        """Name the pool by host and port alone: neither bundles nor files are loaded."""
        host, pool = super().build_connection_pool_key_attributes(request, verify=True)
        _require_verification(verify, cert)
        return host, {**pool, "ssl_context": self._context, "cert_reqs": "CERT_REQUIRED"}

    def cert_verify(
        self,
        conn: Any,
        url: str,  # noqa: ARG002 - the signature of HTTPAdapter
        verify: bool | str,  # noqa: FBT001 - the same
        cert: Any,
    ) -> None:
        """Keep requests from adding its bundle to the context."""
        _require_verification(verify, cert)
        conn.cert_reqs = "CERT_REQUIRED"


def session(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
) -> requests.Session:
    """Return a `requests.Session` that speaks https over our TLS, and no plain http at all."""
    made = requests.Session()
    adapter = TLSAdapter(
        trust_anchors, credential=credential, policy=policy, crls=crls, staples=staples
    )
    made.mount("https://", adapter)
    del made.adapters["http://"]
    return made


def negotiated_session(
    response: requests.Response | urllib3.BaseHTTPResponse,
) -> NegotiatedSession:
    """Return the proof of the session that a response came over.

    Raises `APIMisuse` for a response that did not come over a connection of this module.
    """
    raw = response.raw if isinstance(response, requests.Response) else response
    found: NegotiatedSession | None = getattr(raw, _NEGOTIATED, None)
    if found is None:
        raise APIMisuse(
            "this response did not come over a connection of ours", advice="ask for an https URL"
        )
    return found


def _require_verification(verify: bool | str, cert: Any) -> None:  # noqa: FBT001 - as it comes
    if verify is False:
        raise APIMisuse("verify=False would trust anyone", advice="pass trust anchors instead")
    if cert:
        raise APIMisuse("cert= has no effect here", advice="pass credential= to the adapter")
