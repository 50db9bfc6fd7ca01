"""The numbers of pcapng, for its reader and its writer (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BLOCK_OVERHEAD_BYTES",
    "BYTE_ORDER_MAGIC",
    "DECRYPTION_SECRETS",
    "ENHANCED_PACKET",
    "INTERFACE_DESCRIPTION",
    "INTERFACE_NAME",
    "INTERFACE_OFFSET",
    "INTERFACE_RESOLUTION",
    "OBSOLETE_PACKET",
    "OPTION_COMMENT",
    "OPTION_END",
    "SECTION_APPLICATION",
    "SECTION_HARDWARE",
    "SECTION_HEADER",
    "SECTION_OS",
    "SIMPLE_PACKET",
]

# Types of blocks (section 4)
SECTION_HEADER: Final = 0x0A0D0D0A  # a palindrome: the same in both byte orders
INTERFACE_DESCRIPTION: Final = 1
OBSOLETE_PACKET: Final = 2
SIMPLE_PACKET: Final = 3
ENHANCED_PACKET: Final = 6
DECRYPTION_SECRETS: Final = 10

BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
BLOCK_OVERHEAD_BYTES: Final = 12  # type, length, and the length again

# Options: of any block, of section headers, of interface descriptions
OPTION_END: Final = 0
OPTION_COMMENT: Final = 1
SECTION_HARDWARE: Final = 2
SECTION_OS: Final = 3
SECTION_APPLICATION: Final = 4
INTERFACE_NAME: Final = 2
INTERFACE_RESOLUTION: Final = 9
INTERFACE_OFFSET: Final = 14
