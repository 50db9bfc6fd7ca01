"""The HTML page: one file, no script, nothing fetched, so that it reads the same in ten years."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from interop.census.report import excluded_bits
from interop.proof.report.stories import second_opinion_line, stories_of

if TYPE_CHECKING:
    from interop.proof.model import Report

__all__ = ["render_html"]


def render_html(report: Report) -> str:
    """Return the report as an HTML page."""
    environment = Environment(
        loader=PackageLoader("interop.proof", "report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        stories=stories_of(report),
        controls=sum(cell.control for cell in report.cells),
        controls_opened=sum(cell.control and cell.whole for cell in report.cells),
        second_opinion=second_opinion_line(report),
        excluded_bits=excluded_bits,
    )
