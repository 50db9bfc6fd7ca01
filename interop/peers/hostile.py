"""DELIBERATELY HOSTILE. A TLS 1.3 client that sends what no library would send.

Servers are tested with it: empty and oversized records, KeyUpdate after KeyUpdate, records a byte
at a time, garbage in the middle of a session. Its handshake is honest and made by our own core in
memory, with a certificate check, under TLS_AES_128_GCM_SHA256; what follows is sealed here, record
by record, with the client's traffic secret (RFC 9846 section 5.2), so that every field is the
caller's to choose. What the server says is read by the core, which knows alerts when it sees them.

Nothing in `transport` uses it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interop.errors import InteropError
from interop.wire.key_schedule import next_traffic_secret, traffic_keys
from interop.wire.registry import ContentType, HandshakeType
from transport.connection import TLSCore, Want
from transport.context import client_context
from transport.key_log import KeyLogBuffer
from transport.policy import DEFAULT_POLICY

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from certs.credential import TrustAnchors

__all__ = ["HostileClient", "RecordSealer", "reset"]

_SUITE: Final = "TLS_AES_128_GCM_SHA256"
_HASH, _KEY_BYTES, _TAG_BYTES = "sha256", 16, 16
_SECRET_LABEL: Final = b"CLIENT_TRAFFIC_SECRET_0"
_RECEIVE_BYTES: Final = 1 << 16
_LEGACY_VERSION: Final = 0x0303
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER
_DEFAULT_TIMEOUT_SECONDS: Final = 20.0
_POLICY: Final = DEFAULT_POLICY.narrowed(versions=["TLS 1.3"], suites=[_SUITE])


class RecordSealer:
    """Seals records of TLS_AES_128_GCM_SHA256 under a traffic secret of 32 bytes."""

    def __init__(self, traffic_secret: bytes) -> None:
        self._secret = traffic_secret
        self._use_secret()

    def __repr__(self) -> str:
        return f"<RecordSealer before record {self._sequence}>"

    def _use_secret(self) -> None:
        key, iv = traffic_keys(_HASH, self._secret, _KEY_BYTES)
        self._key, self._iv, self._sequence = AESGCM(key), int.from_bytes(iv, "big"), 0

    def record(
        self,
        content: bytes,
        content_type: int = ContentType.APPLICATION_DATA,
        *,
        padding_bytes: int = 0,
    ) -> bytes:
        """Return one record, whether its content is allowed or not; at most 64 KiB in all."""
        inner = content + bytes((content_type,)) + bytes(padding_bytes)
        header = struct.pack(
            "!BHH", ContentType.APPLICATION_DATA, _LEGACY_VERSION, len(inner) + _TAG_BYTES
        )
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        self._sequence += 1
        return header + self._key.encrypt(nonce, inner, header)

    def key_update(self, *, request_update: bool = False) -> bytes:
        """Return the record of a KeyUpdate; what follows is sealed under the next generation."""
        message = bytes((HandshakeType.KEY_UPDATE, 0, 0, 1, request_update))
        sealed = self.record(message, ContentType.HANDSHAKE)
        self._secret = next_traffic_secret(_HASH, self._secret)
        self._use_secret()
        return sealed


class HostileClient:
    """A connected client after an honest handshake; `seal` makes records and `socket` sends them.

    `send` takes the bytes of the handshake instead of the socket's `sendall`, if given. Raises
    what the core raises of a server that cannot be verified, and `OSError`.
    """

    def __init__(
        self,
        address: tuple[str, int],
        trust_anchors: TrustAnchors,
        *,
        server_hostname: str = "localhost",
        timeout_seconds: float = _DEFAULT_TIMEOUT_SECONDS,
        send: Callable[[socket.socket, bytes], object] = socket.socket.sendall,
    ) -> None:
        key_log = KeyLogBuffer()
        endpoint = client_context(trust_anchors, _POLICY, key_log=key_log)
        self._core = TLSCore(endpoint, None, server_hostname=server_hostname)
        self.socket = socket.create_connection(address, timeout_seconds)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self._core.handshake() is not None:
                send(self.socket, self._core.data_to_send())
                self._hear()
            send(self.socket, self._core.data_to_send())
        except BaseException:
            self.socket.close()
            raise
        self.seal = RecordSealer(_secret_in(key_log))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, *records: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(b"".join(records))

    def say_close_notify(self) -> None:
        """End our direction as an honest client does."""
        self.send(self.seal.record(b"\x01\x00", ContentType.ALERT))

    def receive(self) -> bytes:
        """Return what the server sends next; empty on close_notify. Raises as `TLSCore.read`."""
        while isinstance(data := self._core.read(_RECEIVE_BYTES), Want):
            self._hear()
        return data

    def _hear(self) -> None:
        data = self.socket.recv(_RECEIVE_BYTES)
        if data:
            self._core.receive_data(data)
        else:
            self._core.receive_end()


def _secret_in(key_log: KeyLogBuffer) -> bytes:
    for line in key_log.getvalue().splitlines():
        label, _client_random, secret = line.split()
        if label == _SECRET_LABEL:
            return bytes.fromhex(secret.decode("ascii"))
    raise InteropError("the handshake left no traffic secret: it was not one of TLS 1.3")


def reset(client: socket.socket) -> None:
    """Close a connection by RST, as a crashed or hostile client does."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.close()
