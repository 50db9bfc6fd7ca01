"""The log's entries, its check row by row, and its proofs: whatever is altered is located."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import AuditLogAltered, BadSignature, CertsError, InvalidInput
from certs.keystore.audit import (
    AuditEntry,
    AuditRow,
    LogCheck,
    LogLeaves,
    export_header,
    export_line,
    verify_export,
    verify_extension_text,
    verify_inclusion_text,
)
from certs.keystore.merkle import Frontier, leaf_hash
from certs.keystore.notes import Checkpoint, NoteKey

if TYPE_CHECKING:
    from collections.abc import Callable

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = NoteKey("log", PRIVATE.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
FULL = AuditEntry(
    time=1,
    principal="owner",
    operation="sign",
    name="ca/root",
    outcome="failed",
    version=3,
    reason="KeyDisabled",
    signed_sha256=bytes(32),
    details={"serial": "1f", "subject": "CN=\N{LATIN SMALL LETTER U WITH DIAERESIS}"},
)


def log(names: list[str], private_key: Ed25519PrivateKey = PRIVATE) -> list[AuditRow]:
    frontier, rows = Frontier(), []
    for number, name in enumerate(names):
        entry = AuditEntry(number, "owner", "show", name, "done").encode()
        frontier = frontier.with_leaf(leaf_hash(entry))
        text = Checkpoint("log", frontier.size, frontier.root).text
        rows.append(AuditRow(number, entry, private_key.sign(text.encode())))
    return rows


ROWS = log([f"k{number}" for number in range(12)])


def checkpoint(rows: list[AuditRow]) -> Checkpoint:
    check = LogCheck(KEY)
    for row in rows:
        check.take(row)
    return check.end()


def note(rows: list[AuditRow]) -> bytes:
    return KEY.note(checkpoint(rows).text, rows[-1].signature)


def export(rows: list[AuditRow]) -> bytes:
    return export_header(KEY) + b"".join(map(export_line, rows))


def verify(content: bytes, key: NoteKey | None = KEY, earlier: bytes | None = None) -> Checkpoint:
    return verify_export(io.BytesIO(content), key, earlier)[1]


def test_an_entry_is_read_as_written() -> None:
    assert AuditEntry.parse(FULL.encode()) == FULL
    assert FULL.encode() == (
        b'{"details":{"serial":"1f","subject":"CN=\\u00fc"},"name":"ca/root","operation":"sign",'
        b'"outcome":"failed","principal":"owner","reason":"KeyDisabled","signed_sha256":"'
        + b"00" * 32
        + b'","time":1,"version":3}'
    )


@given(
    st.text(max_size=300), st.dictionaries(st.text(max_size=9), st.text(max_size=600), max_size=3)
)
def test_an_entry_is_one_bounded_line_whatever_was_asked_for(
    name: str, details: dict[str, str]
) -> None:
    line = AuditEntry(1, "owner", "show", name, "failed", reason="X", details=details).encode()
    assert line.isascii()
    assert b"\n" not in line
    assert AuditEntry.parse(line).name == name[:128]


def inclusion_text(rows: list[AuditRow], number: int, key: NoteKey) -> bytes:
    leaves = LogLeaves(number)
    for row in rows:
        leaves.take(row)
    return leaves.inclusion_text(key)


def extension_text(rows: list[AuditRow], earlier: Checkpoint, key: NoteKey) -> bytes:
    leaves = LogLeaves()
    for row in rows:
        leaves.take(row)
    return leaves.extension_text(earlier, key)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"[" * 100_000,
        b" " + FULL.encode(),
        FULL.encode().replace(b"failed", b"fine"),
        FULL.encode().replace(b'"time":1', b'"time":"1"'),
    ],
)
def test_what_is_no_entry_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        AuditEntry.parse(line)


def renumbered(rows: list[AuditRow]) -> list[AuditRow]:
    return [AuditRow(number, row.entry, row.signature) for number, row in enumerate(rows)]


def edited(at: int) -> list[AuditRow]:
    entry = ROWS[at].entry.replace(b"owner", b"other")
    return [*ROWS[:at], AuditRow(at, entry, ROWS[at].signature), *ROWS[at + 1 :]]


ALTERED: dict[str, Callable[[int], list[AuditRow]]] = {
    "deleted": lambda at: ROWS[:at] + ROWS[at + 1 :],
    "deleted and renumbered": lambda at: renumbered(ROWS[:at] + ROWS[at + 1 :]),
    "edited": edited,
    "signature edited": lambda at: [
        *ROWS[:at],
        AuditRow(at, ROWS[at].entry, bytes(64)),
        *ROWS[at + 1 :],
    ],
    "swapped with the next": lambda at: renumbered(
        [*ROWS[:at], ROWS[at + 1], ROWS[at], *ROWS[at + 2 :]]
    ),
    "doubled": lambda at: renumbered([*ROWS[: at + 1], *ROWS[at:]]),
    "written anew with another key": lambda at: [
        *ROWS[:at],
        *log([f"k{n}" for n in range(12)], Ed25519PrivateKey.generate())[at:],
    ],
}


@pytest.mark.parametrize("how", ALTERED)
def test_whatever_is_altered_is_found_at_its_row(how: str) -> None:
    assert checkpoint(ROWS).size == 12
    assert verify(export(ROWS)).size == 12
    for at in range(11):
        found = at + 1 if how == "doubled" else at
        with pytest.raises(AuditLogAltered, match=f"row {found} ") as caught:
            checkpoint(ALTERED[how](at))
        assert caught.value.row == found
        with pytest.raises(AuditLogAltered) as caught:
            verify(export(ALTERED[how](at)))
        assert caught.value.row == found


def test_rows_cut_off_are_found_by_a_checkpoint_from_elsewhere() -> None:
    kept = note(ROWS[:9])
    for size in range(1, 13):
        content = export(ROWS[:size])
        assert verify(content).size == size  # by itself it is genuine, and short
        if size >= 9:
            assert verify(content, earlier=kept).size == size
            continue
        with pytest.raises(AuditLogAltered, match=f"ends with row {size - 1}, .* row 8") as caught:
            verify(content, earlier=kept)
        assert caught.value.row == size
    with pytest.raises(AuditLogAltered, match="empty"):
        verify(export([]))


def test_an_older_copy_that_went_its_own_way_is_found() -> None:
    other = log([*[f"k{number}" for number in range(6)], *["forked"] * 6])
    assert verify(export(other), earlier=note(ROWS[:6])).size == 12
    with pytest.raises(AuditLogAltered, match="went its own way"):
        verify(export(other), earlier=note(ROWS[:7]))


def test_an_export_of_another_log_is_not_taken_for_this_one() -> None:
    other = NoteKey("log", bytes(31) + b"\1")
    assert verify(export(ROWS), None).size == 12
    with pytest.raises(BadSignature, match="another log"):
        verify(export(ROWS), other)


def test_no_changed_byte_of_an_export_passes() -> None:
    content = export(ROWS[:3])
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        with pytest.raises(CertsError):
            verify(bytes(changed))


def test_a_line_without_end_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(AuditLogAltered, match="malformed"):
        verify(export(ROWS[:1]) + export_line(ROWS[1])[:-1] + b" " * 100_000 + b"\n")


def test_an_entry_is_proved_without_the_others() -> None:
    for number in range(12):
        proof = inclusion_text(ROWS, number, KEY)
        assert verify_inclusion_text(proof, KEY).name == f"k{number}"
        assert proof.startswith(b"c2sp.org/tlog-proof@v1\nextra ")
        for other in {0, 5, 11} - {number}:
            moved = proof.replace(f"index {number}\n".encode(), f"index {other}\n".encode())
            with pytest.raises(BadSignature):
                verify_inclusion_text(moved, KEY)
    with pytest.raises(InvalidInput, match="rows 0 to 11"):
        inclusion_text(ROWS, 12, KEY)


def test_an_extension_is_proved_without_rows() -> None:
    for size in range(1, 13):
        earlier = note(ROWS[:size])
        proof = extension_text(ROWS, checkpoint(ROWS[:size]), KEY)
        assert verify_extension_text(proof, KEY, earlier).size == 12
        other = note(log([f"x{number}" for number in range(size)]))
        with pytest.raises(BadSignature):
            verify_extension_text(proof, KEY, other)
        with pytest.raises(AuditLogAltered):
            extension_text(log(["x"] * 12), checkpoint(ROWS[:size]), KEY)


@pytest.mark.parametrize(
    "make",
    [
        lambda: inclusion_text(ROWS, 4, KEY),
        lambda: extension_text(ROWS, checkpoint(ROWS[:5]), KEY),
    ],
    ids=["inclusion", "extension"],
)
def test_no_changed_byte_of_a_proof_passes(make: Callable[[], bytes]) -> None:
    proof = make()
    for position in range(len(proof)):
        changed = bytearray(proof)
        changed[position] ^= 1
        for attempt in (
            lambda text=bytes(changed): verify_inclusion_text(text, KEY),
            lambda text=bytes(changed): verify_extension_text(text, KEY, note(ROWS[:5])),
        ):
            with pytest.raises(CertsError):
                attempt()
