"""One direction of a session: its bytes, where they stand, and what they are opened with.

A `Half` is in one of three states. *Open*: records are read. *Closed*: they cannot be opened, for
a reason; they are still counted, since framing is in the clear. *Ended*: framing itself is lost (a
gap in the capture, or bytes that are no record), and everything after is ignored: a record boundary
is never guessed.

An open half may be *waiting* for the other one: the keys of a record can depend on messages that
the recorder has not delivered yet. Its bytes are then held, up to a bound of its own and one that
all sessions have in common (see `held`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interop.wire.handshake import MessageAssembler
from interop.wire.material import Undecryptable
from interop.wire.record import HEADER_LENGTH

if TYPE_CHECKING:
    from interop.wire.held import HeldBytes
    from interop.wire.material import Direction
    from interop.wire.protection import RecordOpener

__all__ = ["Half"]


class Half:
    """State of one direction. Lengths in bytes."""

    other: Half  # the other direction's

    def __init__(self, direction: Direction, handshake_limit_bytes: int, held: HeldBytes) -> None:
        self.direction = direction
        self._held = held
        self.assembler = MessageAssembler(handshake_limit_bytes)
        self.pending = bytearray()
        self.awaited_bytes = 0  # until `pending` is this long, there is nothing to do
        self.waiting_for_type: int | None = None  # of the record that must wait
        self.recognised = False  # whether its first bytes proved to be TLS
        self.opener: RecordOpener | None = None  # set while application data may come in runs
        self.closed: Undecryptable | None = None
        self.ended = False
        self.alive = True  # neither: it may still tell something
        self.stored_handshake_bytes = 0
        self.stored_handshake_messages = 0
        self.protected_records_opened = 0
        self.skipped_records = 0  # for want of the secret of an earlier epoch
        self.skips_application_data = False
        self.encrypted_application_bytes = 0
        self.plaintext_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether bytes are held until the other direction has told more."""
        return self.waiting_for_type is not None

    def close(self, reason: str) -> None:
        """Stop opening records; the first reason stays."""
        if self.closed is None:
            self.closed = Undecryptable(reason)
        self.alive = False
        self.opener = None

    def hold(self, view: memoryview) -> None:
        """Keep bytes; of a partial record, note how long it will be."""
        self.pending += view
        if self.waiting:
            self._held.note(self)
        elif len(self.pending) >= HEADER_LENGTH:
            length = int.from_bytes(self.pending[HEADER_LENGTH - 2 : HEADER_LENGTH], "big")
            self.awaited_bytes = HEADER_LENGTH + length

    def resume(self) -> None:
        """Wait no longer."""
        self.waiting_for_type = None
        self._held.release(self)

    def take_pending(self) -> memoryview:
        """Give all bytes kept, and keep none."""
        pending, self.pending = self.pending, bytearray()
        self.awaited_bytes = 0
        return memoryview(pending)

    def finish(self) -> None:
        """Note that there is no more of this direction."""
        self._held.release(self)
        self.ended = True
        self.alive = False

    def end(self, reason: str) -> None:
        """Stop reading this direction altogether."""
        self.close(reason)
        self.ended = True
        self.resume()
        self.take_pending()
