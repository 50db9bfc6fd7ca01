"""Revocation through the adapters: what they are given reaches the handshake, on both sides."""

from __future__ import annotations

import asyncio
import ssl
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests
import urllib3
from revocation_world import World, make_world
from running_application import DEADLINE_SECONDS, RunningApplication

import transport
from certs.revocation import RevocationLists
from transport.adapters import httpx as over_httpx
from transport.adapters import hypercorn as over_hypercorn
from transport.adapters import requests as over_requests
from transport.revocation import StaplePolicy

if TYPE_CHECKING:
    import hypercorn.config


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def get_with_httpx(world: World, url: str, **options: Any) -> str:
    with over_httpx.client(world.anchors, timeout=DEADLINE_SECONDS, **options) as client:
        return client.get(url).text


def get_with_async_httpx(world: World, url: str, **options: Any) -> str:
    async def get() -> str:
        async with over_httpx.async_client(
            world.anchors, timeout=DEADLINE_SECONDS, **options
        ) as client:
            return (await client.get(url)).text

    return asyncio.run(get())


def get_with_requests(world: World, url: str, **options: Any) -> str:
    with over_requests.session(world.anchors, **options) as session:
        return session.get(url, timeout=DEADLINE_SECONDS).text


def get_with_urllib3(world: World, url: str, **options: Any) -> str:
    with over_requests.pool_manager(world.anchors, retries=False, **options) as pool:
        return pool.request("GET", url).data.decode()


CLIENTS = [get_with_httpx, get_with_async_httpx, get_with_requests, get_with_urllib3]
# anyio hands on what TLS raises at a read: an `ssl.SSLError`, with Python's own context too.
REFUSED = (
    httpx.TransportError,
    requests.ConnectionError,
    urllib3.exceptions.HTTPError,
    ssl.SSLError,
)


@pytest.mark.parametrize("get", CLIENTS)
def test_a_revoked_server_is_refused_and_another_list_lets_it_in(world: World, get: Any) -> None:
    with RunningApplication(credential=world.server) as running:
        with pytest.raises(REFUSED, match="revoked"):
            get(world, running.url, crls=RevocationLists(world.crl(world.server)))
        innocent = RevocationLists(world.crl(world.other_client))
        assert get(world, running.url + "x", crls=innocent) == "/x"


@pytest.mark.parametrize("get", CLIENTS)
def test_a_staple_is_required_where_asked_for_and_uvicorn_serves_one(
    world: World, get: Any
) -> None:
    required = {"staples": StaplePolicy.REQUIRE}
    with (
        RunningApplication(credential=world.server) as running,
        pytest.raises(REFUSED, match="OCSP"),
    ):
        get(world, running.url, **required)
    staple = world.staple(world.server)
    with RunningApplication(credential=world.server, ocsp_staple=staple) as running:
        assert get(world, running.url + "x", **required) == "/x"


@pytest.mark.parametrize("get", CLIENTS)
def test_uvicorn_refuses_a_revoked_client(world: World, get: Any) -> None:
    lists = RevocationLists(world.crl(world.client))
    options = {"client_anchors": world.anchors, "client_crls": lists}
    with RunningApplication(credential=world.server, **options) as running:
        with pytest.raises(REFUSED):
            get(world, running.url, credential=world.client)
        assert get(world, running.url + "x", credential=world.other_client) == "/x"


def test_hypercorn_refuses_a_revoked_client_and_staples(world: World) -> None:
    lists = RevocationLists(world.crl(world.client))
    config = over_hypercorn.TLSConfig(
        credential=world.server,
        client_anchors=world.anchors,
        client_crls=lists,
        ocsp_staple=world.staple(world.server),
    )
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    listening, stop = threading.Event(), asyncio.Event()
    urls: list[str] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    created = config.create_sockets

    def create_sockets() -> hypercorn.config.Sockets:
        sockets = created()
        sockets.secure_sockets[0].listen()  # hypercorn does so later; who comes before is refused
        urls.append(f"https://localhost:{sockets.secure_sockets[0].getsockname()[1]}/")
        listening.set()
        return sockets

    config.create_sockets = create_sockets  # type: ignore[method-assign] # to learn the port

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await over_hypercorn.serve(application, config, shutdown_trigger=stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert listening.wait(DEADLINE_SECONDS)
        required = {"staples": StaplePolicy.REQUIRE}
        with pytest.raises(httpx.TransportError):
            get_with_httpx(world, urls[0], credential=world.client, **required)
        text = get_with_httpx(world, urls[0] + "x", credential=world.other_client, **required)
        assert text == "/x"
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


def test_crls_without_anchors_are_a_mistake_here_too(world: World) -> None:
    with pytest.raises(transport.APIMisuse, match="CRLs"):
        over_hypercorn.TLSConfig(
            credential=world.server, client_crls=RevocationLists(world.crl(world.client))
        )
