"""The report of a comparison: figures and one HTML page."""

from __future__ import annotations

from pathlib import Path

from odenet._files import write_text
from odenet._jobs.compare.figures import figures
from odenet._jobs.compare.page import page
from odenet._jobs.compare.results import Comparison
from odenet._report.figures import write_figures
from odenet._report.html import REPORT


def write_report(results: Comparison, folder: Path) -> list[Path]:
    """Write the figures (PNG and SVG) and `report.html`; finished cells are enough.

    Returns:
        the paths written, the page first.

    Raises:
        FileError: the folder cannot be written to.
    """
    paths, drawings = write_figures(figures(results.rows), folder)
    return [write_text(folder / REPORT, page(results, drawings)), *paths]
