"""Where commands write: reports to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["complain", "console", "print_json"]


def console() -> Console:
    """Return the console of a command's report: no emphasis but the report's own."""
    return Console(highlight=False)


def print_json(value: msgspec.Struct | Mapping[str, object]) -> None:
    """Print a value as indented JSON with a final newline."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def complain(message: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"pfs: {' '.join(message.split())}\n")
