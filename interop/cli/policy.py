"""``pfs policy``: how its commands are spelled."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["commands"]

commands = typer.Typer(help="Look at the policies that endpoints can be held to.")

_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="A policy's name, or `default`.")]


@commands.command("list")
def _list(as_json: _JSON = False) -> int:
    """List the policies. A dated name never changes its meaning; `default` moves."""
    from transport.commands import policy  # noqa: PLC0415 - see the top of interop.cli

    return policy.run_list(as_json=as_json)


@commands.command("show")
def _show(name: _Name, as_json: _JSON = False) -> int:
    """Show what a policy admits, most preferred first."""
    from transport.commands import policy  # noqa: PLC0415 - see the top of interop.cli

    return policy.run_show(name=name, as_json=as_json)


@commands.command("diff")
def _diff(one: _Name, other: _Name, as_json: _JSON = False) -> int:
    """Show what changes from one policy to another.

    Exit status: 0 when they admit the same, 1 when they differ, 2 bad input.
    """
    from transport.commands import policy  # noqa: PLC0415 - see the top of interop.cli

    return policy.run_diff(one=one, other=other, as_json=as_json)
