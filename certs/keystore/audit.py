"""What the audit log says and how it is checked, with nothing but bytes.

Theory of operation
-------------------
An entry is one line of canonical JSON: who did what to which key, and what came of it. Entry *i* is
leaf *i* of a Merkle tree (`certs.keystore.merkle`), and beside it stands the log's signature over
the checkpoint of the first *i* + 1 entries (`certs.keystore.notes`). Three things follow:

- The last signature is the log's checkpoint, ready to be kept elsewhere.
- A signature covers all that was before it. So the first row whose signature does not verify is
  where somebody edited, inserted, removed or reordered: the row is *located*, not only the log
  found bad. Rows after it cannot be made good again without the log's key.
- Cutting rows off the end leaves a log that is genuine and short. Only a checkpoint from outside
  shows that, and the same checkpoint shows that an older copy of the store was put back: `LogCheck`
  takes one, and the log must still hold those entries with that root.

One pass in constant memory checks all of it.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from certs.errors import AuditLogAltered, BadSignature, InvalidInput
from certs.keystore.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    tree_root,
)
from certs.keystore.notes import SIGNATURE_BYTES, Checkpoint, NoteKey, decode_base64

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = [
    "MAX_ENTRY_BYTES",
    "MAX_LINE_BYTES",
    "MAX_PROOF_BYTES",
    "AuditEntry",
    "AuditRow",
    "LogCheck",
    "LogLeaves",
    "export_header",
    "export_line",
    "verify_export",
    "verify_extension_text",
    "verify_inclusion_text",
]

MAX_ENTRY_BYTES = 8192
MAX_LINE_BYTES = MAX_ENTRY_BYTES + 128
MAX_PROOF_BYTES = 65_536
OUTCOMES = frozenset({"done", "refused", "failed"})

_EXPORT = "pfs-audit-export/1"
_INCLUSION = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")
_SHOWN_NAME = 128
_SHOWN_DETAIL = 512
_ENCODED_SIGNATURE = (SIGNATURE_BYTES + 2) // 3 * 4


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One operation. `outcome` is ``done``, ``refused`` or ``failed`` (then `reason` says how).

    `time` is in seconds since 1970. `signed_sha256` is of what was signed. `details` are public
    facts: a certificate's serial number and subject, whom a grant is for.
    """

    time: int
    principal: str
    operation: str
    name: str
    outcome: str
    version: int | None = None
    reason: str = ""
    signed_sha256: bytes | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the line that is logged, without a newline: at most 8,192 ASCII bytes."""
        details = {key: str(value)[:_SHOWN_DETAIL] for key, value in self.details.items()}
        fields = {
            "time": self.time,
            "principal": self.principal,
            "operation": self.operation,
            "name": self.name[:_SHOWN_NAME],  # what was asked for need not be a name
            "version": self.version,
            "outcome": self.outcome,
            "reason": self.reason,
            "signed_sha256": None if self.signed_sha256 is None else self.signed_sha256.hex(),
            "details": details,
        }
        said = {key: value for key, value in fields.items() if value not in (None, "", {})}
        line = json.dumps(said, separators=(",", ":"), sort_keys=True).encode()
        if len(line) > MAX_ENTRY_BYTES:
            raise InvalidInput(f"an entry of the audit log has at most {MAX_ENTRY_BYTES} bytes")
        return line

    @classmethod
    def parse(cls, line: bytes) -> AuditEntry:
        """Read a line that was logged; raise `InvalidInput` for what `encode` never writes."""
        try:
            said = json.loads(line)
            signed = said.get("signed_sha256")
            entry = cls(
                time=int(said["time"]),
                principal=str(said["principal"]),
                operation=str(said["operation"]),
                name=str(said.get("name", "")),
                outcome=str(said["outcome"]),
                version=said.get("version"),
                reason=str(said.get("reason", "")),
                signed_sha256=None if signed is None else bytes.fromhex(signed),
                details={str(key): str(value) for key, value in said.get("details", {}).items()},
            )
            same = entry.encode() == line and entry.outcome in OUTCOMES
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InvalidInput("that is no entry of an audit log") from None
        if not same:
            raise InvalidInput("that is no entry of an audit log, which is canonical JSON")
        return entry


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry's bytes at its place, with the log's signature up to and including it."""

    number: int
    entry: bytes
    signature: bytes


