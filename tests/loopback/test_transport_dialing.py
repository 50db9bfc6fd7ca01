"""Connecting to a name with several addresses, some of which do not answer; both engines."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SILENT, CLOSED = "127.0.0.2", "127.0.0.3"
NAME = "several.test"


@contextmanager
def silent(port: int) -> Iterator[None]:
    """An address that answers nobody, as one behind a router that drops packets does not."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((SILENT, port))
        listener.listen(0)
        for _ in range(6):  # more than its queue holds
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex((SILENT, port))
        yield


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the name addresses, which only the system's configuration could do otherwise."""
    real = socket.getaddrinfo

    def give(*addresses: str) -> None:
        def look_up(host: Any, *arguments: Any, **options: Any) -> list[Any]:
            hosts = addresses if host == NAME else (host,)
            return [found for one in hosts for found in real(one, *arguments, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)

    return give


def test_an_address_that_does_not_answer_leaves_time_for_the_next_and_its_handshake(
    echo: Callable[..., Any],
    exchange: Callable[..., Any],
    identities: Any,
    resolve: Callable[..., None],
) -> None:
    options = {"trust_anchors": identities.anchors, "server_hostname": "localhost"}
    with echo(identities.ec) as server, silent(server.address[1]):
        resolve(SILENT, "127.0.0.1")
        address = (NAME, server.address[1])
        assert exchange(address, b"hello", timeout_seconds=4.0, **options).received == b"hello"


def test_no_answer_at_all_is_said_within_the_deadline_and_not_blamed_on_the_handshake(
    exchange: Callable[..., Any], identities: Any, resolve: Callable[..., None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free, silent(port := free.getsockname()[1]):
        resolve(SILENT, SILENT, SILENT)
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=f"{NAME} took no connection in time") as caught:
            exchange((NAME, port), b"", trust_anchors=identities.anchors, timeout_seconds=1.0)
        assert time.monotonic() - started < 2.0
    assert not isinstance(caught.value, transport.HandshakeTimeout)


def test_an_address_that_refuses_costs_no_time_and_is_what_is_told_if_it_is_the_last(
    echo: Callable[..., Any],
    exchange: Callable[..., Any],
    identities: Any,
    resolve: Callable[..., None],
) -> None:
    options = {"trust_anchors": identities.anchors, "server_hostname": "localhost"}
    with echo(identities.ec) as server:
        address = (NAME, server.address[1])
        resolve(CLOSED, "127.0.0.1")
        assert exchange(address, b"hello", **options).received == b"hello"
        resolve(CLOSED)
        with pytest.raises(ConnectionRefusedError):
            exchange(address, b"hello", **options)
