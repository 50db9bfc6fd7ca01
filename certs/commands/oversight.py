"""``pfs keys grant|revoke|grants|audit …``: who may do what, and the log of what was done."""

from __future__ import annotations

import itertools
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from certs.commands.arguments import (
    open_store,
    read_bytes,
    read_lines,
    require_absent,
    write_secret,
    writing_to,
)
from certs.commands.output import print_json, say
from certs.errors import AuditLogAltered, BadSignature, InvalidInput
from certs.keystore.audit import (
    MAX_LINE_BYTES,
    MAX_PROOF_BYTES,
    AuditEntry,
    verify_export,
    verify_extension_text,
    verify_inclusion_text,
)
from certs.keystore.notes import MAX_NOTE_BYTES, NoteKey

__all__ = [
    "run_audit_export",
    "run_audit_list",
    "run_audit_verify",
    "run_change_grant",
    "run_grants",
]

_STANDARD = Path("-")
_EXPORT, _INCLUSION, _EXTENSION = b"pfs-audit-export/", b"c2sp.org/tlog-proof@", b"old "


def run_change_grant(
    *,
    store: str | None,
    kek: str | None,
    operation: str,
    principal: str,
    role: str,
    scope: str,
    as_json: bool,
) -> int:
    """Grant a role, or revoke it; return 0."""
    with open_store(store, kek) as keys:
        change = keys.grant if operation == "grant" else keys.revoke
        change(principal, role, scope)
    facts = {"principal": principal, "role": role, "scope": scope, "granted": operation == "grant"}
    verb = "has" if operation == "grant" else "no longer has"
    say(facts, f"{principal} {verb} the role {role} for {scope}", as_json=as_json)
    return 0


def run_grants(*, store: str | None, kek: str | None, as_json: bool) -> int:
    """Print who has which role for what; return 0."""
    with open_store(store, kek) as keys:
        lines = [
            (principal, grant.role.value, grant.scope)
            for principal, granted in keys.grants().items()
            for grant in sorted(granted)
        ]
    if as_json:
        print_json([{"principal": who, "role": role, "scope": what} for who, role, what in lines])
    else:
        sys.stdout.writelines(f"{who}  {role}  {what}\n" for who, role, what in lines)
    return 0


def run_audit_list(
    *, store: str | None, kek: str | None, start: int, limit: int | None, as_json: bool
) -> int:
    """Print the rows of the log, unchecked, a line or a JSON object each; return 0."""
    with open_store(store, kek) as keys:
        rows = itertools.islice(keys.audit_entries(start), limit)
        if as_json:
            print_json([{"row": number, **json.loads(entry.encode())} for number, entry in rows])
        else:
            sys.stdout.writelines(_line(number, entry) for number, entry in rows)
    return 0


def run_audit_verify(
    *,
    store: str | None,
    kek: str | None,
    source: Path | None,
    checkpoint: Path | None,
    key: str | None,
    checkpoint_out: Path | None,
    as_json: bool,
) -> int:
    """Check the store's log, or an export or proof without the store; return 0, or 1 if altered."""
    earlier = None if checkpoint is None else read_bytes(checkpoint, MAX_NOTE_BYTES)
    try:
        if source is not None:
            if checkpoint_out is not None:
                raise InvalidInput("--checkpoint-out is for a store; an export has its own end")
            facts, text = _verified_file(
                source, earlier, None if key is None else NoteKey.parse(key)
            )
        else:
            if key is not None:
                raise InvalidInput("--key is for an export; a store has its log's key itself")
            with open_store(store, kek) as keys:
                note = keys.verify_audit_log(earlier)
                key_of_log = str(keys.audit_log_key())
            if checkpoint_out is not None:
                write_secret(checkpoint_out, note)
            rows = int(note.split(b"\n")[1])
            facts = {"rows": rows, "checkpoint": note.decode(), "key": key_of_log}
            text = (
                f"all {rows} rows are as they were logged, and so are grants and keys\n"
                f"the log's key, for --key where there is no store: {key_of_log}"
            )
    except (AuditLogAltered, BadSignature) as error:
        row = error.row if isinstance(error, AuditLogAltered) else None
        say({"verified": False, "row": row, "reason": str(error)}, str(error), as_json=as_json)
        return 1
    say({"verified": True, **facts}, text, as_json=as_json)
    return 0


