"""Numbers that options take: a float may be negative, infinite or no number at all."""

from __future__ import annotations

import math

import typer

__all__ = ["finite", "positive"]


def positive(value: float | None) -> float | None:
    """Return `value` if it is above zero, or none was given."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g} is not a positive number")
    return value


def finite(value: float) -> float:
    """Return `value` if it is above zero, and not without end."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value:g} is not a number of seconds")
    positive(value)
    return value
