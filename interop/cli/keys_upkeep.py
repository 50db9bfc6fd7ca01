"""``pfs keys rotate-store|rewrap|rekey|backup|restore``: how these commands are spelled."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from interop.cli.keys_options import JSON, Kek, Store  # noqa: TC001 - the same

__all__ = ["commands"]

commands = typer.Typer()


@commands.command("rotate-store")
def _rotate_store(store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Begin a new term of the store's own key; what is stored from then on is under it."""
    from certs.commands import upkeep  # noqa: PLC0415 - see the top of interop.cli

    return upkeep.run_rotate_store(store=store, kek=kek, as_json=as_json)


@commands.command("rewrap")
def _rewrap(store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """Move every record to the newest term, while others use the store; run it again if cut off."""
    from certs.commands import upkeep  # noqa: PLC0415 - see the top of interop.cli

    return upkeep.run_rewrap(store=store, kek=kek, as_json=as_json)


@commands.command("rekey")
def _rekey(
    to_kek: Annotated[str, typer.Option(metavar="URI", help="The KEK that is to open the store.")],
    new_kek: Annotated[bool, typer.Option("--new-kek", help="Make that KEK first.")] = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Put the store under another KEK."""
    from certs.commands import upkeep  # noqa: PLC0415 - see the top of interop.cli

    return upkeep.run_rekey(store=store, kek=kek, to_kek=to_kek, new_kek=new_kek, as_json=as_json)


@commands.command("backup")
def _backup(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write all of the store to one encrypted file, while others use the store.

    It opens with the KEK that opens the store now: keep that KEK as long as the backup.
    """
    from certs.commands import upkeep  # noqa: PLC0415 - see the top of interop.cli

    return upkeep.run_backup(store=store, kek=kek, out=out, as_json=as_json)


@commands.command("restore")
def _restore(  # noqa: PLR0917 - the command line names them all
    source: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    later_log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An export of the audit log from after the backup."),
    ] = None,
    as_of_backup: Annotated[
        bool,
        typer.Option(
            "--as-of-backup", help="What was deleted, disabled or revoked since may be back."
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the backup, all of it; make nothing.")
    ] = False,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Make a new store from a backup.

    With --later-log, deletions and revocations that came after the backup are done again, and what
    was made after it is named as lost.
    """
    from certs.commands import upkeep  # noqa: PLC0415 - see the top of interop.cli

    return upkeep.run_restore(
        store=store,
        kek=kek,
        source=source,
        later_log=later_log,
        as_of_backup=as_of_backup,
        check=check,
        as_json=as_json,
    )
