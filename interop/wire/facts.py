"""What a recorded session tells about itself, with or without keys.

`SessionFacts` is filled in by the readers as messages come by, and is what reports and censuses
read. Lists are capped: a peer that sends alerts or tickets for ever fills no memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from interop.wire.registry import (
    AlertDescription,
    AlertLevel,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    name_of,
)
from interop.wire.suites import CipherSuite

if TYPE_CHECKING:
    from interop.errors import DissectError
    from interop.wire.material import Direction

__all__ = ["MAX_LISTED", "SeenAlert", "SeenMessage", "SeenTicket", "SessionFacts"]

MAX_LISTED = 256  # alerts, messages and tickets kept of one session


class SeenAlert(NamedTuple):
    """An alert that could be read."""

    direction: Direction
    level: int
    description: int
    protected: bool

    def __str__(self) -> str:
        level = name_of(AlertLevel, self.level)
        return f"{self.direction.value}: {level} {name_of(AlertDescription, self.description)}"


class SeenMessage(NamedTuple):
    """A handshake message that could be read."""

    direction: Direction
    handshake_type: int

    def __str__(self) -> str:
        return f"{self.direction.value}: {name_of(HandshakeType, self.handshake_type)}"


class SeenTicket(NamedTuple):
    """A session ticket; `pre_shared_key` where it could be derived (TLS 1.3)."""

    ticket: bytes
    pre_shared_key: bytes | None

    def __repr__(self) -> str:
        known = "known" if self.pre_shared_key else "unknown"
        return f"SeenTicket({len(self.ticket)} bytes, pre-shared key {known})"


class SessionFacts:
    """Facts of one session; None where the recording has not told yet.

    `version`, `suite` and `group` are the numbers of the wire, `version_name` and so on their
    names. `forward_secret` speaks of the key exchange: False means that long-term keys open the
    session; None, that it cannot be seen (a TLS 1.2 resumption is as good as the session it
    resumes and as the ticket key). 0-RTT data is never forward secret, whatever this says of the
    rest (RFC 9846 section 2.3). `client_key_shares` and `server_key_shares` map groups to public
    values; group 0 stands for finite-field parameters of a server's own making. `secrets` holds
    what was derived or used, under RFC 9846's names. `damage` is the first thing that could not be
    read; that ends its direction unless it could only have informed.
    """

    def __init__(self) -> None:
        self.version: int | None = None
        self.suite: int | None = None
        self.group: int | None = None
        self.client_random: bytes | None = None
        self.server_random: bytes | None = None
        self.server_name: str | None = None
        self.extended_main_secret: bool | None = None
        self.encrypt_then_mac: bool | None = None
        self.hello_retry_request = False
        self.resumed: bool | None = None
        self.forward_secret: bool | None = None
        self.renegotiations = 0
        self.early_data_offered = False
        self.early_data_accepted: bool | None = None
        self.early_records_skipped = 0
        self.key_updates: dict[Direction, int] = {}
        self.server_certificates: tuple[bytes, ...] = ()
        self.client_certificates: tuple[bytes, ...] = ()
        self.client_key_shares: dict[int, bytes] = {}
        self.server_key_shares: dict[int, bytes] = {}
        self.offered_psk_identities: tuple[bytes, ...] = ()
        self.alerts: list[SeenAlert] = []
        self.handshake_messages: list[SeenMessage] = []
        self.tickets: list[SeenTicket] = []
        self.secrets: dict[str, bytes] = {}
        self.opened_by: str | None = None
        self._opened_early = False
        self.damage: DissectError | None = None

    @property
    def version_name(self) -> str | None:
        """The version's name, as in ``TLS 1.3``."""
        return None if self.version is None else name_of(ProtocolVersion, self.version)

    @property
    def suite_name(self) -> str | None:
        """The suite's IANA name."""
        return None if self.suite is None else name_of(CipherSuite, self.suite)

    @property
    def group_name(self) -> str | None:
        """The group's name as its standard spells it."""
        if self.group == 0:
            return "finite field of the server's own"
        return None if self.group is None else name_of(NamedGroup, self.group)

    def note_damage(self, error: DissectError) -> None:
        """Remember what could not be read; the first counts."""
        if self.damage is None:
            self.damage = error

    def note_message(self, direction: Direction, handshake_type: int) -> None:
        """Remember that a message came by."""
        if len(self.handshake_messages) < MAX_LISTED:
            self.handshake_messages.append(SeenMessage(direction, handshake_type))

    def note_alert(self, alert: SeenAlert) -> None:
        """Remember an alert."""
        if len(self.alerts) < MAX_LISTED:
            self.alerts.append(alert)

    def note_ticket(self, ticket: SeenTicket) -> None:
        """Remember a ticket."""
        if len(self.tickets) < MAX_LISTED:
            self.tickets.append(ticket)

    def note_opened(self, source: str, *, early: bool = False) -> None:
        """Remember by what the first protected record was opened; 0-RTT counts if nothing else."""
        if self.opened_by is None or self._opened_early:
            self.opened_by = source
            self._opened_early = early
