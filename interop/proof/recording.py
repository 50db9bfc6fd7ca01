"""The recorded sessions: which client speaks to which server, as data.

`SCENARIOS` is the list. Each entry is recorded in a capture of its own, by a relay between client
and server, while the server's key log yields that session's secrets. A client that is not
installed here, or is too old for what an entry asks, is named with its reason and not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import transport
from interop.capture.recorder import RecordingRelay
from interop.identity import SERVER_NAME
from interop.peers.curl import send_with_curl
from interop.peers.openssl import send_with_s_client
from interop.peers.telltale import telltale_connect
from interop.peers.weak import weak_connect
from interop.proof.application import UploadError, content_digest, send_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from certs.credential import TrustAnchors
    from interop.peers.endpoints import Address, ClientResult
    from interop.peers.names import TLSVersion
    from interop.wire.groups import EphemeralPrivateKey

__all__ = ["SCENARIOS", "Scenario", "ServerKind", "record_session"]

SESSION_DEADLINE_SECONDS = 60.0

ServerKind = Literal["blocking", "asyncio", "weak"]


@dataclass(frozen=True)
class Scenario:
    """One session to record; `group` narrows what the client offers, None leaves its default."""

    name: str
    client: str
    server: ServerKind
    version: TLSVersion
    group: str | None = None
    required: bool = False
    ephemeral_key: str = ""  # the name under which the client's private key is kept


def _telling(name: str, server: ServerKind, group: str, *, key: str = "") -> Scenario:
    """Make a session whose client keeps its ephemeral key, or uses the one called `key` again."""
    return Scenario(
        name, "telltale", server, "1.3", group, required=True, ephemeral_key=key or name
    )


SCENARIOS = (
    Scenario("tls12-ecdhe", "pfs", "blocking", "1.2", required=True),
    Scenario("tls13-x25519", "pfs", "blocking", "1.3", "x25519", required=True),
    Scenario("tls13-x25519mlkem768", "pfs", "asyncio", "1.3", "X25519MLKEM768", required=True),
    _telling("told-x25519", "blocking", "x25519"),
    _telling("told-x25519-again", "asyncio", "x25519", key="told-x25519"),  # a control
    _telling("told-secp256r1", "asyncio", "secp256r1"),
    _telling("told-x25519mlkem768", "blocking", "X25519MLKEM768"),
    Scenario("s_client-tls12", "openssl s_client", "asyncio", "1.2"),
    Scenario("s_client-tls13", "openssl s_client", "blocking", "1.3"),
    Scenario("curl-tls13", "curl", "asyncio", "1.3"),
    Scenario("control-static-rsa", "weak", "weak", "1.2", required=True),
)


@dataclass(frozen=True)
class _Sending:
    """What every client needs to know to send the payload."""

    address: Address
    payload: bytes
    trust_anchors: TrustAnchors
    trust_anchors_file: Path
    ephemeral_keys: tuple[EphemeralPrivateKey, ...] = ()


def record_session(
    scenario: Scenario,
    *,
    server_address: tuple[str, int],
    capture: Path,
    payload: bytes,
    trust_anchors: TrustAnchors,
    trust_anchors_file: Path,
    ephemeral_keys: tuple[EphemeralPrivateKey, ...] = (),
) -> tuple[EphemeralPrivateKey, ...]:
    """Run one scenario through a recording relay; the payload is known to have arrived.

    Returns the private keys that the client told, which only one kind of client does; it takes
    `ephemeral_keys` to use them again.

    Raises `PeerUnavailable` where the client is missing or cannot do it, `UploadError` where the
    payload was not acknowledged, and what the client itself raises.
    """
    with RecordingRelay(server_address, capture) as relay:
        sending = _Sending(
            relay.address, payload, trust_anchors, trust_anchors_file, ephemeral_keys
        )
        if scenario.client == "telltale":
            return _send_telling(scenario, sending)
        _CLIENTS[scenario.client](scenario, sending)
    return ()


def _send_as_pfs(scenario: Scenario, sending: _Sending) -> None:
    """Send the payload with our own blocking client."""
    policy = transport.DEFAULT_POLICY.narrowed(
        versions=[transport.ProtocolVersion(f"TLS {scenario.version}")],
        groups=None if scenario.group is None else [scenario.group],
    )
    with transport.connect(
        sending.address,
        server_hostname=SERVER_NAME,
        trust_anchors=sending.trust_anchors,
        policy=policy,
        timeout_seconds=SESSION_DEADLINE_SECONDS,
    ) as connection:
        send_payload(connection, sending.payload, host=SERVER_NAME)


def _send_as_s_client(scenario: Scenario, sending: _Sending) -> None:
    _require_acknowledged(_send_as_program(send_with_s_client, scenario, sending), sending)


def _send_as_curl(scenario: Scenario, sending: _Sending) -> None:
    _require_acknowledged(_send_as_program(send_with_curl, scenario, sending), sending)


def _send_as_program(
    send: Callable[..., ClientResult], scenario: Scenario, sending: _Sending
) -> ClientResult:
    return send(
        sending.address,
        sending.payload,
        ca_file=sending.trust_anchors_file,
        server_name=SERVER_NAME,
        version=scenario.version,
        groups=None if scenario.group is None else (scenario.group,),
        timeout_seconds=SESSION_DEADLINE_SECONDS,
    )


def _require_acknowledged(result: ClientResult, sending: _Sending) -> None:
    response = result.http()
    if response.body != content_digest(sending.payload):
        raise UploadError(
            f"{result.program.name} was not told that its payload arrived: "
            f"status {response.status}, {result.stderr_tail or 'no message'}"
        )


def _send_weakly(scenario: Scenario, sending: _Sending) -> None:
    del scenario  # there is only one thing this client can do
    with weak_connect(sending.address, sending.trust_anchors.pem(), SERVER_NAME) as connection:
        send_payload(connection, sending.payload, host=SERVER_NAME)


def _send_telling(scenario: Scenario, sending: _Sending) -> tuple[EphemeralPrivateKey, ...]:
    """Send the payload with the client that keeps its ephemeral keys."""
    with telltale_connect(
        sending.address,
        sending.trust_anchors.pem(),
        SERVER_NAME,
        group=scenario.group or "x25519",
        ephemeral_keys=sending.ephemeral_keys,
    ) as connection:
        send_payload(connection, sending.payload, host=SERVER_NAME)
        return connection.ephemeral_keys


_CLIENTS: Mapping[str, Callable[[Scenario, _Sending], None]] = {
    "pfs": _send_as_pfs,
    "openssl s_client": _send_as_s_client,
    "curl": _send_as_curl,
    "weak": _send_weakly,
}
