"""The packets of a TCP conversation whose bytes are known but whose packets were never seen.

A relay sees what the two ends sent, and when, yet not the packets. `Conversation` writes the
ones that two hosts with no loss between them would have exchanged: the handshake, each run
of bytes in segments followed by the receiver's acknowledgement, FIN or RST where one happened.
Lengths, sequence and acknowledgement numbers and checksums are right, so that any analyser
takes the result for what it is, a complete capture.

Packets begin with their IP header (LINKTYPE_RAW): there was no link layer, and none is
invented. The window is scaled to 8 MiB, more than one run of bytes can have in flight, so that
no analyser sees a full one.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from interop.capture.packets import FLAG_ACK, FLAG_FIN, FLAG_PSH, FLAG_RST, FLAG_SYN
from interop.capture.streams import Direction

if TYPE_CHECKING:
    from interop.capture.streams import Endpoint

__all__ = ["MAXIMUM_SEGMENT_BYTES", "Conversation"]

MAXIMUM_SEGMENT_BYTES: Final = 65_495
"""Payload that fits behind an IPv4 and a TCP header into IP's 65,535 bytes."""

_SEQUENCE_MASK: Final = 0xFFFFFFFF
_TCP: Final = 6
_TTL: Final = 64
_DONT_FRAGMENT: Final = 0x4000
_WINDOW: Final = 0xFFFF
# Maximum segment size 65,495; no operation; window scale 7.
_SYN_OPTIONS: Final = struct.pack("!BBHBBBB", 2, 4, MAXIMUM_SEGMENT_BYTES, 1, 3, 3, 7)
_TCP_HEADER_WORDS: Final = 5


class _End:
    """What one end contributes to its packets: addresses and the next sequence number."""

    def __init__(self, own: Endpoint, other: Endpoint, initial_sequence: int) -> None:
        source, destination = ip_address(own.address), ip_address(other.address)
        if source.version != destination.version:
            raise ValueError(f"{source} and {destination} are of different IP versions")
        self.version = source.version
        self.addresses = source.packed + destination.packed
        self.ports = struct.pack("!HH", own.port, other.port)
        self.sequence = initial_sequence


class Conversation:
    """Writes one connection's packets, in the order in which its methods are called.

    Raises `ValueError` for addresses of different IP versions.
    """

    def __init__(
        self,
        client: Endpoint,
        server: Endpoint,
        *,
        initial_sequences: tuple[int, int],
        segment_bytes: int = MAXIMUM_SEGMENT_BYTES,
    ) -> None:
        if not 0 < segment_bytes <= MAXIMUM_SEGMENT_BYTES:
            raise ValueError(f"segments of {segment_bytes} bytes do not fit into IP packets")
        self._segment_bytes = segment_bytes
        self._answered = False
        self._ends = {
            Direction.CLIENT_TO_SERVER: _End(client, server, initial_sequences[0]),
            Direction.SERVER_TO_CLIENT: _End(server, client, initial_sequences[1]),
        }

    def request(self) -> list[bytes]:
        """Return the client's SYN."""
        return [self._packet(Direction.CLIENT_TO_SERVER, FLAG_SYN, options=_SYN_OPTIONS)]

    def accept(self) -> list[bytes]:
        """Return the server's SYN-ACK and the acknowledgement that completes the handshake."""
        self._answered = True
        return [
            self._packet(Direction.SERVER_TO_CLIENT, FLAG_SYN | FLAG_ACK, options=_SYN_OPTIONS),
            self._packet(Direction.CLIENT_TO_SERVER, FLAG_ACK),
        ]

    def data(self, direction: Direction, payload: bytes) -> list[bytes]:
        """Return the segments that carry `payload`, and the receiver's acknowledgement."""
        size = self._segment_bytes
        packets = [
            self._packet(direction, FLAG_PSH | FLAG_ACK, payload[start : start + size])
            for start in range(0, len(payload), size)
        ]
        packets.append(self._packet(direction.opposite, FLAG_ACK))
        return packets

    def finish(self, direction: Direction) -> list[bytes]:
        """Return one direction's FIN and its acknowledgement."""
        return [
            self._packet(direction, FLAG_FIN | FLAG_ACK),
            self._packet(direction.opposite, FLAG_ACK),
        ]

    def reset(self, direction: Direction) -> list[bytes]:
        """Return a RST; from the server before `accept`, the refusal of the connection."""
        acknowledges = self._answered or direction is Direction.SERVER_TO_CLIENT
        return [self._packet(direction, FLAG_RST | (FLAG_ACK if acknowledges else 0))]

    def _packet(
        self, direction: Direction, flags: int, payload: bytes = b"", options: bytes = b""
    ) -> bytes:
        end, other = self._ends[direction], self._ends[direction.opposite]
        words = _TCP_HEADER_WORDS + len(options) // 4
        # A refusal has sequence number 0 (RFC 9293, section 3.10.7.1).
        refusal = not self._answered and direction is Direction.SERVER_TO_CLIENT
        header = end.ports + struct.pack(
            "!IIBBH",
            0 if refusal else end.sequence,
            other.sequence if flags & FLAG_ACK else 0,
            words << 4,
            flags,
            0 if flags & FLAG_RST else _WINDOW,
        )
        length = len(header) + 4 + len(options) + len(payload)
        pseudo_header = end.addresses + struct.pack("!II", length, _TCP)
        checksum = _checksum(pseudo_header + header + bytes(4) + options + payload)
        segment = header + struct.pack("!HH", checksum, 0) + options + payload
        end.sequence = (
            end.sequence + len(payload) + bool(flags & (FLAG_SYN | FLAG_FIN))
        ) & _SEQUENCE_MASK
        if end.version == 6:  # noqa: PLR2004 - IPv6
            return struct.pack("!IHBB", 6 << 28, length, _TCP, _TTL) + end.addresses + segment
        start = struct.pack("!BBHHHBB", 0x45, 0, length + 20, 0, _DONT_FRAGMENT, _TTL, _TCP)
        checksum = _checksum(start + end.addresses)
        return start + checksum.to_bytes(2, "big") + end.addresses + segment


def _checksum(data: bytes) -> int:
    """Return the Internet checksum of `data`, which is not all zeros (RFC 1071).

    The one's complement sum of 16-bit words is the remainder of the whole, read as one number,
    by 2¹⁶-1; Python divides a 64 KiB number much faster than it adds 32,768 small ones.
    """
    if len(data) % 2:
        data += b"\0"
    remainder = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - (remainder or 0xFFFF)