class LogCheck:
    """Checks a log row by row from its first; holds the frontier of the tree and nothing else.

    `earlier` is a checkpoint that the log must still contain.
    """

    def __init__(self, key: NoteKey, earlier: Checkpoint | None = None) -> None:
        self._key = key
        self._earlier = earlier
        self._frontier = Frontier()

    def take(self, row: AuditRow) -> AuditEntry:
        """Check the next row; raise `AuditLogAltered` with its number if it is not as logged."""
        number = self._frontier.size
        if row.number != number:
            raise AuditLogAltered(f"row {number} of the audit log is missing", row=number)
        frontier = self._frontier.with_leaf(leaf_hash(row.entry))
        checkpoint = Checkpoint(self._key.name, frontier.size, frontier.root)
        if not self._key.signed(checkpoint.text, row.signature):
            raise AuditLogAltered(
                f"row {number} of the audit log is not what was logged there: it was edited, put "
                "in or moved, or a row that stood there was removed",
                row=number,
            )
        entry = AuditEntry.parse(row.entry)
        self._frontier = frontier
        if self._earlier is not None and self._earlier.size == frontier.size:
            self._require_earlier(self._earlier, frontier.root)
        return entry

    def end(self) -> Checkpoint:
        """Return the checkpoint of the whole; raise `AuditLogAltered` if it ends too early."""
        size = self._frontier.size
        if size == 0:
            raise AuditLogAltered("the audit log is empty, which none ever is", row=0)
        if self._earlier is not None and self._earlier.size > size:
            raise AuditLogAltered(
                f"the audit log ends with row {size - 1}, and the checkpoint saw row "
                f"{self._earlier.size - 1}: rows were cut off, or an older copy of the store was "
                "put back",
                row=size,
            )
        return Checkpoint(self._key.name, size, self._frontier.root)

    @staticmethod
    def _require_earlier(earlier: Checkpoint, root: bytes) -> None:
        if earlier.root != root:
            raise AuditLogAltered(
                f"the first {earlier.size} rows of the audit log are not those of the checkpoint: "
                "an older copy of the store was put back, and went its own way",
                row=earlier.size - 1,
            )


def export_header(key: NoteKey) -> bytes:
    """Return the first lines of an export: the format and the log's key."""
    return f"{_EXPORT}\n{key}\n\n".encode()


def export_line(row: AuditRow) -> bytes:
    """Return a row's line of an export: the signature in base64, a blank, the entry."""
    return base64.b64encode(row.signature) + b" " + row.entry + b"\n"


def verify_export(
    lines: Iterable[bytes],
    key: NoteKey | None = None,
    earlier: bytes | None = None,
    each: Callable[[AuditRow, AuditEntry], object] = lambda _row, _entry: None,
) -> tuple[NoteKey, Checkpoint]:
    """Check an export, line by line with their newlines; return its key and its checkpoint.

    `key` is the log's, from elsewhere; without it the export is only found consistent with the key
    that it names itself. `earlier` is a signed checkpoint. `each` is called with every row found
    good. Raises `AuditLogAltered` with the row, `InvalidInput` for what is no export,
    `BadSignature` for another log's key or checkpoint.
    """
    source = iter(lines)
    if next(source, b"") != f"{_EXPORT}\n".encode():
        raise InvalidInput("that is no export of an audit log")
    named = NoteKey.parse(next(source, b"").decode("ascii", "replace").removesuffix("\n"))
    if key is not None and key != named:
        raise BadSignature(f"the export is of another log, {named}")
    if next(source, b"") != b"\n":
        raise InvalidInput("that is no export of an audit log")
    check = LogCheck(named, None if earlier is None else Checkpoint.open(earlier, named))
    for number, line in enumerate(source):
        encoded, entry = line[:_ENCODED_SIGNATURE], line[_ENCODED_SIGNATURE + 1 : -1]
        signature = decode_base64(encoded.decode("ascii", "replace"))
        framed = line[_ENCODED_SIGNATURE : _ENCODED_SIGNATURE + 1] + line[-1:] == b" \n"
        if signature is None or not framed or len(line) > MAX_LINE_BYTES:
            raise AuditLogAltered(f"row {number} of the export is malformed", row=number)
        row = AuditRow(number, entry, signature)
        each(row, check.take(row))
    return named, check.end()


