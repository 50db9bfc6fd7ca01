"""The audit log in the store's database: appending to it, reading it, and its key.

Appending happens inside a write transaction, which is alone (`Database.write`): any number of
processes make one log without gaps. Each append looks at the end of the log before it adds to it.
The row of `audit_head` holds the tree's frontier, which is enough to continue and which nobody has
to trust: its root must be the one that the last row's signature is over. So a log whose end was cut
off, replaced or edited is not continued, and the operation that was to be recorded fails. What was
edited further back is found by `AuditLog.check`.

The log's Ed25519 key is made with the log and sealed under the store's root key. It signs
checkpoints of this log, named after the store, and nothing else.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import bindparam, func, insert, select, update

from certs.errors import AuditLogAltered, CorruptEnvelope
from certs.keystore.audit import MAX_ENTRY_BYTES, AuditEntry, AuditRow, LogCheck
from certs.keystore.merkle import Frontier, leaf_hash
from certs.keystore.notes import SIGNATURE_BYTES, Checkpoint, NoteKey
from certs.keystore.tables import as_bytes, as_number, audit_head, audit_log, damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection, Row

    from certs.keystore.keyring import Keyring

__all__ = ["AuditLog", "LogEnd"]

_SEED_BYTES = 32
_PAGE = 1000
_ORIGIN = "pfs-key-store/"

# The head with what it should agree with: the highest number, and the signature of the last row.
# (Subqueries, not a join: PostgreSQL takes a table of one row for one of hundreds, and would read
# the whole log to join them.)
_END = select(
    audit_head,
    select(func.max(audit_log.c.number)).scalar_subquery().label("last"),
    select(audit_log.c.signature)
    .where(audit_log.c.number == audit_head.c.size - 1)
    .scalar_subquery()
    .label("signature"),
)
_ADD = insert(audit_log)
_GROW = update(audit_head).values(size=bindparam("new_size"), frontier=bindparam("new_frontier"))


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The end of a log, found genuine in a transaction: its key, frontier and last signature.

    `is_ours`: nobody has written since this process did.
    """

    private_key: Ed25519PrivateKey = field(repr=False)
    frontier: Frontier
    signature: bytes
    is_ours: bool


