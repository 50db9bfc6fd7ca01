"""What capture files are made of, whichever format they are in.

Apart from `pcapng`, which reads and writes them, for those who only pass them on.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from interop.errors import DissectError

__all__ = [
    "LINK_TYPE_RAW",
    "MAXIMUM_BLOCK_BYTES",
    "SECRETS_TYPE_TLS_KEY_LOG",
    "CaptureItem",
    "DamagedBlock",
    "DecryptionSecrets",
    "NotACapture",
    "Packet",
]

LINK_TYPE_RAW: Final = 101
"""Packets that begin with their IPv4 or IPv6 header."""

SECRETS_TYPE_TLS_KEY_LOG: Final = 0x544C534B
"""Decryption secrets in the key log format of RFC 9850."""

MAXIMUM_BLOCK_BYTES: Final = 16 * 1024 * 1024
"""Longest block, or classic packet, that is believed."""


class NotACapture(DissectError):
    """The bytes are neither pcapng nor classic pcap; the message says what they are, if known."""


class Packet(NamedTuple):
    """One captured packet; `data` is shorter than `original_length` where it was cut."""

    timestamp_ns: int
    link_type: int
    data: memoryview
    original_length: int


class DecryptionSecrets(NamedTuple):
    """A Decryption Secrets Block: keys that the capture carries along."""

    secrets_type: int
    data: bytes

    def __repr__(self) -> str:
        """Name the kind and length only: the content is a secret."""
        return f"DecryptionSecrets(secrets_type={self.secrets_type:#x}, {len(self.data)} bytes)"


class DamagedBlock(NamedTuple):
    """A packet (or other known) block whose content does not fit its frame."""

    error: DissectError
    is_packet: bool


CaptureItem: TypeAlias = Packet | DecryptionSecrets | DamagedBlock
