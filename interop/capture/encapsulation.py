"""Packets in packets: what tags and tunnels put before a packet, stepped over.

A tunnel hides a session as well as encryption does from a reader that does not step over it. So
these that carry IP in the clear are read, and others that are known are named by `NotRead`, for a
reader that counts them: a capture without sessions is not the same as one that was not looked into.

Nothing here walks on by itself: each function says what follows and where that begins, and
`packets` bounds how often it is asked. A "kind" is an EtherType throughout.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from interop.errors import DissectError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CARRIERS",
    "IPV4",
    "IPV6",
    "TAGS",
    "UDP_PORTS",
    "NotRead",
    "behind_tags",
    "carried_packet",
]

IPV4: Final = 0x0800
IPV6: Final = 0x86DD

_NOTHING: Final = 0  # no EtherType
_ETHERNET: Final = 0x6558  # a whole frame
_MPLS: Final = frozenset({0x8847, 0x8848})
_PPPOE: Final = 0x8864
_VLAN_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100, 0x9200})
_KINDS_NOT_READ: Final[Mapping[int, str]] = {
    0x22EB: "ERSPAN",
    0x880B: "PPP",
    0x88BE: "ERSPAN",
    0x88E5: "MACsec",
    0x88E7: "provider backbone bridging",
    0x8926: "VN-Tag",
    0x893F: "802.1BR",
    0x894F: "NSH",
}
TAGS: Final = frozenset({*_VLAN_TAGS, *_MPLS, _PPPOE, *_KINDS_NOT_READ})
"""The kinds that `behind_tags` does something about, of those on a link."""

_MAXIMUM_TAGS: Final = 8
_MAXIMUM_LABELS: Final = 32
_VLAN_TAG_BYTES: Final = 4
_LABEL_BYTES: Final = 4
_ETHERNET_BYTES: Final = 14
_PPPOE_BYTES: Final = 8  # with the protocol of PPP
_PPP_KINDS: Final[Mapping[int, int]] = {0x0021: IPV4, 0x0057: IPV6, 0x0281: 0x8847}
_IP_KINDS: Final[Mapping[int, int]] = {4: IPV4, 6: IPV6}  # by version

_UDP: Final = 17
_GRE: Final = 47
_PLAIN: Final[Mapping[int, int]] = {4: IPV4, 41: IPV6, 137: 0x8847}
_PROTOCOLS_NOT_READ: Final[Mapping[int, str]] = {
    50: "ESP",
    55: "minimal encapsulation",
    97: "EtherIP",
    108: "IPComp",
    115: "L2TP",
}
CARRIERS: Final = frozenset({_UDP, _GRE, *_PLAIN, *_PROTOCOLS_NOT_READ})
"""The protocols of IP that `carried_packet` looks into."""

_GRE_BYTES: Final = 4
_GRE_NOT_PLAIN: Final = 0x4007  # routing, or another version
_GRE_OPTIONAL_WORDS: Final = (0x8000, 0x2000, 0x1000)  # checksum, key, sequence number
_VXLAN_PORTS: Final = frozenset({4789, 8472})  # RFC 7348, and what Linux had before it
_PORTS_NOT_READ: Final[Mapping[int, str]] = {
    1701: "L2TP",
    2152: "GTP",
    3544: "Teredo",
    4500: "ESP",
    4754: "GRE",
    4790: "VXLAN-GPE",
    6081: "Geneve",
    6635: "MPLS",
}
UDP_PORTS: Final = frozenset(port.to_bytes(2, "big") for port in _VXLAN_PORTS | {*_PORTS_NOT_READ})
"""The ports whose datagrams `carried_packet` looks into, as they are on the wire."""

_UDP_BYTES: Final = 8
_VXLAN_BYTES: Final = 8
_VXLAN_HAS_NETWORK: Final = 0x08


class NotRead(DissectError):
    """An encapsulation that is known and not read; the message is its name."""


def behind_tags(kind: int, data: memoryview, start: int) -> tuple[int, int]:
    """Step over VLAN tags, MPLS labels, PPPoE and a frame's header; return what follows, and where.

    Raises `NotRead` for what else is known to carry packets, and `DissectError` for damage.
    """
    for _ in range(_MAXIMUM_TAGS):
        if kind in _VLAN_TAGS:
            _need(data, start, _VLAN_TAG_BYTES, "link.vlan")
            kind = int.from_bytes(data[start + 2 : start + 4], "big")
            start += _VLAN_TAG_BYTES
        elif kind in _MPLS:
            kind, start = _behind_labels(data, start)
        elif kind == _PPPOE:
            _need(data, start, _PPPOE_BYTES, "pppoe")
            kind = _PPP_KINDS.get(int.from_bytes(data[start + 6 : start + 8], "big"), _NOTHING)
            start += _PPPOE_BYTES
        elif kind == _ETHERNET:
            _need(data, start, _ETHERNET_BYTES, "ethernet")
            kind = int.from_bytes(data[start + 12 : start + 14], "big")
            start += _ETHERNET_BYTES
        else:
            break
    if kind in _KINDS_NOT_READ:
        raise NotRead(_KINDS_NOT_READ[kind], offset=start, path="link")
    return kind, start


def _behind_labels(data: memoryview, start: int) -> tuple[int, int]:
    """Step over the labels of MPLS (RFC 3032), which do not tell what they are before."""
    for _ in range(_MAXIMUM_LABELS):
        _need(data, start, _LABEL_BYTES + 1, "mpls")
        is_last = data[start + 2] & 1
        start += _LABEL_BYTES
        if is_last:
            kind = _IP_KINDS.get(data[start] >> 4)
            if kind is None:
                raise NotRead("MPLS that carries no IP", offset=start, path="mpls")
            return kind, start
    raise DissectError("too many labels", offset=start, path="mpls")


def carried_packet(protocol: int, data: memoryview, start: int) -> tuple[int, int]:
    """Return what kind of packet an IP packet of that protocol carries, and where that begins.

    Raises `NotRead` for what is known to carry one in another way, and `DissectError` for damage.
    """
    name = _PROTOCOLS_NOT_READ.get(protocol)
    if name is not None:
        raise NotRead(name, offset=start, path="ip.protocol")
    kind = _PLAIN.get(protocol, _NOTHING)
    if protocol == _GRE:
        kind, start = _in_gre(data, start)
    elif protocol == _UDP:
        kind, start = _in_udp(data, start)
    return behind_tags(kind, data, start)


def _in_gre(data: memoryview, start: int) -> tuple[int, int]:
    """Step over the header of GRE (RFC 2784) with a key and a sequence number (RFC 2890)."""
    _need(data, start, _GRE_BYTES, "gre")
    flags, kind = struct.unpack_from("!HH", data, start)
    if flags & _GRE_NOT_PLAIN:
        raise NotRead("GRE that is not plain", offset=start, path="gre")
    optional_bytes = 4 * sum(bool(flags & each) for each in _GRE_OPTIONAL_WORDS)
    return kind, start + _GRE_BYTES + optional_bytes


def _in_udp(data: memoryview, start: int) -> tuple[int, int]:
    """Step over the headers of UDP and VXLAN (RFC 7348), if a port says that it is that."""
    port = int.from_bytes(data[start + 2 : start + 4], "big")
    name = _PORTS_NOT_READ.get(port)
    if name is not None:
        raise NotRead(f"{name} in UDP", offset=start, path="udp.port")
    frame = start + _UDP_BYTES + _VXLAN_BYTES
    if port not in _VXLAN_PORTS or len(data) < frame:
        return _NOTHING, start
    is_vxlan = data[start + _UDP_BYTES] & _VXLAN_HAS_NETWORK
    return (_ETHERNET, frame) if is_vxlan else (_NOTHING, start)


def _need(data: memoryview, start: int, size: int, path: str) -> None:
    if len(data) < start + size:
        raise DissectError("too short", offset=start, path=path)
