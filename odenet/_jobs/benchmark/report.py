"""What a diagram leaves behind for people: the figure and one HTML page."""

from __future__ import annotations

from pathlib import Path

from odenet._files import write_atomically, write_text
from odenet._jobs.work_precision.figure import diagram
from odenet._jobs.work_precision.results import WorkPrecision
from odenet._jobs.work_precision.row import COLUMNS
from odenet._report.figures import render
from odenet._report.html import REPORT, cells, document, facts, figure, header, said, section

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
    paths, parts = [], []
    if drawn is not None:
        svg = render(drawn, "svg")
        parts.append(figure(svg.decode(), _CAPTION))
        for suffix, data in (("png", render(drawn, "png", 130)), ("svg", svg)):
            paths.append(write_atomically(folder / f"{FIGURE}.{suffix}", lambda file, data=data: file.write(data)))
    return [write_text(folder / REPORT, _page(results, parts)), *paths]


def _page(results: WorkPrecision, parts: list[str]) -> str:
    plan = results.plan
    lead = f"{', '.join(plan.backends)} · {', '.join(each.label for each in plan.solvers)}"
    reached = sum(row.ok for row in results.rows)
    return document(
        "odenet benchmark work-precision",
        [
            header("Work and precision", (lead, f"{reached} of {len(plan.cells())} cells reached t1")),
            *parts,
            section(f"All {len(results.rows)} cells", cells(results.rows, COLUMNS, "dopri5 torch 1e-06 …")),
            section("Plan", facts({key: said(value) for key, value in plan.to_json().items()})),
            section("Machine", facts(results.machine)),
            section("What each column means", facts(COLUMNS)),
        ],
    )
