"""Recording one session: its client, through a relay that writes the capture.

A `Recorder` holds what clients need, and what they keep from one session for the next: ephemeral
keys, stored sessions, tickets. What a session leaves for a thief is a dictionary of files. A client
that is not installed here, or is too old for what an entry asks, is named with its reason and not
counted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import mlkem
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import transport
from interop.capture.recorder import RecordingRelay
from interop.errors import InteropError, PeerUnavailable
from interop.identity import SERVER_NAME
from interop.peers.curl import send_with_curl
from interop.peers.early_data import EarlyDataClient
from interop.peers.openssl import send_with_s_client
from interop.peers.stored_sessions import TellingSessions
from interop.peers.telltale import telltale_connect
from interop.peers.weak import weak_connect
from interop.proof import layout
from interop.proof.application import (
    UploadError,
    content_digest,
    request_bytes,
    require_acknowledged,
    send_payload,
)
from interop.wire.groups import FiniteFieldPrivateKey

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from certs.credential import Credential, TrustAnchors
    from interop.http_exchange import ByteStream
    from interop.peers.early_data import Ticket
    from interop.peers.endpoints import Address, ClientResult
    from interop.proof.scenarios import ClientKind, Scenario
    from interop.wire.groups import EphemeralPrivateKey
    from transport import KeyLogBuffer

__all__ = ["Recorder", "SessionRefused", "ephemeral_key_files"]

SESSION_DEADLINE_SECONDS = 60.0
_SOME_BYTES: Final = 16 * 1024
_RESUMING_POLICY = transport.get_policy("2026-11-tls13-resumption")


class SessionRefused(PeerUnavailable):
    """A server refused what it had better refuse."""


class Recorder:
    """Records sessions that carry one payload; it serves one run, one session at a time.

    `trust_anchors_file` holds the same anchors for programs. `client` is the credential of clients
    that have to show one. With `key_log`, clients write their secrets there; and unless
    `acknowledged`, an answer to the payload is waited for and may say anything. Each session has
    `deadline_seconds`.
    """

    def __init__(
        self,
        payload: bytes,
        *,
        trust_anchors: TrustAnchors,
        trust_anchors_file: Path,
        client: Credential | None = None,
        server_name: str = SERVER_NAME,
        key_log: KeyLogBuffer | None = None,
        acknowledged: bool = True,
        deadline_seconds: float = SESSION_DEADLINE_SECONDS,
    ) -> None:
        self._payload = payload
        self._trust_anchors = trust_anchors
        self._trust_anchors_file = trust_anchors_file
        self._client = client
        self._server_name = server_name
        self._key_log = key_log
        self._acknowledged = acknowledged
        self._deadline_seconds = deadline_seconds
        self._ephemeral_keys: dict[str, tuple[EphemeralPrivateKey, ...]] = {}
        self._sessions = TellingSessions()
        self._tickets: dict[str, Ticket] = {}

    def record(
        self, scenario: Scenario, *, server_address: Address, capture: Path
    ) -> dict[str, bytes]:
        """Run one scenario through a recording relay; the payload is known to have arrived.

        Returns the files, by their path in the evidence, that a thief finds at the client. Raises
        `PeerUnavailable` where the client is missing or cannot do it, `UploadError` where the
        payload was not acknowledged, and what the client itself raises.
        """
        with RecordingRelay(server_address, capture) as relay:
            return _CLIENTS[scenario.client](self, scenario, relay.address)

    def _send_as_pfs(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        """Send the payload with our own blocking client."""
        mutual = bool(scenario.client_key)
        policy = _RESUMING_POLICY if mutual else transport.DEFAULT_POLICY
        told = len(self._sessions.told)
        with transport.connect(
            address,
            server_hostname=self._server_name,
            trust_anchors=self._trust_anchors,
            policy=policy.narrowed(
                versions=[transport.ProtocolVersion(f"TLS {scenario.version}")],
                groups=None if scenario.group is None else [scenario.group],
            ),
            credential=self._client if mutual else None,
            sessions=self._sessions if mutual else None,
            key_log=self._key_log,
            timeout_seconds=self._deadline_seconds,
        ) as connection:
            _require_resumption(scenario, resumed=connection.negotiated.resumed)
            self._send(connection)
        sessions = self._sessions.told[told:]
        if scenario.resumes or not sessions:
            return {}
        return {layout.pre_shared_keys_of(scenario.name): sessions}

    def _send_as_s_client(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        return self._send_as_program(send_with_s_client, scenario, address)

    def _send_as_curl(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        return self._send_as_program(send_with_curl, scenario, address)

    def _send_as_program(
        self, send: Callable[..., ClientResult], scenario: Scenario, address: Address
    ) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory(prefix="pfs-client-") as private:
            key_log = None if self._key_log is None else Path(private, "key-log")
            result = send(
                address,
                self._payload,
                ca_file=self._trust_anchors_file,
                server_name=self._server_name,
                version=scenario.version,
                groups=None if scenario.group is None else (scenario.group,),
                key_log=key_log,
                timeout_seconds=self._deadline_seconds,
            )
            if key_log is not None and self._key_log is not None:
                for line in key_log.read_bytes().splitlines():
                    self._key_log.write_line(line)
        if not self._acknowledged:
            return {}
        response = result.http()
        if response.body != content_digest(self._payload):
            raise UploadError(
                f"{result.program.name} was not told that its payload arrived: "
                f"status {response.status}, {result.stderr_tail or 'no message'}"
            )
        return {}

    def _send(self, connection: ByteStream) -> None:
        if self._acknowledged:
            send_payload(connection, self._payload, host=self._server_name)
        else:
            connection.sendall(request_bytes(self._payload, host=self._server_name))
            connection.recv(_SOME_BYTES)

    def _await_answer(self, connection: ByteStream) -> None:
        if self._acknowledged:
            require_acknowledged(connection, self._payload)
        else:
            connection.recv(_SOME_BYTES)

    @property
    def _write_key_log(self) -> Callable[[bytes], None] | None:
        return None if self._key_log is None else self._key_log.write_line

    def _send_by_static_rsa(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        del scenario  # there is only one thing this client can do
        with weak_connect(
            address,
            self._trust_anchors.pem(),
            self._server_name,
            key_log=self._write_key_log,
        ) as connection:
            self._send(connection)
        return {}

    def _send_telling(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        """Send the payload with the client that keeps its keys."""
        files: dict[str, bytes] = {}
        with telltale_connect(
            address,
            self._trust_anchors.pem(),
            self._server_name,
            key_log=self._write_key_log,
            group=scenario.group or "x25519",
            ephemeral_keys=self._ephemeral_keys.get(scenario.ephemeral_key, ()),
        ) as connection:
            if scenario.updates_key:
                files[layout.traffic_secret_of(scenario.name, 0)] = connection.traffic_secret()
                connection.update_key()
            self._send(connection)
            if scenario.updates_key:
                connection.update_key()
                files[layout.traffic_secret_of(scenario.name, 2)] = connection.traffic_secret()
            keys = self._ephemeral_keys[scenario.ephemeral_key] = connection.ephemeral_keys
        return files | ephemeral_key_files(scenario.ephemeral_key, keys)

    def _send_with_tickets(self, scenario: Scenario, address: Address) -> dict[str, bytes]:
        """Send the payload with OpenSSL as it resumes when it is let."""
        client = EarlyDataClient(
            self._trust_anchors.pem(),
            self._server_name,
            key_log=self._write_key_log,
            version=scenario.version,
            psk_ke=scenario.mode == "psk_ke",
        )
        request = request_bytes(self._payload, host=self._server_name)
        early = scenario.mode == "0-RTT"
        with client.connect(
            address,
            ticket=self._tickets.get(scenario.resumes),
            early_data=(request,) if early else (),
            timeout_seconds=self._deadline_seconds,
        ) as session:
            _require_resumption(scenario, resumed=session.resumed)
            if not early:
                session.sendall(request)
            self._await_answer(session)
            ticket = session.ticket
        if scenario.resumes or ticket is None:
            return {}
        self._tickets[scenario.name] = ticket
        # In TLS 1.2 it is the main secret, which the session's own key log has.
        if scenario.version == "1.2":
            return {}
        return {layout.pre_shared_keys_of(scenario.name): ticket.pem()}


_CLIENTS: Mapping[ClientKind, Callable[[Recorder, Scenario, Address], dict[str, bytes]]] = {
    "pfs": Recorder._send_as_pfs,  # noqa: SLF001 - its own table
    "openssl s_client": Recorder._send_as_s_client,  # noqa: SLF001 - the same
    "curl": Recorder._send_as_curl,  # noqa: SLF001 - the same
    "static-rsa": Recorder._send_by_static_rsa,  # noqa: SLF001 - the same
    "telltale": Recorder._send_telling,  # noqa: SLF001 - the same
    "tickets": Recorder._send_with_tickets,  # noqa: SLF001 - the same
}


def _require_resumption(scenario: Scenario, *, resumed: bool) -> None:
    if resumed != bool(scenario.resumes):
        did = "was resumed" if resumed else "was not resumed"
        raise InteropError(f"{scenario.name}: the session {did}")


def ephemeral_key_files(name: str, keys: tuple[EphemeralPrivateKey, ...]) -> dict[str, bytes]:
    """Return the files of a key exchange's private keys, each half of a hybrid's in its own."""
    files: dict[str, bytes] = {}
    for key in keys:
        if isinstance(key, FiniteFieldPrivateKey):
            raise InteropError("a peer told a key of a kind that is not written down")
        is_kem = isinstance(key, mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey)
        path = layout.ml_kem_key_of(name) if is_kem else layout.classical_key_of(name)
        files[path] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return files
