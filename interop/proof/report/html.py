"""The HTML page: one file, no script, nothing fetched, so that it reads the same in ten years."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from interop.census.report import excluded_bits

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
        cells={(cell.session, cell.stolen): cell for cell in report.cells},
        excluded_bits=excluded_bits,
    )
