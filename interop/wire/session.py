"""A recorded TLS session, read and (keys permitting) decrypted, in both directions at once.

Theory of operation. `TLSSession.feed` takes bytes of one direction in stream order, chunked
anyhow, and gives back the application data that they release. What the records mean is an engine's
business: `Hellos` first, then that of the negotiated version. What the session keeps to itself:

* *Framing.* Only the last, partial record of a feed is copied; whole records are read in place.
  A direction in the middle of application data takes the opener's bulk path (see `protection`),
  and everything a feed recovers of a direction comes out as one contiguous piece.
* *Waiting.* A record whose keys depend on what the other direction has not told yet is held, with
  all that follows it, up to `buffer_limit_bytes` and to what all sessions may hold together. After
  every feed `_settle` lets go of whichever half may proceed, until neither can. Each turn consumes
  at least one record or message, so it ends.
* *Failure.* `feed` never raises for what the bytes are. A `DissectError` ends its direction (see
  `half`) and is kept in `damage`; what was recovered before it in the same feed is still returned.
  The other direction goes on as far as it can. Nothing that is not authenticated is ever returned:
  a wrong key and a flipped bit both end in `Undecryptable`, not in plaintext. Only what was never
  encrypted (a NULL suite of TLS 1.2) needs no key, and then nothing authenticates it.

*Opened* means that application data was decrypted and authenticated, or, in a session that carried
none that stayed closed, that protected records were. To have a key is not to have opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import proxy

from interop.errors import DissectError
from interop.wire import handshake as hs
from interop.wire.facts import SessionFacts
from interop.wire.half import Half
from interop.wire.held import HeldBytes
from interop.wire.hellos import Hellos
from interop.wire.learned import LearnedSecrets
from interop.wire.material import Direction, KeyMaterial, Undecryptable
from interop.wire.record import HEADER_LENGTH, not_tls_reason, read_header
from interop.wire.registry import ContentType

if TYPE_CHECKING:
    from interop.wire.engine import Engine

__all__ = ["Direction", "KeyMaterial", "TLSSession", "Undecryptable"]

DEFAULT_BUFFER_LIMIT = 4 * 2**20
DEFAULT_HANDSHAKE_LIMIT = hs.DEFAULT_LIMIT

_APPLICATION_DATA = int(ContentType.APPLICATION_DATA)
_CLIENT, _SERVER = Direction.CLIENT_TO_SERVER, Direction.SERVER_TO_CLIENT

Recovered = list[tuple[Direction, bytearray]]


class _Output:
    """Where one read puts its plaintext: one buffer, authenticated up to `position`.

    Plaintext is never longer than the records it came of, so `room_bytes` of a whole view do.
    """

    __slots__ = ("_buffer", "_room_bytes", "position")

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._buffer = bytearray()
        self.position = 0

    def buffer(self) -> bytearray:
        """Make the buffer on first use: most reads during a handshake need none."""
        if not self._buffer:
            self._buffer = bytearray(self._room_bytes)
        return self._buffer

    def append(self, content: bytes) -> None:
        """Add one record's content."""
        end = self.position + len(content)
        self.buffer()[self.position : end] = content
        self.position = end

    def take(self) -> bytearray:
        """Give what is authenticated; the rest of the buffer is cut off."""
        buffer = self._buffer
        del buffer[self.position :]
        return buffer


