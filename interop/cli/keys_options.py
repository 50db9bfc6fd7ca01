"""The options that commands on a key store share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["JSON", "STANDARD", "Kek", "Store"]

STANDARD = Path("-")

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="The store: a path, or postgresql://user@host/database; else $PFS_STORE.",
    ),
]
Kek = Annotated[
    str | None,
    typer.Option("--kek", metavar="URI", help="Its KEK, as in file:/path; else $PFS_KEK."),
]
JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
