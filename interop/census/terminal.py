"""The report of a census in the terminal: a row a kind of value, then what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from interop.census.report import CensusReport

__all__ = ["print_census"]

_STYLES = {"unique": "bold green", "repeated": "bold red", "invalid": "bold red"}


def print_census(console: Console, report: CensusReport) -> None:
    """Print the counts, what they exclude, what was not tested, and the verdict."""
    console.print(_table(report))
    _line(console, "made under", _listed(report.conditions))
    _line(console, "negotiated", _listed(report.negotiated))
    if report.excluded:
        _line(console, "excluded", report.excluded)
    for text in report.not_tested:
        _line(console, "not tested", text)
    for text in report.notes:
        _line(console, "note", text)
    for text in report.failures:
        _line(console, report.verdict, text, style="bold red")
    values = sum(value.count for value in report.values)
    repeated = sum(value.repeated for value in report.values)
    text = f"{report.handshakes:,} handshakes, {values:,} values, {repeated:,} repeated"
    if report.origin.source != "stored":
        text += f", in {report.seconds:,.1f} s"
    _line(console, "verdict", f"{report.verdict}: {text}", style=_STYLES[report.verdict])


def _line(console: Console, name: str, text: str, *, style: str = "") -> None:
    console.print(Text(f"{name:<11} {text}", style=style), soft_wrap=True)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _table(report: CensusReport) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("value", no_wrap=True)
    for name in ("seen", "distinct", "repeated", "excluded\nup to"):
        table.add_column(name, justify="right", no_wrap=True)
    for value in report.values:
        bits = "" if value.excluded_bits is None else f"2^{value.excluded_bits:.1f}"
        style = "bold red" if value.repeated else ""
        counts = (value.count, value.distinct, value.repeated)
        table.add_row(value.kind, *(f"{count:,}" for count in counts), bits, style=style)
    return table
