"""``pfs keys rotate-store|rewrap|rekey|backup|restore``: what is done to a store as a whole."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from certs.commands.arguments import kek_uri, open_store, read_lines, store_address
from certs.commands.output import say
from certs.errors import InvalidInput
from certs.keystore.access import OWNER
from certs.keystore.address import require_vacant
from certs.keystore.audit import MAX_LINE_BYTES
from certs.keystore.kek import open_kek
from certs.keystore.recovery import Restored, check_backup, restore_backup

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["run_backup", "run_rekey", "run_restore", "run_rewrap", "run_rotate_store"]


def run_rotate_store(*, store: str | None, kek: str | None, as_json: bool) -> int:
    """Begin a new term; return 0."""
    with open_store(store, kek) as keys:
        term = keys.rotate_term()
    say({"term": term}, f"term {term} seals from now on; rewrap moves the rest", as_json=as_json)
    return 0


def run_rewrap(*, store: str | None, kek: str | None, as_json: bool) -> int:
    """Move every record to the newest term; return 0."""
    with open_store(store, kek) as keys:
        done = keys.rewrap()
    facts = {"term": done.term, "moved": done.moved, "left": done.left}
    say(facts, f"{done.moved} records moved to term {done.term}", as_json=as_json)
    return 0


def run_rekey(
    *, store: str | None, kek: str | None, to_kek: str, new_kek: bool, as_json: bool
) -> int:
    """Put the store under another KEK, made first with `new_kek`; return 0."""
    # One provider, whatever is done with it: it asks for its passphrase or PIN once.
    with contextlib.closing(open_kek(kek_uri(kek))) as current, open_store(store, current) as keys:
        keys.rekey(current, to_kek, make_new=new_kek)
    say({"kek": to_kek}, f"only {to_kek} opens the store now", as_json=as_json)
    return 0


def run_backup(*, store: str | None, kek: str | None, out: Path, as_json: bool) -> int:
    """Write a backup; return 0."""
    with open_store(store, kek) as keys:
        rows = keys.backup(out)
    say({"out": str(out), "rows": rows}, f"{rows} rows in {out}", as_json=as_json)
    return 0


def run_restore(
    *,
    store: str | None,
    kek: str | None,
    source: Path,
    later_log: Path | None,
    as_of_backup: bool,
    check: bool,
    as_json: bool,
) -> int:
    """Make a store from a backup, or only check the backup; return 0."""
    if check:
        if later_log is not None:
            raise InvalidInput("--check is of the backup alone; --later-log is for restoring it")
        found = check_backup(source, kek_uri(kek))
        say(_facts(found), f"{_told(found)}; all of it opens", as_json=as_json)
        return 0
    address = store_address(store)
    require_vacant(address)  # before a passphrase is asked for
    with contextlib.ExitStack() as files:
        lines = None
        if later_log is not None:
            lines = read_lines(files.enter_context(later_log.open("rb")), MAX_LINE_BYTES)
        found = restore_backup(
            source,
            address,
            kek_uri(kek),
            later_log=lines,
            as_of_backup=as_of_backup,
            principal=os.environ.get("PFS_PRINCIPAL", OWNER),
        )
    say(_facts(found) | {"store": address}, f"made {address} of {_told(found)}", as_json=as_json)
    if not as_json:
        sys.stdout.writelines(f"done again: {each}\n" for each in found.done_again)
        sys.stdout.writelines(f"lost: {each}\n" for each in found.lost)
    return 0


def _told(found: Restored) -> str:
    return (
        f"a backup of {found.created_at:%Y-%m-%d %H:%M:%S} UTC with {found.keys} keys and "
        f"{found.log_rows} rows of the audit log"
    )


def _facts(found: Restored) -> dict[str, object]:
    return {
        "store_id": found.store_id,
        "created_at": found.created_at.isoformat(),
        "rows": found.rows,
        "keys": found.keys,
        "log_rows": found.log_rows,
        "later_rows": found.later_rows,
        "done_again": list(found.done_again),
        "lost": list(found.lost),
    }
