"""The diagram: error against field evaluations and against seconds, a row of panels for each problem."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from odenet._jobs.work_precision.results import AdaptiveSolve
from odenet._report.figures import canvas
from odenet._report.style import GREY, INK, RC, SPARE, markers
from odenet._report.units import seconds
from odenet._test_problems.named import PROBLEMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", *SPARE)
_PANELS: tuple[tuple[str, Callable[[AdaptiveSolve], float | None], Callable[[float], str]], ...] = (
    ("field evaluations", lambda row: row.f_evaluations, lambda value: f"{value:,.0f}"),
    ("time of a solve (median, compiled and warm)", lambda row: row.solve_seconds or row.first_seconds, seconds),
)


def diagram(rows: Sequence[AdaptiveSolve]) -> Figure | None:
    """The figure; None where no cell reached t1.

    A line joins the tolerances of one solver and backend: colours are solvers, markers are backends. An error of zero
    is left out, since the axis has no place for it.
    """
    shown = [row for row in rows if row.ok and row.error]
    if not shown:
        return None
    problems = list(dict.fromkeys(row.problem for row in shown))
    solvers = list(dict.fromkeys(row.solver for row in shown))
    backends = list(dict.fromkeys(row.backend for row in shown))
    colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(solvers)}
    marker = markers(backends)
    with matplotlib.rc_context(RC):
        figure = canvas(11.5, 1.4 + 3.7 * len(problems))
        panels = figure.subplots(len(problems), len(_PANELS), squeeze=False)
        for problem, pair in zip(problems, panels, strict=True):
            for axes, (label, value, formatted) in zip(pair, _PANELS, strict=True):
                for solver in solvers:
                    for backend in backends:
                        mine = [
                            row for row in shown if (row.problem, row.solver, row.backend) == (problem, solver, backend)
                        ]
                        points = [(x, row.error) for row in mine if (x := value(row))]
                        xs, ys = [x for x, _ in points], [y for _, y in points]
                        axes.loglog(xs, ys, color=colour[solver], **marker[backend])
                _label(axes, label, problem, formatted)
        handles = [Line2D([], [], color=colour[name], linewidth=3, label=name) for name in solvers]
        handles += [Line2D([], [], color=GREY, label=name, **marker[name]) for name in backends]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), handlelength=3)
        figure.suptitle("Work and precision, tolerance by tolerance", fontsize=14, fontweight="bold", color=INK)
    return figure


def _label(axes: Axes, label: str, problem: str, formatted: Callable[[float], str]) -> None:
    summary = PROBLEMS[problem].summary if problem in PROBLEMS else ""
    axes.set(xlabel=label, ylabel="error at t1 (mixed)")
    axes.set_title(f"{problem}: {summary}" if len(summary) < 40 else problem, fontsize=11)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: formatted(value).replace(".00", "").replace(".0 ", " "))
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
