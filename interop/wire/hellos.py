"""The beginning of a session: the hellos, which say how it goes on.

`Hellos` is the first engine of every session. The ServerHello names the version, and the engine of
that version is its successor, for the messages behind it in the same record already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interop.wire import handshake as hs
from interop.wire.engine import Engine, Halves, take_alert
from interop.wire.material import Direction, KeyMaterial
from interop.wire.record import HEADER_LENGTH
from interop.wire.registry import ContentType, ProtocolVersion
from interop.wire.suites import parameters_of
from interop.wire.tls12 import TLS12Engine
from interop.wire.tls13 import TLS13Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.wire.facts import SessionFacts
    from interop.wire.half import Half
    from interop.wire.handshake import ClientHello, ServerHello
    from interop.wire.learned import LearnedSecrets

__all__ = ["Hellos"]

_CLIENT = Direction.CLIENT_TO_SERVER
_ENGINES: dict[int, type[TLS12Engine | TLS13Engine]] = {
    ProtocolVersion.TLS_1_2: TLS12Engine,
    ProtocolVersion.TLS_1_3: TLS13Engine,
}


class Hellos(Engine):
    """Reads up to the ServerHello; then `hand_over` is called with the engine that reads on."""

    def __init__(
        self,
        facts: SessionFacts,
        keys: KeyMaterial,
        learned: LearnedSecrets,
        halves: Halves,
        *,
        handshake_limit_bytes: int,
        hand_over: Callable[[Engine], None],
    ) -> None:
        super().__init__(facts, keys, learned, halves)
        self._handshake_limit = handshake_limit_bytes
        self._hand_over = hand_over
        self._client_hello: tuple[bytes, ClientHello] | None = None

    def must_wait(self, half: Half, content_type: int) -> bool:
        """Say whether it is the other direction's turn: first the client, then the server."""
        if content_type == ContentType.ALERT:
            return False
        is_client = half.direction is _CLIENT
        if is_client == (self._client_hello is None):
            return False
        if half.other.alive:
            return True
        half.close("no ServerHello was read" if is_client else "no ClientHello was read")
        return False

    def take_record(self, half: Half, content_type: int, record: memoryview) -> None:
        """Take one whole record; before a hello nothing but alerts can be."""
        if content_type == ContentType.HANDSHAKE:
            half.assembler.feed(record[HEADER_LENGTH:])
            self.drain(half)
        elif content_type == ContentType.ALERT:
            take_alert(self._facts, half, bytes(record[HEADER_LENGTH:]), protected=False)
        else:
            self._unexpected(content_type, "before a hello")

    def take_message(self, half: Half, message: bytes) -> None:
        """Take a hello."""
        self._facts.note_message(half.direction, message[0])
        if half.direction is _CLIENT:
            self._take_client_hello(message)
        else:
            self._take_server_hello(message)

    def _take_client_hello(self, message: bytes) -> None:
        hello = hs.parse_client_hello(message)
        self._client_hello = (message, hello)
        self._facts.client_random = hello.random
        self._facts.early_data_offered = hello.early_data
        for take in (self._take_server_name, self._take_key_shares, self._take_identities):
            self._inform(take, hello)

    def _take_server_name(self, hello: ClientHello) -> None:
        self._facts.server_name = hello.server_name

    def _take_identities(self, hello: ClientHello) -> None:
        if (offers := hello.pre_shared_keys) is not None:
            identities = tuple(offer.identity for offer in offers.identities)
            self._facts.offered_psk_identities = identities

    def _take_server_hello(self, message: bytes) -> None:
        if self._client_hello is None:
            return
        client_hello, offered = self._client_hello
        hello = hs.parse_server_hello(message)
        self._facts.version = hello.version
        kind = _ENGINES.get(hello.version)
        if kind is None:
            self._name_other_version(hello)
            return
        self.successor = engine = kind(
            self._facts,
            self._keys,
            self._learned,
            self._halves,
            client_hello=client_hello,
            hello=offered,
            handshake_limit_bytes=self._handshake_limit,
        )
        self._hand_over(engine)
        engine.take_server_hello(message, hello)

    def _name_other_version(self, hello: ServerHello) -> None:
        facts = self._facts
        facts.server_random = hello.random
        facts.suite = hello.cipher_suite
        suite = parameters_of(hello.cipher_suite)
        if suite is not None:
            facts.forward_secret = suite.forward_secret
        self._close_both(f"{facts.version_name}: this version is named but not read here")