def run_audit_export(
    *,
    store: str | None,
    kek: str | None,
    out: Path,
    entry: int | None,
    since: Path | None,
    checkpoint_out: Path | None,
    as_json: bool,
) -> int:
    """Write the log, or the proof of one entry or of an extension; return 0, or 1 if altered."""
    if sum(one is not None for one in (entry, since, checkpoint_out)) > 1:
        raise InvalidInput("give one of --entry, --since and --checkpoint-out")
    require_absent(*(each for each in (out, checkpoint_out) if each is not None))
    earlier = None if since is None else read_bytes(since, MAX_NOTE_BYTES)
    try:
        with open_store(store, kek) as keys, writing_to(out) as write:
            if entry is not None:
                write(keys.prove_audit_entry(entry))
            elif earlier is not None:
                write(keys.prove_audit_extension(earlier))
            else:
                note = keys.export_audit_log(write)
                if checkpoint_out is not None:
                    write_secret(checkpoint_out, note)
    except AuditLogAltered as error:
        sys.stderr.write(f"pfs: {error}\n")
        return 1
    if as_json and out != _STANDARD:
        print_json({"out": str(out)})
    return 0


def _verified_file(
    source: Path, earlier: bytes | None, key: NoteKey | None
) -> tuple[dict[str, object], str]:
    with source.open("rb") as file:
        first = file.readline(MAX_LINE_BYTES)
        file.seek(0)
        if first.startswith(_EXPORT):
            found, checkpoint = verify_export(read_lines(file, MAX_LINE_BYTES), key, earlier)
            known = key is not None or earlier is not None
            facts: dict[str, object] = {
                "rows": checkpoint.size,
                "key": str(found),
                "key_known": key is not None,
            }
            text = f"all {checkpoint.size} rows are as the log of {found} has them"
            if not known:
                text += (
                    "\nbut anybody can make a log with a key of his own: give --key or --checkpoint"
                )
            return facts, text
        proof = file.read(MAX_PROOF_BYTES + 1)
    if key is None:
        raise InvalidInput("a proof is checked under the log's key; give --key")
    if first.startswith(_INCLUSION):
        if earlier is not None:
            raise InvalidInput("the proof of an entry has its own checkpoint; give none")
        entry = verify_inclusion_text(proof, key)
        return {"entry": json.loads(entry.encode())}, f"in the log: {_told(entry)}"
    if not first.startswith(_EXTENSION) or earlier is None:
        raise InvalidInput(
            "that is neither an export nor a proof; a proof of an extension takes --checkpoint, too"
        )
    size = verify_extension_text(proof, key, earlier).size
    return {"rows": size}, f"a log of {size} rows that begins with those of the checkpoint"


def _line(number: int, entry: AuditEntry) -> str:
    return (
        f"{number}  {datetime.fromtimestamp(entry.time, UTC):%Y-%m-%d %H:%M:%S}  {_told(entry)}\n"
    )


def _told(entry: AuditEntry) -> str:
    version = "" if entry.version is None else f"version {entry.version}"
    outcome = f"{entry.outcome} ({entry.reason})" if entry.reason else entry.outcome
    details = [f"{key}={ascii(value)[1:-1]}" for key, value in entry.details.items() if value]
    signed = [] if entry.signed_sha256 is None else [f"sha256={entry.signed_sha256.hex()}"]
    name = ascii(entry.name)[1:-1]  # what was asked for may hold what moves a terminal's cursor
    said = [entry.principal, entry.operation, name, version, outcome, *details, *signed]
    return "  ".join(word for word in said if word)