class LogLeaves:
    """What proofs about a log are made of: each row's hash, and the last row's signature.

    `take` is called with every row, checked, in its order; `kept` is the one whose entry is shown.
    """

    def __init__(self, kept: int | None = None) -> None:
        self._kept = kept
        self._leaves: list[bytes] = []
        self._signature = b""
        self._entry = b""

    def take(self, row: AuditRow) -> None:
        """Take the next row."""
        self._leaves.append(leaf_hash(row.entry))
        self._signature = row.signature
        if row.number == self._kept:
            self._entry = row.entry

    def inclusion_text(self, key: NoteKey) -> bytes:
        """Return a proof that the kept entry is in the log, with the entry (C2SP tlog-proof)."""
        number, size = self._kept, len(self._leaves)
        if number is None or not 0 <= number < size:
            raise InvalidInput(f"the audit log has rows 0 to {size - 1}, not {number}")
        proof = inclusion_proof(self._leaves, number)
        extra = base64.b64encode(self._entry).decode()
        head = f"{_INCLUSION}\nextra {extra}\nindex {number}\n"
        return head.encode() + _proof_lines(proof) + b"\n" + self._note(key)

    def extension_text(self, earlier: Checkpoint, key: NoteKey) -> bytes:
        """Return a proof that the log extends an earlier checkpoint (C2SP tlog-witness's request).

        `AuditLogAltered` if it does not.
        """
        leaves, size = self._leaves, earlier.size
        if not 1 <= size <= len(leaves) or tree_root(leaves[:size]) != earlier.root:
            raise AuditLogAltered("the log does not extend that checkpoint", row=None)
        proof = consistency_proof(leaves, size)
        return f"old {size}\n".encode() + _proof_lines(proof) + b"\n" + self._note(key)

    def _note(self, key: NoteKey) -> bytes:
        checkpoint = Checkpoint(key.name, len(self._leaves), tree_root(self._leaves))
        return key.note(checkpoint.text, self._signature)


def verify_inclusion_text(text: bytes, key: NoteKey) -> AuditEntry:
    """Return the entry that the proof shows to be in the log of this key.

    Raises `InvalidInput` for what is no such proof, `BadSignature` if it proves nothing.
    """
    head, proof, checkpoint = _proof_parts(text, key)
    if len(head) == len(("format", "extra", "index")) and head[0] == _INCLUSION:
        entry = decode_base64(head[1].removeprefix("extra "))
        number = _INDEX.fullmatch(head[2])
        if entry is not None and number is not None:
            index = int(number[1])
            if is_included(leaf_hash(entry), index, checkpoint.size, proof, checkpoint.root):
                return AuditEntry.parse(entry)
            raise BadSignature("the proof does not lead from the entry to the checkpoint's root")
    raise InvalidInput("that is no proof of an entry")


def verify_extension_text(text: bytes, key: NoteKey, earlier: bytes) -> Checkpoint:
    """Return the newer checkpoint, shown to extend the signed `earlier` one.

    Raises `InvalidInput` for what is no such proof, `BadSignature` if it proves nothing.
    """
    old = Checkpoint.open(earlier, key)
    head, proof, checkpoint = _proof_parts(text, key)
    if head != [f"old {old.size}"]:
        raise InvalidInput(f"that is no proof about a log of {old.size} rows")
    if not is_consistent(old.size, checkpoint.size, old.root, checkpoint.root, proof):
        raise BadSignature("the proof does not lead from the earlier checkpoint to the newer one")
    return checkpoint


def _proof_lines(proof: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(one) + b"\n" for one in proof)


def _proof_parts(text: bytes, key: NoteKey) -> tuple[list[str], list[bytes], Checkpoint]:
    """Split a proof into the lines that name it, its hashes, and its checkpoint."""
    upper, blank, note = text[: MAX_PROOF_BYTES + 1].partition(b"\n\n")
    if not blank or len(text) > MAX_PROOF_BYTES:
        raise InvalidInput("that is no proof of a log")
    lines = upper.decode("ascii", "replace").split("\n")
    head = [line for line in lines if " " in line or line == _INCLUSION]
    hashes = [decode_base64(line) for line in lines[len(head) :]]
    if lines[: len(head)] != head or None in hashes:
        raise InvalidInput("a line of the proof is malformed")
    checkpoint = Checkpoint.open(note, key)
    return head, [one for one in hashes if one is not None], checkpoint
