"""``pfs uniqueness``: how it is spelled."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

__all__ = ["commands"]

commands = typer.Typer()


@commands.command("uniqueness", short_help="Count session keys over many handshakes.")
def _uniqueness(  # noqa: PLR0917 - the command line names them all
    handshakes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many; 10,000 unless given, or 500 with a target. At least 60, or 8.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="W",
            min=1,
            max=256,
            help="Processes, one a processor unless given; or connections at a time, 4.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A live server to connect to, instead of our endpoints in memory. The port is 443 "
            "if left out.",
        ),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The name to ask the target for; HOST unless given."),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Check the target's certificate against these; not checked unless given.",
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=1,
            help="How long a target is asked at most, 600 unless given.",
        ),
    ] = None,
    fingerprints: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep a fingerprint of each value here, in Parquet, to be pooled."
        ),
    ] = None,
    pool: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Make no handshakes: count the fingerprints here; may be given more than once.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Count randoms, key shares, secrets, exporters and tickets, and look for any that came twice.

    Exit status: 0 all unique, 1 some repeated, 2 bad input.
    """
    from interop.commands import uniqueness  # noqa: PLC0415 - see the top of interop.cli

    return uniqueness.run(
        handshakes=handshakes,
        workers=workers,
        target=target,
        server_name=server_name,
        ca=ca,
        seconds=seconds,
        fingerprints=fingerprints,
        pool=pool or (),
        as_json=as_json,
    )
