"""Captures written: pcapng, a block at a time, as bytes for whoever has the file.

Apart from `pcapng`, which reads it, since who writes captures need not know how they are read.
"""

from __future__ import annotations

import struct
from typing import Final

from interop.capture.blocks import (
    BLOCK_OVERHEAD_BYTES,
    BYTE_ORDER_MAGIC,
    DECRYPTION_SECRETS,
    ENHANCED_PACKET,
    INTERFACE_DESCRIPTION,
    INTERFACE_NAME,
    INTERFACE_RESOLUTION,
    OPTION_COMMENT,
    SECTION_APPLICATION,
    SECTION_HARDWARE,
    SECTION_HEADER,
    SECTION_OS,
)
from interop.capture.items import LINK_TYPE_RAW, MAXIMUM_BLOCK_BYTES, SECRETS_TYPE_TLS_KEY_LOG

__all__ = ["PcapngWriter"]

_MAXIMUM_OPTION_BYTES: Final = 65_535


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
        section = struct.pack("<IHHq", BYTE_ORDER_MAGIC, 1, 0, -1) + _option_list(
            (OPTION_COMMENT, comment.encode()),
            (SECTION_HARDWARE, hardware.encode()),
            (SECTION_OS, operating_system.encode()),
            (SECTION_APPLICATION, application.encode()),
        )
        description = struct.pack("<HHI", self._link_type, 0, 0) + _option_list(
            (INTERFACE_NAME, interface.encode()), (INTERFACE_RESOLUTION, b"\x09")
        )
        return _block(SECTION_HEADER, section) + _block(INTERFACE_DESCRIPTION, description)

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
        options = _option_list((OPTION_COMMENT, comment.encode()))
        return _block(ENHANCED_PACKET, head + data + bytes(-len(data) & 3) + options)

    def secrets(self, data: bytes, secrets_type: int = SECRETS_TYPE_TLS_KEY_LOG) -> bytes:
        """Return a Decryption Secrets Block; readers want it before the packets it opens."""
        head = struct.pack("<II", secrets_type, len(data))
        return _block(DECRYPTION_SECRETS, head + data + bytes(-len(data) & 3))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + BLOCK_OVERHEAD_BYTES
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
