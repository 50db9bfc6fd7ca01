"""The client that tells its ephemeral keys: whom it speaks to, and that it tells the right ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from interop.peers.telltale import GROUPS, TelltaleFailed, telltale_connect

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from conftest import Identities


@pytest.mark.parametrize("group", GROUPS)
def test_it_speaks_to_our_servers(
    group: str, echo: Callable[..., Any], identities: Identities
) -> None:
    payload = bytes(range(256)) * 300
    with (
        echo(identities.ec) as server,
        telltale_connect(
            server.address, identities.anchors.pem(), "localhost", group=group
        ) as session,
    ):
        session.sendall(payload)
        received = b""
        while len(received) < len(payload):
            received += session.recv()
        assert received == payload
        assert len(session.ephemeral_keys) == (2 if "MLKEM" in group else 1)


@pytest.mark.parametrize(("anchors", "name"), [("foreign", "localhost"), ("ours", "other.test")])
def test_it_refuses_another_server(
    anchors: str, name: str, echo: Callable[..., Any], identities: Identities
) -> None:
    trusted = identities.anchors if anchors == "ours" else identities.foreign_anchors
    with (
        echo(identities.ec) as server,
        pytest.raises(TelltaleFailed, match="cannot be verified"),
        telltale_connect(server.address, trusted.pem(), name, group="x25519"),
    ):
        pass


def test_it_connects_to_loopback_only() -> None:
    with (
        pytest.raises(TelltaleFailed, match="loopback only"),
        telltale_connect(("192.0.2.1", 443), b"", "localhost", group="x25519"),
    ):
        pass
