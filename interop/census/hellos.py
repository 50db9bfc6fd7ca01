"""What anyone on the wire sees of a handshake: randoms, key shares, and tickets that are offered.

`HandshakeWatch` is shown the bytes of both directions in any pieces, and reads messages in clear
until there are none: to the ServerHello on TLS 1.3, to ChangeCipherSpec on TLS 1.2. What the bytes
are is a stranger's choice (the target of a census), so everything is bounded, and what cannot be
read is a `DissectError`.

A million handshakes are read by this, and `interop.wire.handshake` reads each hello in full, which
takes a tenth as long as the handshake itself. Here the extensions are stepped over, and only two
are looked into.

One value counts once for each handshake: a client may send one public value in two shares of a
ClientHello (that of X25519MLKEM768 again as x25519, as some stacks do), and after a
HelloRetryRequest sends its random, and perhaps its share, again. That is no reuse. A hybrid is
split into its components, since each must be fresh.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn

from interop.errors import DissectError
from interop.wire import handshake as hs
from interop.wire.groups import split_public_value
from interop.wire.record import HEADER_LENGTH, MAX_CIPHERTEXT_TLS12
from interop.wire.registry import (
    ContentType,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    name_of,
)
from interop.wire.suites import KeyExchange, parameters_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["HandshakeWatch"]

_MAX_MESSAGE_BYTES: Final = 1 << 17
_RECORD_HEADER: Final = struct.Struct(">BHH")
_U16, _TWO_U16 = struct.Struct(">H"), struct.Struct(">HH")
_KEY_SHARE, _PRE_SHARED_KEY = int(ExtensionType.KEY_SHARE), int(ExtensionType.PRE_SHARED_KEY)
_SUPPORTED_VERSIONS: Final = int(ExtensionType.SUPPORTED_VERSIONS)
_HANDSHAKE, _CHANGE_CIPHER_SPEC = int(ContentType.HANDSHAKE), int(ContentType.CHANGE_CIPHER_SPEC)
_TLS_1_3: Final = int(ProtocolVersion.TLS_1_3)
# Plain integers: an enumeration's member costs more to look up than to compare.
_CLIENT_HELLO, _SERVER_HELLO = int(HandshakeType.CLIENT_HELLO), int(HandshakeType.SERVER_HELLO)
_CLIENT_KEY_EXCHANGE: Final = int(HandshakeType.CLIENT_KEY_EXCHANGE)
_SERVER_KEY_EXCHANGE: Final = int(HandshakeType.SERVER_KEY_EXCHANGE)
_LOOKED_INTO: Final = frozenset({_KEY_SHARE, _PRE_SHARED_KEY, _SUPPORTED_VERSIONS})


class _Side:
    """One direction: what of it has not been read yet."""

    __slots__ = ("done", "message_bytes", "record_bytes")

    def __init__(self) -> None:
        self.record_bytes = b""
        self.message_bytes = b""
        self.done = False


class HandshakeWatch:
    """Reads one handshake as it passes; `values` is what it has read, each after its kind."""

    __slots__ = ("_client", "_group", "_server", "_suite", "_values", "_version")

    def __init__(self) -> None:
        self._client, self._server = _Side(), _Side()
        self._version = 0  # until the server has chosen one
        self._suite = 0
        self._group: int | None = None
        self._values: dict[tuple[str, bytes], None] = {}

    @property
    def values(self) -> list[tuple[str, bytes]]:
        """What was read, each value after its kind; none twice."""
        return list(self._values)

    def client(self, data: bytes) -> None:
        """Take the next bytes of the client; raises `DissectError`."""
        if not self._client.done:
            self._take(self._client, data)

    def server(self, data: bytes) -> None:
        """Take the next bytes of the server; raises `DissectError`."""
        if not self._server.done:
            self._take(self._server, data)

    def _take(self, side: _Side, data: bytes) -> None:
        """Take the records of some bytes, and keep what is left of them."""
        pending = side.record_bytes + data if side.record_bytes else data
        size, position = len(pending), 0
        while not side.done and size - position >= HEADER_LENGTH:
            kind, _, length = _RECORD_HEADER.unpack_from(pending, position)
            if length > MAX_CIPHERTEXT_TLS12:
                _fail(f"a record of {length} bytes", "record.length")
            start, end = position + HEADER_LENGTH, position + HEADER_LENGTH + length
            if end > size:
                break
            position = end
            if kind == _HANDSHAKE:
                fragment = pending[start:end]
                self._take_messages(
                    side, side.message_bytes + fragment if side.message_bytes else fragment
                )
            elif kind != _CHANGE_CIPHER_SPEC or self._version not in {0, _TLS_1_3}:
                # Whatever follows is encrypted, or an alert. (TLS 1.3 sends ChangeCipherSpec for
                # the look of it: RFC 9846 appendix E.4.)
                side.done = True
        side.record_bytes = b"" if side.done else pending[position:]

    def _take_messages(self, side: _Side, content: bytes) -> None:
        """Read the whole messages in `content`, and keep what is left of it."""
        size, position = len(content), 0
        while not side.done and size - position >= hs.HEADER_LENGTH:
            end = position + hs.HEADER_LENGTH
            end += int.from_bytes(content[position + 1 : end], "big")
            if end - position > _MAX_MESSAGE_BYTES:
                _fail(f"a message of {end - position} bytes", "handshake.length")
            if end > size:
                break
            message = content[position:end]
            position = end
            try:
                self._read(side, message)
            except (struct.error, IndexError):
                _fail("cut short", "handshake")
        side.message_bytes = content[position:]

    def _read(self, side: _Side, message: bytes) -> None:
        kind = message[0]
        if side is self._client:
            if kind == _CLIENT_HELLO:
                self._client_hello(message)
            elif kind == _CLIENT_KEY_EXCHANGE:
                self._client_key_exchange(message)
        elif kind == _SERVER_HELLO:
            self._server_hello(message)
        elif kind == _SERVER_KEY_EXCHANGE:
            self._server_key_exchange(message)

    def _see(self, kind: str, value: bytes) -> None:
        self._values[kind, value] = None

    def _see_share(self, side: str, group: int, share: bytes) -> None:
        kinds = _kinds_of_share(side, group)
        if len(kinds) == 1:
            self._values[kinds[0], share] = None
            return
        parts = split_public_value(group, share, from_client=side == "client")
        for kind, part in zip(kinds, parts, strict=False):
            self._values[kind, part] = None

    def _client_hello(self, message: bytes) -> None:
        self._see("client_random", message[6:38])
        position = 39 + message[38]  # legacy_session_id
        position += 2 + _U16.unpack_from(message, position)[0]  # cipher_suites
        position += 1 + message[position]  # legacy_compression_methods
        for number, start, end in _extensions(message, position):
            if number == _KEY_SHARE:
                at = start + 2
                while at < end:
                    group, length = _TWO_U16.unpack_from(message, at)
                    self._see_share("client", group, message[at + 4 : at + 4 + length])
                    at += 4 + length
                _require_end(at, end, "client_hello.key_share")
            elif number == _PRE_SHARED_KEY:
                at, last = start + 2, start + 2 + _U16.unpack_from(message, start)[0]
                while at < last:
                    length = _U16.unpack_from(message, at)[0]
                    self._see("ticket_identity", message[at + 2 : at + 2 + length])
                    at += 6 + length  # with its obfuscated_ticket_age
                _require_end(at, last, "client_hello.pre_shared_key")

    def _server_hello(self, message: bytes) -> None:
        version, random = _U16.unpack_from(message, 4)[0], message[6:38]
        position = 39 + message[38]  # legacy_session_id_echo
        self._suite = _U16.unpack_from(message, position)[0]
        group, share = 0, b""
        for number, start, end in _extensions(message, position + 3):
            if number == _SUPPORTED_VERSIONS:
                version = _U16.unpack_from(message, start)[0]
            elif number == _KEY_SHARE:
                group, share = _U16.unpack_from(message, start)[0], message[start + 4 : end]
        if random == hs.HELLO_RETRY_REQUEST_RANDOM:
            return
        self._version = version
        self._see("server_random", random)
        if version == _TLS_1_3:
            if share:
                self._see_share("server", group, share)
            # What follows is encrypted, but for a ChangeCipherSpec of no meaning.
            self._client.done = self._server.done = True

    def _exchange(self) -> KeyExchange:
        parameters = parameters_of(self._suite)
        return KeyExchange.OTHER if parameters is None else parameters.key_exchange

    def _server_key_exchange(self, message: bytes) -> None:
        exchange = hs.server_key_exchange(message, self._exchange())
        if exchange is not None:
            self._group = exchange.group
            self._see_share("server", exchange.group or 0, exchange.public)

    def _client_key_exchange(self, message: bytes) -> None:
        exchange = self._exchange()
        if exchange.is_ephemeral:
            public = hs.client_key_exchange(message, exchange)
            self._see_share("client", self._group or 0, public)


@lru_cache(maxsize=512)
def _kinds_of_share(side: str, group: int) -> tuple[str, ...]:
    """Name the components of a share: one, or of a hybrid the classical one first."""
    name = name_of(NamedGroup, group) if group else "dhe"
    classical, _, kem = name.partition("MLKEM")
    parts = (classical, f"MLKEM{kem}") if classical and kem else (name,)
    return tuple(f"{side}_key_share.{part.lower()}" for part in parts)


def _extensions(message: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """Yield each extension that says something: its number, and where its data begins and ends."""
    end = len(message)
    if position == end:
        return  # a hello of old may have none
    if position + 2 + _U16.unpack_from(message, position)[0] != end:
        _fail("its extensions are not as long as they say", "hello.extensions")
    position += 2
    while position < end:
        number, length = _TWO_U16.unpack_from(message, position)
        start = position + 4
        position = start + length
        if position > end:
            _fail(f"extension {number} is longer than the message", "hello.extensions")
        if number in _LOOKED_INTO:
            yield number, start, position


def _require_end(position: int, end: int, path: str) -> None:
    if position != end:
        _fail("its parts are not as long as it says", path)


def _fail(what: str, path: str) -> NoReturn:
    raise DissectError(what, offset=0, path=path)
