"""What the protocol engines, those of TLS 1.2 and TLS 1.3 and `Hellos`, have in common.

An engine is told of whole records and of whole handshake messages, sets the openers of the two
halves, and says when a half must wait for the other. It writes what it learns into `SessionFacts`;
what only informs, and decides nothing, cannot end a half by being malformed (`Engine._inform`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Never, ParamSpec

from interop.errors import DissectError
from interop.wire import handshake as hs
from interop.wire.facts import SeenAlert
from interop.wire.material import Direction
from interop.wire.record import MAX_CIPHERTEXT_TLS12
from interop.wire.registry import ContentType, ExtensionType, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from interop.wire.extensions import ExtensionBlock
    from interop.wire.facts import SessionFacts
    from interop.wire.half import Half
    from interop.wire.handshake import ClientHello
    from interop.wire.learned import LearnedSecrets
    from interop.wire.material import KeyMaterial

__all__ = ["Engine", "Halves", "no_key_reason", "refuse", "take_alert"]

_P = ParamSpec("_P")
Halves = dict[Direction, "Half"]

_ALERT_LENGTH = 2
_RAW_PUBLIC_KEY = b"\x02"  # RFC 7250 section 3
_CERTIFICATE_TYPES = {
    Direction.CLIENT_TO_SERVER: ExtensionType.CLIENT_CERTIFICATE_TYPE,
    Direction.SERVER_TO_CLIENT: ExtensionType.SERVER_CERTIFICATE_TYPE,
}
_MAX_HANDSHAKE_MESSAGES = 256  # of one handshake; a real one has a dozen


def refuse(message: str, path: str) -> Never:
    """Raise `DissectError` about a record that is whole but has no business being there."""
    raise DissectError(message, offset=0, path=path)


def take_alert(facts: SessionFacts, half: Half, content: bytes, *, protected: bool) -> None:
    """Read an alert (RFC 9846 section 6)."""
    if len(content) != _ALERT_LENGTH:
        refuse(f"an alert has 2 bytes, this one {len(content)}", "alert")
    facts.note_alert(SeenAlert(half.direction, content[0], content[1], protected))


def no_key_reason(
    keys: KeyMaterial, exchange: str, client_random: bytes, *, tried: str = ""
) -> str:
    """Say in a sentence why no stolen key gives this session's secrets.

    `exchange` names an exchange that the server's key only signs; `tried` is what came of the
    ephemeral keys.
    """
    if keys.is_empty:
        return f"{exchange}: no keys were given"
    clauses = []
    if keys.server_private_keys:
        clauses.append("the server key only signs; the shared secret cannot be computed from it")
    if keys.ephemeral_private_keys and tried:
        clauses.append(tried)
    if client_random in keys.key_log:
        clauses.append("the key log has other secrets of this session only")
    elif keys.key_log:
        clauses.append("no key log line for this client_random")
    if keys.ticket_keys:
        clauses.append("no ticket that holds its secret opens under the ticket keys given")
    if not clauses:
        clauses.append("a pre-shared key is not what this session's secrets come of")
    return f"{exchange}: " + "; and ".join(clauses)


class Engine(ABC):
    """One protocol version's reader.

    No fragment is longer than `record_limit_bytes`. `successor` is the engine that reads on, once
    this one has read what it can.
    """

    record_limit_bytes = MAX_CIPHERTEXT_TLS12
    successor: Engine | None = None

    def __init__(
        self, facts: SessionFacts, keys: KeyMaterial, learned: LearnedSecrets, halves: Halves
    ) -> None:
        self._facts = facts
        self._keys = keys
        self._learned = learned
        self._halves = halves

    def _inform(self, take: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Take facts that decide nothing: where they cannot be read, that is noted, and no more."""
        try:
            take(*args, **kwargs)
        except DissectError as error:
            self._facts.note_damage(error)

    def _take_key_shares(self, hello: ClientHello) -> None:
        self._facts.client_key_shares.update(hello.key_shares)

    def _take_certificates(
        self, direction: Direction, message: bytes, *, tls13: bool, agreed: ExtensionBlock
    ) -> None:
        """Note a peer's certificates; of raw public keys, if `agreed` upon, there are none."""
        if agreed.get(_CERTIFICATE_TYPES[direction]) == _RAW_PUBLIC_KEY:
            return
        chain = hs.certificate_chain(message, tls13=tls13)
        if direction is Direction.SERVER_TO_CLIENT:
            self._facts.server_certificates = chain
        else:
            self._facts.client_certificates = chain

    def _close_both(self, reason: str) -> None:
        for half in self._halves.values():
            half.close(reason)

    @abstractmethod
    def must_wait(self, half: Half, content_type: int) -> bool:
        """Say whether a record of this type needs what the other direction has not told yet."""

    @abstractmethod
    def take_record(self, half: Half, content_type: int, record: memoryview) -> bytes | None:
        """Take one whole record; give its application data, if it has any. May raise."""

    @abstractmethod
    def take_message(self, half: Half, message: bytes) -> None:
        """Take one whole handshake message. May raise `DissectError`."""

    def drain(self, half: Half) -> None:
        """Take the whole messages that have been assembled, as far as nothing must wait."""
        while half.alive and half.assembler.pending_bytes:
            if self.must_wait(half, ContentType.HANDSHAKE):
                half.waiting_for_type = ContentType.HANDSHAKE
                return
            if (message := half.assembler.next_message()) is None:
                return
            self.take_message(half, message)
            if self.successor is not None:
                self.successor.drain(half)
                return

    def _store(self, half: Half, message: bytes, limit: int) -> bytes:
        """Keep a handshake message, within bounds on all that are kept of one direction."""
        half.stored_handshake_messages += 1
        if half.stored_handshake_messages > _MAX_HANDSHAKE_MESSAGES:
            refuse(f"more than {_MAX_HANDSHAKE_MESSAGES} handshake messages", "handshake")
        half.stored_handshake_bytes += len(message)
        if half.stored_handshake_bytes > limit:
            refuse(f"more than {limit} bytes of handshake", "handshake")
        return message

    @staticmethod
    def _unexpected(content_type: int, where: str) -> Never:
        refuse(f"unexpected {name_of(ContentType, content_type)} {where}", "record.type")
