"""How commands on keys say what came of it: a line for people, or JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["print_json", "say"]


def say(facts: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print the facts as JSON, or the text as a line."""
    if as_json:
        print_json(facts)
    else:
        sys.stdout.write(f"{text}\n")


def print_json(value: object) -> None:
    """Print a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")
