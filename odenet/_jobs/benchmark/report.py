"""The report of a diagram: the figure and one HTML page."""

from __future__ import annotations

from pathlib import Path

from odenet._files import write_text
from odenet._jobs.work_precision.figure import diagram
from odenet._jobs.work_precision.results import COLUMNS, WorkPrecision
from odenet._report.figures import write_figures
from odenet._report.html import REPORT, details, document, figure, header

FIGURE = "work_precision"
_CAPTION = (
    "Error at t1 against field evaluations (left) and seconds (right), a point for each tolerance. Lower and further "
    "left is better. Where backends coincide on the left, they took the same steps."
)


def write_report(results: WorkPrecision, folder: Path) -> list[Path]:
    """Write the figure (PNG and SVG) and `report.html`; finished cells are enough.

    Returns:
        the paths written, the page first.

    Raises:
        FileError: the folder cannot be written to.
    """
    drawn = diagram(results.rows)
    paths, drawings = write_figures({} if drawn is None else {FIGURE: drawn}, folder, dpi=130)
    parts = [figure(svg, _CAPTION) for svg in drawings.values()]
    return [write_text(folder / REPORT, _page(results, parts)), *paths]


def _page(results: WorkPrecision, parts: list[str]) -> str:
    plan = results.plan
    lead = f"{', '.join(plan.backends)} · {', '.join(solver.label for solver in plan.solvers)}"
    reached = sum(row.ok for row in results.rows)
    return document(
        "odenet benchmark work-precision",
        [
            header("Work and precision", (lead, f"{reached} of {len(plan.cells())} cells reached t1")),
            *parts,
            *details(results.rows, COLUMNS, "dopri5 torch 1e-06 …", plan.to_json(), results.machine),
        ],
    )