class AuditLog:
    """The log of one open store."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._opened: tuple[bytes, Ed25519PrivateKey] | None = None
        self._known_end: tuple[int, bytes, bytes] | None = None

    @property
    def was_met(self) -> bool:
        """Whether something was appended here, so that what others append will be noticed."""
        return self._known_end is not None

    @classmethod
    def begin(cls, connection: Connection, keyring: Keyring, entry: AuditEntry) -> None:
        """Make the log's key and a log of one entry, in the transaction that makes the tables."""
        seed = secrets.token_bytes(_SEED_BYTES)
        sealed = keyring.seal_above_terms(
            seed, kind="audit-key", name="", version=1, purpose="sign"
        )
        connection.execute(insert(audit_head).values(singleton=1, size=0, frontier=b"", key=sealed))
        log = cls(keyring)
        log.append(connection, [entry.encode()], log.end(connection))

    def append(self, connection: Connection, lines: Sequence[bytes], end: LogEnd) -> None:
        """Add encoded entries to the end that was found in this write transaction."""
        if not lines:
            return
        private_key, frontier = end.private_key, end.frontier
        rows: list[dict[str, int | bytes]] = []
        signature = b""
        for line in lines:
            number, frontier = frontier.size, frontier.with_leaf(leaf_hash(line))
            checkpoint = Checkpoint(self._origin, frontier.size, frontier.root)
            signature = private_key.sign(checkpoint.text.encode())
            rows.append({"number": number, "entry": line, "signature": signature})
        encoded = frontier.encode()
        connection.execute(_ADD, rows)
        connection.execute(_GROW, {"new_size": frontier.size, "new_frontier": encoded})
        # Should this be undone after all, another end is found next time, and checked.
        self._known_end = (frontier.size, encoded, signature)

    def key(self, connection: Connection) -> NoteKey:
        """Return the public key that checks the log."""
        sealed = connection.execute(select(audit_head.c.key)).scalar()
        if sealed is None:
            raise AuditLogAltered("the head of the audit log was removed", row=None)
        return self._note_key(self._private_key(as_bytes(sealed, "audit_head.key")))

    def checkpoint(self, connection: Connection) -> bytes:
        """Return the log's signed checkpoint; only its end is checked, as before an append."""
        end = self.end(connection)
        text = Checkpoint(self._origin, end.frontier.size, end.frontier.root).text
        return self._note_key(end.private_key).note(text, end.signature)

    def rows(self, connection: Connection, start: int = 0) -> Iterator[AuditRow]:
        """Yield rows in their order, a bounded number in memory."""
        while True:
            page = connection.execute(
                select(audit_log)
                .where(audit_log.c.number >= start)
                .order_by(audit_log.c.number)
                .limit(_PAGE)
            ).all()
            for row in page:
                found = AuditRow(
                    as_number(row.number, "audit_log.number"),
                    as_bytes(row.entry, "audit_log.entry"),
                    as_bytes(row.signature, "audit_log.signature"),
                )
                if len(found.entry) > MAX_ENTRY_BYTES or len(found.signature) > SIGNATURE_BYTES:
                    raise damaged("audit_log.entry")
                if found.number < start:  # a damaged index turns back, and would without end
                    raise damaged("audit_log.number")
                start = found.number + 1
                yield found
            if len(page) < _PAGE:
                return

    def check(
        self,
        connection: Connection,
        earlier: Checkpoint | None,
        each: Callable[[AuditRow, AuditEntry], object],
    ) -> bytes:
        """Check the whole log, call `each` with every row found good; return its signed checkpoint.

        Raises `AuditLogAltered` with the first row that is not as logged, or if the rows disagree
        with the log's head or with the `earlier` checkpoint.
        """
        key = self.key(connection)
        check = LogCheck(key, earlier)
        signature = b""
        for row in self.rows(connection):
            each(row, check.take(row))
            signature = row.signature
        found = check.end()
        head = connection.execute(select(audit_head.c.size)).scalar()
        if head != found.size:
            raise AuditLogAltered(
                f"the audit log ends with row {found.size - 1}, and its head counts {head} rows: "
                "rows were cut off",
                row=found.size,
            )
        return key.note(found.text, signature)

    def end(self, connection: Connection) -> LogEnd:
        """Return the log's end; `AuditLogAltered` if it is not what was logged."""
        head = connection.execute(_END).first()
        if head is None:
            raise AuditLogAltered("the head of the audit log was removed", row=None)
        private_key = self._private_key(as_bytes(head.key, "audit_head.key"))
        try:
            frontier = Frontier.parse(
                as_number(head.size, "audit_head.size"),
                as_bytes(head.frontier, "audit_head.frontier"),
            )
        except ValueError:
            raise _altered_end(None) from None
        is_ours = (frontier.size, head.frontier, head.signature) == self._known_end
        self._require_end(head, private_key, frontier, is_ours=is_ours)
        return LogEnd(private_key, frontier, head.signature or b"", is_ours)

    def _require_end(
        self,
        head: Row[*tuple[object, ...]],
        private_key: Ed25519PrivateKey,
        frontier: Frontier,
        *,
        is_ours: bool,
    ) -> None:
        if frontier.size == 0 and head.last is None:
            return  # the log is being made
        if is_ours:
            if head.last == frontier.size - 1:
                return  # byte for byte what was signed here
            raise _altered_end(frontier.size - 1)
        checkpoint = Checkpoint(self._origin, frontier.size, frontier.root)
        genuine = (
            head.last == frontier.size - 1
            and isinstance(head.signature, bytes)
            and self._note_key(private_key).signed(checkpoint.text, head.signature)
        )
        if not genuine:
            raise _altered_end(frontier.size - 1)

    @property
    def _origin(self) -> str:
        return f"{_ORIGIN}{self._keyring.store_id.hex()}"

    def _note_key(self, private_key: Ed25519PrivateKey) -> NoteKey:
        public_key = private_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return NoteKey(self._origin, public_key)

    def _private_key(self, sealed: bytes) -> Ed25519PrivateKey:
        """Return the log's key, remembered beside the exact bytes that it was sealed in."""
        self._keyring.require_open()
        opened = self._opened
        if opened is None or opened[0] != sealed:
            seed = self._keyring.unseal_above_terms(
                sealed, kind="audit-key", name="", version=1, purpose="sign"
            )
            if len(seed) != _SEED_BYTES:
                raise CorruptEnvelope("the key of the audit log has a wrong length")
            opened = (sealed, Ed25519PrivateKey.from_private_bytes(seed))
            self._opened = opened
        return opened[1]


def _altered_end(row: int | None) -> AuditLogAltered:
    return AuditLogAltered(
        "the end of the audit log is not what was logged, and it is not continued; check it (pfs "
        "keys audit verify) and restore the store from a backup",
        row=row,
    )
