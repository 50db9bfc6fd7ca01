"""Where commands write: reports to stdout, everything else to stderr.

What encodes JSON and what draws tables is imported by who does that: a complaint needs neither.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import msgspec
    from rich.console import Console

__all__ = ["complain", "console", "print_json", "print_json_lists"]


def console() -> Console:
    """Return the console of a command's report: no emphasis but the report's own."""
    from rich.console import Console  # noqa: PLC0415 - see the top

    return Console(highlight=False)


def print_json(value: msgspec.Struct | Mapping[str, object]) -> None:
    """Print a value as indented JSON with a final newline."""
    import msgspec  # noqa: PLC0415 - see the top

    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def print_json_lists(lists: Mapping[str, Iterable[bytes]]) -> None:
    """Print an object of lists as `print_json` would, one encoded item at a time."""
    import msgspec  # noqa: PLC0415 - see the top

    write = sys.stdout.buffer.write
    before_list = b"{\n"
    for name, items in lists.items():
        write(before_list + b" " + msgspec.json.encode(name) + b": [")
        before_list = b",\n"
        before_item, after_items = b"\n  ", b"]"
        for item in items:
            write(before_item + msgspec.json.format(item, indent=1).replace(b"\n", b"\n  "))
            before_item, after_items = b",\n  ", b"\n ]"
        write(after_items)
    write(b"\n}\n")


def complain(message: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"pfs: {' '.join(message.split())}\n")
