"""What a client sent, cut into the units that an attacker moves about.

An attacker without keys still knows what a record is for: TLS 1.2 says so in clear, and TLS 1.3
hides the content type of a protected record but not its length, and an alert (19 bytes),
EndOfEarlyData (21) and Finished (53 or 69) have lengths of their own. The requests sent here are
longer. A labeller holds for clients without a certificate, whose Finished is a record by itself.

Traffic that is not TLS (the plain control) is cut where a request's head ends; its requests have no
body.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from interop.errors import DissectError
from interop.wire.record import RecordSplitter
from interop.wire.registry import ContentType, HandshakeType

if TYPE_CHECKING:
    from interop.wire.record import Record

__all__ = ["ClientUnits", "Flight", "Framing", "Role", "ServerUnits", "Unit"]

Framing: TypeAlias = Literal["TLS 1.3", "TLS 1.2", "unprotected records", "plain"]
"""How a stream is to be cut: by the records of a version, or as HTTP without any."""

_ALERT_BYTES: Final = 19  # two bytes, the content type and the tag
_END_OF_EARLY_DATA_BYTES: Final = 21
_FINISHED_BYTES: Final = frozenset({53, 69})  # by the hash, SHA-256 or SHA-384
_END_OF_HEAD: Final = b"\r\n\r\n"


class Role(StrEnum):
    """What a unit is for."""

    CLIENT_HELLO = "ClientHello"
    CLIENT_KEY_EXCHANGE = "ClientKeyExchange"
    CHANGE_CIPHER_SPEC = "change_cipher_spec"
    EARLY_DATA = "0-RTT data"
    END_OF_EARLY_DATA = "EndOfEarlyData"
    FINISHED = "Finished"
    REQUEST = "request"
    ALERT = "alert"
    SERVER_HANDSHAKE = "server handshake"
    ANSWER = "answer"
    OTHER = "other"


class Unit(NamedTuple):
    """One record with its header, or one plain request."""

    role: Role
    raw: bytes


@dataclass(frozen=True)
class Flight:
    """All that a client sent in one session, in order."""

    units: tuple[Unit, ...]

    @property
    def raw(self) -> bytes:
        """The bytes as they were sent."""
        return b"".join(unit.raw for unit in self.units)

    def of(self, *roles: Role) -> tuple[bytes, ...]:
        """Return the units of these roles, in order."""
        return tuple(unit.raw for unit in self.units if unit.role in roles)

    def without(self, *roles: Role) -> bytes:
        """Return all bytes but the units of these roles."""
        return b"".join(unit.raw for unit in self.units if unit.role not in roles)

    def split_after_hello(self) -> tuple[bytes, bytes]:
        """Return what comes up to the first ClientHello, and the rest."""
        roles = [unit.role for unit in self.units]
        end = roles.index(Role.CLIENT_HELLO) + 1 if Role.CLIENT_HELLO in roles else 0
        units = [unit.raw for unit in self.units]
        return b"".join(units[:end]), b"".join(units[end:])


class _Units(ABC):
    """Cuts one direction; what cannot be cut is passed on as it came."""

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._splitter: RecordSplitter | None = None if framing == "plain" else RecordSplitter()
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Unit]:
        """Take the next bytes; return the units that they complete."""
        self._pending += data
        if self._splitter is None:
            return self._feed_plain()
        try:
            records = self._splitter.feed(data)
        except DissectError:
            self._splitter = None
            return self.finish()
        units = [Unit(self._role(record), bytes(record.raw)) for record in records]
        del self._pending[: sum(len(unit.raw) for unit in units)]
        return units

    def finish(self) -> list[Unit]:
        """Return what is left of a unit whose end did not come."""
        rest = bytes(self._pending)
        self._pending.clear()
        return [Unit(Role.OTHER, rest)] if rest else []

    @abstractmethod
    def _feed_plain(self) -> list[Unit]:
        """Return the units of what came outside of records."""

    @abstractmethod
    def _role(self, record: Record) -> Role:
        """Say what a record is."""


class ClientUnits(_Units):
    """Cuts and labels what a client sends."""

    def __init__(self, framing: Framing) -> None:
        super().__init__(framing)
        self._protected = framing == "unprotected records"
        self._finished = False

    def _feed_plain(self) -> list[Unit]:
        if self._framing != "plain":
            return self.finish()
        units: list[Unit] = []
        while (end := self._pending.find(_END_OF_HEAD)) >= 0:
            end += len(_END_OF_HEAD)
            units.append(Unit(Role.REQUEST, bytes(self._pending[:end])))
            del self._pending[:end]
        return units

    def _role(self, record: Record) -> Role:
        match record.content_type:
            case ContentType.CHANGE_CIPHER_SPEC:
                self._protected = True
                return Role.CHANGE_CIPHER_SPEC
            case ContentType.HANDSHAKE:
                return self._handshake_role(record.fragment)
            case ContentType.ALERT:
                return Role.ALERT
            case ContentType.APPLICATION_DATA if self._framing == "TLS 1.3":
                return self._protected_role(len(record.fragment))
            case ContentType.APPLICATION_DATA:
                return Role.REQUEST
            case _:
                return Role.OTHER

    def _handshake_role(self, fragment: memoryview) -> Role:
        if self._protected and self._framing == "TLS 1.2":
            return Role.FINISHED
        names: dict[int, Role] = {
            HandshakeType.CLIENT_HELLO: Role.CLIENT_HELLO,
            HandshakeType.CLIENT_KEY_EXCHANGE: Role.CLIENT_KEY_EXCHANGE,
        }
        return names.get(fragment[0], Role.OTHER) if fragment else Role.OTHER

    def _protected_role(self, length_bytes: int) -> Role:
        if length_bytes == _ALERT_BYTES:
            return Role.ALERT
        if not self._finished and length_bytes == _END_OF_EARLY_DATA_BYTES:
            return Role.END_OF_EARLY_DATA
        if not self._finished and length_bytes in _FINISHED_BYTES:
            self._finished = True
            return Role.FINISHED
        return Role.REQUEST if self._finished else Role.EARLY_DATA


class ServerUnits(_Units):
    """Cuts and labels what a server sends; `asked` is to be set once a request was seen.

    What follows the request is an answer as far as an outsider can tell: it may be a ticket.
    """

    def __init__(self, framing: Framing) -> None:
        super().__init__(framing)
        self.asked = False

    def _feed_plain(self) -> list[Unit]:
        return [Unit(Role.ANSWER, unit.raw) for unit in self.finish()]

    def _role(self, record: Record) -> Role:
        if record.content_type == ContentType.ALERT:
            return Role.ALERT
        answers = self.asked and record.content_type == ContentType.APPLICATION_DATA
        return Role.ANSWER if answers else Role.SERVER_HANDSHAKE
