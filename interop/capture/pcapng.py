"""Capture files as values: pcapng written, pcapng and classic pcap read, a chunk at a time.

Theory of operation
-------------------
`CaptureReader` is fed a file in chunks of any size and returns what became complete. A packet's
`data` is a view into the chunk it came in: nothing is copied, so whoever keeps a view keeps the
whole chunk. Consumers that hold bytes for later must copy them.

Two invariants keep the reader linear and its memory bounded, whatever the chunk sizes:

* `_pending` holds less than one block. Once a block's length is known, `_needed` says how many
  bytes complete it, and chunks that do not reach that far are only appended. Joining happens
  when it yields at least one block, so no byte is joined twice.
* No block is longer than `MAXIMUM_BLOCK_BYTES`; a longer one is damage, not a reason to wait.

Three kinds of trouble are kept apart, because a caller does different things about them. A file
that is no capture raises `NotACapture`. A block whose frame is intact but whose content is not
becomes a `DamagedBlock` in the results, and reading goes on. A block whose frame is wrong leaves
nothing to resynchronise on: what was read before it is returned first, and the next call raises
the `DissectError`, as does every later one. A file that simply stops is none of these: `finish`
returns how many bytes of an incomplete block were left.

Formats: draft-ietf-opsawg-pcapng and draft-ietf-opsawg-pcap.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias

from interop.capture.items import (
    LINK_TYPE_RAW,
    MAXIMUM_BLOCK_BYTES,
    SECRETS_TYPE_TLS_KEY_LOG,
    CaptureItem,
    DamagedBlock,
    DecryptionSecrets,
    NotACapture,
    Packet,
)
from interop.errors import DissectError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    _Unpack: TypeAlias = Callable[[memoryview, int], tuple[int, ...]]

__all__ = [
    "LINK_TYPE_RAW",
    "MAXIMUM_BLOCK_BYTES",
    "SECRETS_TYPE_TLS_KEY_LOG",
    "CaptureItem",
    "CaptureReader",
    "DamagedBlock",
    "DecryptionSecrets",
    "NotACapture",
    "Packet",
    "PcapngWriter",
]

_new = tuple.__new__  # makes a named tuple in half the time of calling its class
_MAXIMUM_INTERFACES: Final = 65_536
_NANOSECONDS: Final = 1_000_000_000

_SECTION_HEADER: Final = 0x0A0D0D0A  # a palindrome: the same in both byte orders
_INTERFACE_DESCRIPTION: Final = 1
_OBSOLETE_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_DECRYPTION_SECRETS: Final = 10

_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_BYTE_ORDERS: Final = {b"\x1a\x2b\x3c\x4d": ">", b"\x4d\x3c\x2b\x1a": "<"}

_BLOCK_OVERHEAD_BYTES: Final = 12  # type, length, and the length again
_SECTION_HEADER_BYTES: Final = 28
_PCAP_FILE_HEADER_BYTES: Final = 24
_PCAP_PACKET_HEADER_BYTES: Final = 16
_MAGIC_BYTES: Final = 4

_PCAP_MAGICS: Final = {  # byte order, nanoseconds per unit of the fraction
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\x3c\x4d": (">", 1),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
}

_OTHER_FORMATS: Final = {
    b"\xa1\xb2\xcd\x34": "a capture in Kuznetzov's modified pcap format",
    b"\x34\xcd\xb2\xa1": "a capture in Kuznetzov's modified pcap format",
    b"snoo": "a snoop capture",
    b"GMBU": "a Microsoft Network Monitor capture",
    b"RTSS": "a Microsoft Network Monitor capture",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"\xfd7zX": "compressed with xz",
    b"PK\x03\x04": "a zip archive",
}

_PACKET_BLOCKS: Final = frozenset({_OBSOLETE_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET})

_OPTION_END: Final = 0
_OPTION_COMMENT: Final = 1
_SECTION_HARDWARE: Final = 2
_SECTION_OS: Final = 3
_SECTION_APPLICATION: Final = 4
_INTERFACE_NAME: Final = 2
_INTERFACE_RESOLUTION: Final = 9
_INTERFACE_OFFSET: Final = 14
_MAXIMUM_OPTION_BYTES: Final = 65_535


class _Interface(NamedTuple):
    """What a packet block needs of the interface description it names."""

    link_type: int
    snapshot_length: int  # 0: unlimited
    multiplier: int  # timestamp units → nanoseconds, as a fraction
    divisor: int
    offset_ns: int


class _ByteOrder(NamedTuple):
    """The compiled layouts of one byte order."""

    block_head: _Unpack  # type, length
    packet_head: _Unpack  # the same, then interface, time (high, low), captured, original
    word: _Unpack
    interface: _Unpack  # link type, snapshot length
    option_head: _Unpack  # code, length
    obsolete_head: _Unpack  # interface, time (high, low), captured, original
    signed_long: _Unpack
    pcap_packet: _Unpack  # seconds, fraction, captured, original


def _layouts(order: str) -> _ByteOrder:
    layouts = ("II", "7I", "I", "HxxI", "HH", "HxxIIII", "q", "4I")
    return _ByteOrder(*(struct.Struct(order + layout).unpack_from for layout in layouts))


_LAYOUTS: Final = {order: _layouts(order) for order in "<>"}


class CaptureReader:
    """An incremental reader of pcapng and classic pcap, in either byte order.

    `format` is ``"pcapng"`` or ``"pcap"`` once known, else the empty string.
    """

    def __init__(self) -> None:
        self.format = ""
        self._layouts = _LAYOUTS["<"]
        self._interfaces: list[_Interface] = []
        self._pending = bytearray()
        self._needed = _MAGIC_BYTES
        self._consumed_bytes = 0  # position in the file of the chunk being read
        self._failure: DissectError | None = None

    def feed(self, chunk: bytes) -> list[CaptureItem]:
        """Return the packets, secrets and damaged blocks that `chunk` completes.

        Raises `NotACapture` when the first bytes are no capture's, and `DissectError` where the
        framing is broken; then every later call raises the same.
        """
        if self._failure is not None:
            raise self._failure
        if len(self._pending) + len(chunk) < self._needed:
            self._pending += chunk
            return []
        data = memoryview(b"".join((self._pending, chunk)) if self._pending else chunk)
        items: list[CaptureItem] = []
        position = 0
        try:
            if not self.format:
                self._recognise(data)
            if self.format == "pcapng":
                position = self._read_blocks(data, items)
            elif self.format == "pcap":
                position = self._read_pcap_packets(data, items)
        except DissectError as error:
            self._failure = error
            if not items:
                raise
            return items
        self._pending = bytearray(data[position:])
        self._consumed_bytes += position
        return items

    def finish(self) -> int:
        """Return how many bytes of an incomplete last block were left (0: a clean end).

        Raises `NotACapture` when the input ended before it could be recognised, and the
        `DissectError` that stopped the reading, if one did.
        """
        if self._failure is not None:
            raise self._failure
        if not self.format:
            what = "it is empty" if not self._pending else "it is too short"
            raise NotACapture(f"not a capture: {what}", offset=0, path="capture")
        return len(self._pending)

    # Recognition

    def _recognise(self, data: memoryview) -> None:
        magic = bytes(data[:_MAGIC_BYTES])
        if magic == _SECTION_HEADER.to_bytes(4, "big"):
            self._needed = _BLOCK_OVERHEAD_BYTES
            if len(data) >= _BLOCK_OVERHEAD_BYTES:
                if bytes(data[8:12]) not in _BYTE_ORDERS:
                    raise NotACapture(
                        "not a capture: it begins like pcapng, without its byte-order mark",
                        offset=8,
                        path="section_header.byte_order_magic",
                    )
                self.format = "pcapng"
        elif magic in _PCAP_MAGICS:
            self._needed = _PCAP_FILE_HEADER_BYTES
            if len(data) >= _PCAP_FILE_HEADER_BYTES:
                self._start_pcap(data, *_PCAP_MAGICS[magic])
        else:
            what = _OTHER_FORMATS.get(magic)
            reason = f"it is {what}" if what else "neither pcapng nor pcap begins like this"
            raise NotACapture(f"not a capture that can be read: {reason}", offset=0, path="capture")

    # pcapng

    def _read_blocks(self, data: memoryview, items: list[CaptureItem]) -> int:
        """Read whole blocks from `data`; return where the first incomplete one begins."""
        position, end = 0, len(data)
        layouts, interfaces = self._layouts, self._interfaces
        packet_head, word = layouts.packet_head, layouts.word
        append = items.append
        while end - position >= _SECTION_HEADER_BYTES:
            # One unpacking serves the block head and, for nearly every block, all of an
            # enhanced packet's fixed part. Other blocks as long as this are read below.
            kind, length, interface_id, high, low, captured, original = packet_head(data, position)
            if kind != _ENHANCED_PACKET or captured + 32 > length:
                length = self._read_other_block(data, position, items)
                if not length:
                    return position
                position += length
                layouts, interfaces = self._layouts, self._interfaces
                packet_head, word = layouts.packet_head, layouts.word
                continue
            if length & 3 or length > MAXIMUM_BLOCK_BYTES:
                raise self._bad_length(length, position)
            following = position + length
            if following > end:
                self._needed = length
                return position
            if word(data, following - 4)[0] != length:
                raise self._bad_trailer(position)
            try:
                link_type, _, multiplier, divisor, offset_ns = interfaces[interface_id]
            except IndexError:
                append(self._unknown_interface(interface_id, position))
            else:
                timestamp_ns = (high << 32 | low) * multiplier // divisor + offset_ns
                start = position + 28
                append(
                    _new(
                        Packet, (timestamp_ns, link_type, data[start : start + captured], original)
                    )
                )
            position = following
        # What is left may still hold blocks shorter than a section header.
        while length := self._read_other_block(data, position, items):
            position += length
        return position

    def _read_other_block(self, data: memoryview, position: int, items: list[CaptureItem]) -> int:
        """Read one block of any kind; return its length, or 0 when it is not complete."""
        available = len(data) - position
        self._needed = _BLOCK_OVERHEAD_BYTES
        if available < _BLOCK_OVERHEAD_BYTES:
            return 0
        if self._layouts.word(data, position)[0] == _SECTION_HEADER:
            self._enter_section(data, position)
        kind, length = self._layouts.block_head(data, position)
        if length < _BLOCK_OVERHEAD_BYTES or length & 3 or length > MAXIMUM_BLOCK_BYTES:
            raise self._bad_length(length, position)
        if length > available:
            self._needed = length
            return 0
        if self._layouts.word(data, position + length - 4)[0] != length:
            raise self._bad_trailer(position)
        if kind == _INTERFACE_DESCRIPTION and len(self._interfaces) >= _MAXIMUM_INTERFACES:
            raise self._error("too many interfaces", position, "interface_description")
        read = self._BLOCK_READERS.get(kind)
        if read is not None:
            body = data[position + 8 : position + length - 4]
            try:
                item = read(self, body)
            except (DissectError, struct.error) as error:
                item = DamagedBlock(
                    self._error(f"block of type {kind}: {_reason(error)}", position, "block"),
                    is_packet=kind in _PACKET_BLOCKS,
                )
            if item is not None:
                items.append(item)
        return length

    def _enter_section(self, data: memoryview, position: int) -> None:
        order = _BYTE_ORDERS.get(bytes(data[position + 8 : position + 12]))
        if order is None:
            raise self._error(
                "a section header without its byte-order mark", position + 8, "section_header"
            )
        self._layouts = _LAYOUTS[order]
        self._interfaces = []

    def _read_interface(self, body: memoryview) -> None:
        link_type, snapshot_length = self._layouts.interface(body, 0)
        multiplier, divisor, offset_ns = 1000, 1, 0  # microseconds, unless said otherwise
        for code, value in self._options(body[8:]):
            if code == _INTERFACE_RESOLUTION and len(value) == 1:
                exponent = value[0] & 0x7F
                units = (2 if value[0] & 0x80 else 10) ** exponent
                multiplier, divisor = _NANOSECONDS, units
                if _NANOSECONDS % units == 0:
                    multiplier, divisor = _NANOSECONDS // units, 1
            elif code == _INTERFACE_OFFSET and len(value) == 8:  # noqa: PLR2004 - an int64
                offset_ns = self._layouts.signed_long(value, 0)[0] * _NANOSECONDS
        self._interfaces.append(
            _Interface(link_type, snapshot_length, multiplier, divisor, offset_ns)
        )

    def _options(self, data: memoryview) -> list[tuple[int, memoryview]]:
        options = []
        position = 0
        while len(data) - position >= 4:  # noqa: PLR2004 - code and length
            code, length = self._layouts.option_head(data, position)
            if code == _OPTION_END:
                break
            value = data[position + 4 : position + 4 + length]
            if len(value) < length:
                break  # the options end the block: what came before them still counts
            options.append((code, value))
            position += 4 + length + (-length & 3)
        return options

    def _read_enhanced_packet(self, body: memoryview) -> Packet:
        """Read an enhanced packet that the fast loop declined, and say what is wrong with it."""
        captured = self._layouts.word(body, 12)[0]
        raise DissectError(
            f"{captured} captured bytes do not fit into a block with room for {len(body) - 20}",
            offset=12,
            path="enhanced_packet.captured_length",
        )

    def _read_obsolete_packet(self, body: memoryview) -> Packet:
        interface_id, high, low, captured, original = self._layouts.obsolete_head(body, 0)
        data = body[20 : 20 + captured]
        if len(data) < captured:
            raise DissectError("captured bytes missing", offset=12, path="packet.captured_length")
        return self._packet(interface_id, high << 32 | low, data, original)

    def _read_simple_packet(self, body: memoryview) -> Packet:
        original = self._layouts.word(body, 0)[0]
        if not self._interfaces:
            raise DissectError("no interface described", offset=0, path="simple_packet")
        captured = min(original, self._interfaces[0].snapshot_length or original, len(body) - 4)
        # A simple packet has no timestamp; zero says so better than an invented one.
        return Packet(0, self._interfaces[0].link_type, body[4 : 4 + captured], original)

    def _packet(self, interface_id: int, units: int, data: memoryview, original: int) -> Packet:
        if interface_id >= len(self._interfaces):
            raise DissectError(
                f"interface {interface_id} was not described", offset=0, path="packet.interface"
            )
        link_type, _, multiplier, divisor, offset_ns = self._interfaces[interface_id]
        return Packet(units * multiplier // divisor + offset_ns, link_type, data, original)

    def _read_secrets(self, body: memoryview) -> DecryptionSecrets:
        secrets_type, length = self._layouts.block_head(body, 0)
        data = bytes(body[8 : 8 + length])
        if len(data) < length:
            raise DissectError("secrets missing", offset=4, path="decryption_secrets.length")
        return DecryptionSecrets(secrets_type, data)

    _BLOCK_READERS: ClassVar[
        Mapping[int, Callable[[CaptureReader, memoryview], CaptureItem | None]]
    ] = {
        _INTERFACE_DESCRIPTION: _read_interface,
        _OBSOLETE_PACKET: _read_obsolete_packet,
        _SIMPLE_PACKET: _read_simple_packet,
        _ENHANCED_PACKET: _read_enhanced_packet,
        _DECRYPTION_SECRETS: _read_secrets,
    }

    # Classic pcap

    def _start_pcap(self, data: memoryview, order: str, nanoseconds_per_unit: int) -> None:
        self.format = "pcap"
        self._layouts = _LAYOUTS[order]
        snapshot_length, network = self._layouts.block_head(data, 16)
        # The upper half of the last word is the frame check sequence's length, not link type.
        self._interfaces = [
            _Interface(network & 0xFFFF, snapshot_length, nanoseconds_per_unit, 1, 0)
        ]

    def _read_pcap_packets(self, data: memoryview, items: list[CaptureItem]) -> int:
        position, end = 0, len(data)
        if not self._consumed_bytes:
            position = _PCAP_FILE_HEADER_BYTES
        head = self._layouts.pcap_packet
        link_type, _, multiplier, _, _ = self._interfaces[0]
        append = items.append
        while end - position >= _PCAP_PACKET_HEADER_BYTES:
            seconds, fraction, captured, original = head(data, position)
            if captured > MAXIMUM_BLOCK_BYTES:
                raise self._bad_length(captured, position)
            start = position + _PCAP_PACKET_HEADER_BYTES
            following = start + captured
            if following > end:
                self._needed = following - position
                return position
            timestamp_ns = seconds * _NANOSECONDS + fraction * multiplier
            append(Packet(timestamp_ns, link_type, data[start:following], original))
            position = following
        self._needed = _PCAP_PACKET_HEADER_BYTES
        return position

    # Errors

    def _error(self, message: str, position: int, path: str) -> DissectError:
        return DissectError(message, offset=self._consumed_bytes + position, path=path)

    def _bad_length(self, length: int, position: int) -> DissectError:
        return self._error(
            f"a block of {length} bytes is not possible; the rest cannot be read",
            position,
            "block.length",
        )

    def _bad_trailer(self, position: int) -> DissectError:
        return self._error(
            "the lengths at both ends of a block differ; the rest cannot be read",
            position,
            "block.length",
        )

    def _unknown_interface(self, interface_id: int, position: int) -> DamagedBlock:
        error = self._error(
            f"interface {interface_id} was not described", position, "enhanced_packet.interface"
        )
        return DamagedBlock(error, is_packet=True)


def _reason(error: DissectError | struct.error) -> str:
    return error.message if isinstance(error, DissectError) else "too short"


class PcapngWriter:
    """A pcapng file of one section and one interface with timestamps in nanoseconds.

    Every method returns the bytes to append; nothing is kept. Raises `ValueError` for option
    texts over 65,535 bytes, which the format cannot hold.
    """

    def __init__(self, link_type: int = LINK_TYPE_RAW) -> None:
        self._link_type = link_type

    def start(
        self,
        *,
        hardware: str = "",
        operating_system: str = "",
        application: str = "",
        interface: str = "",
        comment: str = "",
    ) -> bytes:
        """Return the section header and the interface description; empty texts are left out."""
        section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + _option_list(
            (_OPTION_COMMENT, comment.encode()),
            (_SECTION_HARDWARE, hardware.encode()),
            (_SECTION_OS, operating_system.encode()),
            (_SECTION_APPLICATION, application.encode()),
        )
        description = struct.pack("<HHI", self._link_type, 0, 0) + _option_list(
            (_INTERFACE_NAME, interface.encode()), (_INTERFACE_RESOLUTION, b"\x09")
        )
        return _block(_SECTION_HEADER, section) + _block(_INTERFACE_DESCRIPTION, description)

    def packet(
        self,
        timestamp_ns: int,
        data: bytes,
        *,
        original_length: int | None = None,
        comment: str = "",
    ) -> bytes:
        """Return an enhanced packet block; `original_length` is given where `data` was cut."""
        head = struct.pack(
            "<5I",
            0,
            timestamp_ns >> 32,
            timestamp_ns & 0xFFFFFFFF,
            len(data),
            len(data) if original_length is None else original_length,
        )
        options = _option_list((_OPTION_COMMENT, comment.encode()))
        return _block(_ENHANCED_PACKET, head + data + bytes(-len(data) & 3) + options)

    def secrets(self, data: bytes, secrets_type: int = SECRETS_TYPE_TLS_KEY_LOG) -> bytes:
        """Return a Decryption Secrets Block; readers want it before the packets it opens."""
        head = struct.pack("<II", secrets_type, len(data))
        return _block(_DECRYPTION_SECRETS, head + data + bytes(-len(data) & 3))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + _BLOCK_OVERHEAD_BYTES
    if length > MAXIMUM_BLOCK_BYTES:
        raise ValueError(f"a block of {length} bytes is over {MAXIMUM_BLOCK_BYTES}")
    frame = struct.pack("<I", length)
    return struct.pack("<I", kind) + frame + body + frame


def _option_list(*options: tuple[int, bytes]) -> bytes:
    """Encode the options that are not empty, with the end mark if there are any."""
    encoded = b""
    for code, value in options:
        if len(value) > _MAXIMUM_OPTION_BYTES:
            raise ValueError(f"an option of {len(value)} bytes is over {_MAXIMUM_OPTION_BYTES}")
        if value:
            encoded += struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)
    return encoded + bytes(4) if encoded else b""
