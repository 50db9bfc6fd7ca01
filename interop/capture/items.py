"""What capture files are made of, whichever format they are in.

Apart from `pcapng`, which reads and writes them, for those who only pass them on.

Packets come in two forms. A `Packet` is one by itself, easy to handle. A `PacketBatch` is all of
a buffer's packets in a row, each only a `Frame`: a plain tuple that says where the packet lies.
Making a named tuple, a view and a timestamp takes 0.35 µs for each packet, and whoever reads TCP
streams needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from interop.errors import DissectError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "LINK_TYPE_RAW",
    "MAXIMUM_BLOCK_BYTES",
    "SECRETS_TYPE_TLS_KEY_LOG",
    "CaptureBatch",
    "CaptureItem",
    "DamagedBlock",
    "DecryptionSecrets",
    "Frame",
    "Interface",
    "NotACapture",
    "Packet",
    "PacketBatch",
]

LINK_TYPE_RAW: Final = 101
"""Packets that begin with their IPv4 or IPv6 header."""

SECRETS_TYPE_TLS_KEY_LOG: Final = 0x544C534B
"""Decryption secrets in the key log format of RFC 9850."""

MAXIMUM_BLOCK_BYTES: Final = 16 * 1024 * 1024
"""Longest block, or classic packet, that is believed."""


class NotACapture(DissectError):
    """The bytes are neither pcapng nor classic pcap; the message says what they are, if known."""


class Interface(NamedTuple):
    """Where packets were captured, and how their timestamps are to be read.

    A timestamp is two words, as captures have them: `high` counts `units_in_high` units, which
    in turn are `multiplier` / `divisor` nanoseconds each. `snapshot_length` is in bytes, 0 where
    there is no limit.
    """

    link_type: int
    snapshot_length: int = 0
    units_in_high: int = 1 << 32
    multiplier: int = 1000
    divisor: int = 1
    offset_ns: int = 0

    def timestamp_ns(self, high: int, low: int) -> int:
        """Return the time since the epoch that the two words say, in nanoseconds."""
        units = high * self.units_in_high + low
        return units * self.multiplier // self.divisor + self.offset_ns


Frame: TypeAlias = tuple[Interface, int, int, int, int, int]
"""One packet of a buffer: its interface, the two words of its timestamp, where in the buffer its
captured bytes start and end, and how many bytes it had when it was sent."""


class Packet(NamedTuple):
    """One captured packet; `data` is shorter than `original_length` where it was cut."""

    timestamp_ns: int
    link_type: int
    data: memoryview
    original_length: int


class PacketBatch(NamedTuple):
    """Packets that follow one another in `data`, in place."""

    data: memoryview
    frames: list[Frame]

    def timestamp_ns(self, index: int) -> int:
        """Return when the packet that is number `index` of the batch, from 0, was captured."""
        interface, high, low, *_ = self.frames[index]
        return interface.timestamp_ns(high, low)

    def packets(self) -> Iterator[Packet]:
        """Yield the packets one by one; their `data` are views of the batch's."""
        for interface, high, low, start, end, original_length in self.frames:
            timestamp_ns = interface.timestamp_ns(high, low)
            yield Packet(timestamp_ns, interface.link_type, self.data[start:end], original_length)


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
CaptureBatch: TypeAlias = PacketBatch | DecryptionSecrets | DamagedBlock
