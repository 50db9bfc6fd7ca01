"""``pfs keys grant|revoke|grants|audit``: how these commands are spelled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interop.cli.keys_options import JSON, STANDARD, Kek, Store

__all__ = ["commands"]

commands = typer.Typer()
_MOST = 2**62
_audit = typer.Typer(help="Read, check and export the log of every operation.")
commands.add_typer(_audit, name="audit")


_Principal = Annotated[
    str, typer.Argument(metavar="PRINCIPAL", help="owner, uri:URI, dns:NAME or user:NAME.")
]
_Role = Annotated[
    str,
    typer.Argument(
        metavar="ROLE",
        help="crypto-officer, crypto-user, certificate-officer, purge-officer, auditor or reader.",
    ),
]
_Scope = Annotated[
    str, typer.Argument(metavar="SCOPE", help="A name and what is below it; '*' for everything.")
]
_CheckpointOut = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A new file for the log's checkpoint, to keep elsewhere."),
]


def _change(
    operation: str,
    words: tuple[str, str, str],
    store: str | None,
    kek: str | None,
    *,
    as_json: bool,
) -> int:
    from certs.commands import oversight  # noqa: PLC0415 - see the top of interop.cli

    principal, role, scope = words
    return oversight.run_change_grant(
        store=store,
        kek=kek,
        operation=operation,
        principal=principal,
        role=role,
        scope=scope,
        as_json=as_json,
    )


@commands.command("grant")
def _grant(  # noqa: PLR0917 - the command line names them all
    principal: _Principal,
    role: _Role,
    scope: _Scope,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Let somebody play a role. PFS_PRINCIPAL says on whose behalf pfs acts; else the owner's."""
    return _change("grant", (principal, role, scope), store, kek, as_json=as_json)


@commands.command("revoke")
def _revoke(  # noqa: PLR0917 - the command line names them all
    principal: _Principal,
    role: _Role,
    scope: _Scope,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Take a grant away."""
    return _change("revoke", (principal, role, scope), store, kek, as_json=as_json)


@commands.command("grants")
def _grants(store: Store = None, kek: Kek = None, as_json: JSON = False) -> int:
    """List who has which role for what."""
    from certs.commands import oversight  # noqa: PLC0415 - see the top of interop.cli

    return oversight.run_grants(store=store, kek=kek, as_json=as_json)


@_audit.command("list")
def _list(
    start: Annotated[
        int, typer.Option("--from", metavar="N", min=0, max=_MOST, help="The first row.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=_MOST, help="How many; else all.")
    ] = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """List what was done, by whom, to what, and what came of it."""
    from certs.commands import oversight  # noqa: PLC0415 - see the top of interop.cli

    return oversight.run_audit_list(store=store, kek=kek, start=start, limit=limit, as_json=as_json)


@_audit.command("verify")
def _verify(  # noqa: PLR0917 - the command line names them all
    source: Annotated[
        Path | None,
        typer.Option("--in", metavar="FILE", help="An export or a proof, instead of a store."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="One from before, which the log must still hold."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The log's key; verify tells a store's.")
    ] = None,
    checkpoint_out: _CheckpointOut = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Check the whole log; what was deleted, edited, moved or cut off is named by its row.

    Exit status: 0 all is as logged, 1 it is not, 2 bad input.
    """
    from certs.commands import oversight  # noqa: PLC0415 - see the top of interop.cli

    return oversight.run_audit_verify(
        store=store,
        kek=kek,
        source=source,
        checkpoint=checkpoint,
        key=key,
        checkpoint_out=checkpoint_out,
        as_json=as_json,
    )


@_audit.command("export")
def _export(  # noqa: PLR0917 - the command line names them all
    out: Annotated[Path, typer.Option(metavar="FILE", help="A new file; - for stdout.")] = STANDARD,
    entry: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only row N, with the proof that it is in the log."),
    ] = None,
    since: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only the proof that the log extends this checkpoint."),
    ] = None,
    checkpoint_out: _CheckpointOut = None,
    store: Store = None,
    kek: Kek = None,
    as_json: JSON = False,
) -> int:
    """Write the log, or a proof from it, to be checked elsewhere without the store."""
    from certs.commands import oversight  # noqa: PLC0415 - see the top of interop.cli

    return oversight.run_audit_export(
        store=store,
        kek=kek,
        out=out,
        entry=entry,
        since=since,
        checkpoint_out=checkpoint_out,
        as_json=as_json,
    )
