"""httpx over our TLS: hand it our context, and read the session off a response.

httpx takes any `ssl.SSLContext` as ``verify``, for its blocking and its asynchronous client, so all
that is needed is `client_ssl_context`; `client` and `async_client` spell it out, and refuse options
that would go around it. A server outside the policy is an `httpx.ConnectError`;
one that refuses our certificate may be an `httpx.ReadError`, since TLS 1.3 tells a client of that
only after its handshake.

Nothing is sent in plain text: a URL of http, one that a server redirects to included, is an
`httpx.UnsupportedProtocol`. Two things see to that, since neither does alone. A transport is
mounted on ``http://``, but a host that ``NO_PROXY`` names would go past it where the environment is
consulted; a hook looks at every request, but hooks can be replaced in a client that exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import httpx

from transport.adapters.ssl_context import TLSContext, client_ssl_context
from transport.errors import APIMisuse
from transport.policy import DEFAULT_POLICY, SecurityPolicy
from transport.revocation import StaplePolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from certs.credential import Credential, TrustAnchors
    from certs.revocation import RevocationLists
    from transport.negotiated import NegotiatedSession
    from transport.revocation import CRLFiles

__all__ = ["async_client", "client", "negotiated_session"]


def client(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    **options: Any,
) -> httpx.Client:
    """Return an `httpx.Client` over our TLS; `options` are httpx's own.

    The environment is not consulted (`trust_env` is false unless given): it could name a proxy.
    Raises `APIMisuse` for `verify`, `cert`, `transport` and `mounts`, which this replaces.
    """
    context = client_ssl_context(
        trust_anchors, credential=credential, policy=policy, crls=crls, staples=staples
    )
    return httpx.Client(**_options(context, options, _look_at))


def async_client(
    trust_anchors: TrustAnchors,
    *,
    credential: Credential | None = None,
    policy: SecurityPolicy = DEFAULT_POLICY,
    crls: RevocationLists | CRLFiles | None = None,
    staples: StaplePolicy = StaplePolicy.CHECK,
    **options: Any,
) -> httpx.AsyncClient:
    """Return an `httpx.AsyncClient` over our TLS; otherwise as `client`."""
    context = client_ssl_context(
        trust_anchors, credential=credential, policy=policy, crls=crls, staples=staples
    )
    return httpx.AsyncClient(**_options(context, options, _look_at_async))


def negotiated_session(response: httpx.Response) -> NegotiatedSession:
    """Return the proof of the session that a response came over.

    While the response is open, or from a connection that is kept alive. Raises `APIMisuse` for a
    response that did not come over our TLS.
    """
    stream = response.extensions.get("network_stream")
    if stream is not None:
        for name in ("ssl_object", "socket"):
            session: NegotiatedSession | None = getattr(
                stream.get_extra_info(name), "negotiated", None
            )
            if session is not None:
                return session
    raise APIMisuse(
        "this response did not come over a connection of ours", advice="ask for an https URL"
    )


def _options(
    context: TLSContext, options: dict[str, Any], hook: Callable[[httpx.Request], object]
) -> dict[str, Any]:
    for name in ("verify", "cert", "transport", "mounts"):
        if name in options:
            raise APIMisuse(
                f"{name} has no effect here", advice="pass trust anchors and credential="
            )
    hooks = options.get("event_hooks") or {}
    return {
        "trust_env": False,
        **options,
        "verify": context,
        "mounts": {"http://": _NoPlainText()},
        "event_hooks": {**hooks, "request": [*hooks.get("request", ()), hook]},
    }


def _not_tls(request: httpx.Request) -> httpx.UnsupportedProtocol:
    return httpx.UnsupportedProtocol(
        f"{request.url.scheme} is not TLS; ask for an https URL", request=request
    )


def _look_at(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        raise _not_tls(request)


async def _look_at_async(request: httpx.Request) -> None:
    _look_at(request)


class _NoPlainText(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Refuses every request: no connection is made."""

    def handle_request(self, request: httpx.Request) -> NoReturn:
        raise _not_tls(request)

    async def handle_async_request(self, request: httpx.Request) -> NoReturn:
        raise _not_tls(request)