class TLSSession(SessionFacts):
    """Reads one recorded session; see the module's theory of operation.

    `learned` is shared by the sessions of a capture: what opening one tells about those that
    resume it. So is `held`, which bounds what they hold back all together.
    `buffer_limit_bytes` bounds what one direction may hold back while it waits for the other;
    `handshake_limit_bytes` bounds one handshake message (and, four times over, a whole flight).
    """

    def __init__(
        self,
        keys: KeyMaterial,
        *,
        learned: LearnedSecrets | None = None,
        held: HeldBytes | None = None,
        buffer_limit_bytes: int = DEFAULT_BUFFER_LIMIT,
        handshake_limit_bytes: int = DEFAULT_HANDSHAKE_LIMIT,
    ) -> None:
        super().__init__()
        self._buffer_limit = buffer_limit_bytes
        held = HeldBytes() if held is None else held
        client = Half(_CLIENT, handshake_limit_bytes, held)
        server = Half(_SERVER, handshake_limit_bytes, held)
        # Weak on the way back: a session is freed as soon as it is let go, not at some collection.
        client.other, server.other = proxy(server), proxy(client)
        self._halves = {_CLIENT: client, _SERVER: server}
        self._engine: Engine = Hellos(
            proxy(self),
            keys,
            LearnedSecrets() if learned is None else learned,
            self._halves,
            handshake_limit_bytes=handshake_limit_bytes,
            hand_over=self._go_on_with,
        )
        self.not_tls = False

    def _go_on_with(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        state = "opened" if self.opened else f"closed: {self.undecryptable}"
        return f"<TLSSession {self.version_name} {self.suite_name} {state}>"

    # Feeding

    def feed(
        self, direction: Direction, data: bytes | bytearray | memoryview
    ) -> list[tuple[Direction, bytearray]]:
        """Take the next bytes of a direction; give the application data they release.

        Data of the *other* direction can come out too, where that one had been waiting. Never
        raises for hostile bytes: see `undecryptable` and `damage`.
        """
        recovered: Recovered = []
        half = self._halves[direction]
        if len(half.pending) + len(data) < half.awaited_bytes:
            half.pending += data
        elif not half.ended:
            self._take(half, memoryview(data), recovered)
            if half.waiting_for_type or half.other.waiting_for_type:
                self._settle(recovered)
        return recovered

    def gap(self, direction: Direction) -> list[tuple[Direction, bytearray]]:
        """Note that bytes of a direction are missing: it ends here, nothing is guessed.

        Gives application data of the other direction where that one waited for this one.
        """
        recovered: Recovered = []
        self._halves[direction].end("a gap: bytes of the stream were not captured")
        self._settle(recovered)
        return recovered

    def finish(self) -> list[tuple[Direction, bytearray]]:
        """Note that both streams are over; gives data that a waiting direction still releases."""
        recovered: Recovered = []
        for half in self._halves.values():
            if not half.waiting:
                self._finish_half(half)
        self._settle(recovered)
        for half in self._halves.values():
            self._finish_half(half)
        return recovered

    @staticmethod
    def _finish_half(half: Half) -> None:
        if half.pending and half.recognised:
            half.end("the stream ends within a record")
        half.finish()

    def _settle(self, recovered: Recovered) -> None:
        """Let go of halves that need not wait any more, until none is left."""
        while any(self._resume(half, recovered) for half in self._halves.values()):
            pass

    def _resume(self, half: Half, recovered: Recovered) -> bool:
        """Go on with a half that waits no longer; False where nothing can be done."""
        kind = half.waiting_for_type
        try:
            if kind is None or self._engine.must_wait(half, kind):
                return False
            half.resume()
            self._engine.drain(half)
        except DissectError as error:
            self._damaged(half, error)
        if not half.ended:
            self._take(half, half.take_pending(), recovered)
        return True

    def _take(self, half: Half, view: memoryview, recovered: Recovered) -> None:
        """Take bytes of a half that has not ended; whatever is wrong with them ends it."""
        try:
            if half.waiting_for_type is not None:
                self._hold(half, view)
                return
            if not half.recognised and not self._recognise(half, view):
                return
            if half.pending:
                view = self._complete_record(half, view, recovered)
            if view and not half.ended:
                offset = self._read(half, view, recovered)
                if offset < len(view):
                    self._hold(half, view[offset:])
        except DissectError as error:
            self._damaged(half, error)

    def _hold(self, half: Half, view: memoryview) -> None:
        if half.ended:
            return
        if len(half.pending) + len(view) > self._buffer_limit:
            half.end(
                f"more than {self._buffer_limit} bytes came before what the other direction must "
                "tell first"
            )
            return
        half.hold(view)

    def _damaged(self, half: Half, error: DissectError) -> None:
        self.note_damage(error)
        half.end(f"damaged: {error}")

    def _recognise(self, half: Half, view: memoryview) -> bool:
        """Look at a stream's first bytes; False where there is nothing to read (yet)."""
        prefix = bytes(half.pending) + bytes(view[:HEADER_LENGTH])
        reason = not_tls_reason(prefix[:HEADER_LENGTH])
        if reason is None:
            half.pending += view
            return False
        if reason:
            self.not_tls = reason.startswith("not TLS")
            half.end(reason)
            if half.direction is _CLIENT:
                half.other.end(reason)
            return False
        half.recognised = True
        return True

    def _complete_record(self, half: Half, view: memoryview, recovered: Recovered) -> memoryview:
        """Add what completes the partial record, and no more; give the rest of the view."""
        while half.pending and view:
            wanted = half.awaited_bytes or HEADER_LENGTH
            taken = max(wanted - len(half.pending), 0)
            half.hold(view[:taken])
            view = view[taken:]
            if len(half.pending) < HEADER_LENGTH:
                continue
            # Is it a record at all?
            read_header(memoryview(half.pending), 0, self._engine.record_limit_bytes)
            if len(half.pending) < half.awaited_bytes:
                continue
            record = half.take_pending()
            if not self._read(half, record, recovered):
                half.pending += record
                self._hold(half, view)
                return view[:0]
        return view

    # Records

    def _read(self, half: Half, view: memoryview, recovered: Recovered) -> int:
        """Read whole records; give how many bytes of the view they took."""
        output = _Output(len(view))
        try:
            return self._read_records(half, view, output)
        finally:  # what was recovered before a damaged record counts
            if output.position:
                half.plaintext_bytes += output.position
                recovered.append((half.direction, output.take()))

    def _read_records(self, half: Half, view: memoryview, output: _Output) -> int:
        offset, end = 0, len(view)
        while True:
            if half.opener is not None:
                offset = self._read_run(half, view, offset, output)
            engine = self._engine
            header = read_header(view, offset, engine.record_limit_bytes)
            if header is None or (stop := offset + HEADER_LENGTH + header[2]) > end:
                return offset
            content_type, _, length = header
            if half.alive and engine.must_wait(half, content_type):
                half.waiting_for_type = content_type
                return offset
            if content_type == _APPLICATION_DATA:
                half.encrypted_application_bytes += length
            if half.alive:  # waiting may have ended that
                content = engine.take_record(half, content_type, view[offset:stop])
                if content:
                    output.append(content)
            offset = stop
            if half.waiting_for_type is not None:
                return offset

    @staticmethod
    def _read_run(half: Half, view: memoryview, offset: int, output: _Output) -> int:
        opener = half.opener
        if opener is None:
            return offset
        before = opener.sequence
        with memoryview(output.buffer()) as out:
            stop, output.position = opener.open_run(view, offset, out, output.position)
        records = opener.sequence - before
        half.protected_records_opened += records
        half.encrypted_application_bytes += stop - offset - records * HEADER_LENGTH
        return stop

    # Results

    @property
    def opened(self) -> bool:
        """Whether this session's protected records were decrypted and authenticated.

        True once application data was; in a session that carried none, once every protected
        record was.
        """
        halves = self._halves.values()
        if any(half.plaintext_bytes for half in halves):
            return True
        if any(half.closed is not None or half.skipped_records for half in halves):
            return False
        return any(half.protected_records_opened for half in halves)

    @property
    def undecryptable(self) -> Undecryptable | None:
        """Why something stayed closed; None where nothing did.

        A session can be opened in part and have a reason too: one direction's secret, say.
        """
        for direction in (_SERVER, _CLIENT):
            if (reason := self.undecryptable_in(direction)) is not None:
                return reason
        if not self.opened:
            return Undecryptable("no protected record was seen")
        return None

    def undecryptable_in(self, direction: Direction) -> Undecryptable | None:
        """Why something in one direction stayed closed; None where nothing did."""
        half = self._halves[direction]
        if half.closed is not None:
            return half.closed
        if direction is _CLIENT and self.early_records_skipped:
            return Undecryptable(
                f"{self.early_records_skipped} records of 0-RTT data stayed closed: rejected by "
                "the server, or of an early traffic secret that is not known"
            )
        if not half.skipped_records:
            return None
        if not half.protected_records_opened:
            return Undecryptable(
                f"none of {half.skipped_records} protected records opens with the secrets given"
            )
        if half.skips_application_data:
            return Undecryptable(
                f"{half.skipped_records} protected records precede the first secret in the key log"
            )
        return None  # what was skipped was the handshake

    @property
    def plaintext_bytes(self) -> dict[Direction, int]:
        """Bytes of application data recovered, by direction."""
        return {direction: half.plaintext_bytes for direction, half in self._halves.items()}

    @property
    def encrypted_application_bytes(self) -> dict[Direction, int]:
        """Bytes in protected application_data records, by direction.

        Of fragments, without headers. In TLS 1.3 protected handshake records look the same and
        are counted too.
        """
        return {d: half.encrypted_application_bytes for d, half in self._halves.items()}
