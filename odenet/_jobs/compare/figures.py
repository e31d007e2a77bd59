"""The figures of a comparison: gradient error, memory and time over depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from odenet._jobs.compare.results import Curve, MeasuredGradient, curves
from odenet._report.figures import canvas
from odenet._report.fit import ROUNDING
from odenet._report.style import GREY, INK, RC, colours, depth_axis, markers, name
from odenet._report.units import seconds, size

Panel = Callable[[Axes, Sequence[Curve], Sequence[Curve]], None]
"""Draws the curves of one solver; all curves are given, too, so that panels can share their limits."""


def figures(rows: Sequence[MeasuredGradient]) -> dict[str, Figure]:
    """The figures by file name without suffix; none where no row was measured."""
    series = curves(rows)
    if not series:
        return {}
    with matplotlib.rc_context(RC):
        return {
            "gradient_error": _by_solver(series, _error_panel, "Gradient error against exact backprop"),
            "memory": _by_solver(series, _memory_panel, "Peak memory of loss and gradient"),
            "time": _by_solver(series, _time_panel, "Time of loss and gradient, compiled and warm"),
            "overview": _overview(series),
        }


def _by_solver(series: Sequence[Curve], panel: Panel, title: str) -> Figure:
    solvers = list(dict.fromkeys(curve.solver for curve in series))
    figure, panels = _paper(len(solvers))
    for axes, solver in zip(panels, solvers, strict=True):
        mine = [curve for curve in series if curve.solver == solver]
        panel(axes, mine, series)
        axes.set_title(_title(mine))
    figure.suptitle(title, fontsize=14, fontweight="bold", color=INK)
    _key(figure, series)
    return figure


def _overview(series: Sequence[Curve]) -> Figure:
    """For a README: the error of the first two solvers, and memory of the first."""
    solvers = list(dict.fromkeys(curve.solver for curve in series))[:2]
    shown = [curve for curve in series if curve.solver in solvers]
    figure, panels = _paper(len(solvers) + 1)
    for axes, solver in zip(panels, solvers, strict=False):
        mine = [curve for curve in series if curve.solver == solver]
        _error_panel(axes, mine, shown)
        axes.set_title(f"Gradient error, {_title(mine)}")
    first = [curve for curve in series if curve.solver == solvers[0]]
    _memory_panel(panels[-1], first, first)
    axes = panels[-1]
    axes.set_title(f"Peak memory, {_title(first)}")
    _key(figure, series)
    return figure


def _paper(panels: int) -> tuple[Figure, list[Axes]]:
    figure = canvas(1.2 + 4.3 * panels, 5.1)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _title(mine: Sequence[Curve]) -> str:
    return {"euler": "Euler (ResNet)", "heun": "Heun (HeunNet)", "rk4": "RK4"}.get(mine[0].solver, mine[0].solver)


def _draw(axes: Axes, mine: Sequence[Curve], value: Callable[[MeasuredGradient], float | None]) -> None:
    colour = colours(curve.gradient for curve in mine)
    marker = markers(list(dict.fromkeys(curve.backend for curve in mine)))
    for curve in mine:
        points = [(depth, y) for depth, row in curve.rows.items() if (y := value(row)) is not None]
        style = dict(marker[curve.backend])
        thinner = 1 - 0.15 * min(list(colour).index(curve.gradient), 4)  # so that a curve under another is still seen
        style["markersize"] *= thinner
        style["linewidth"] *= thinner
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour[curve.gradient], **style)
    depth_axis(axes, sorted({depth for curve in mine for depth in curve.rows}))


def _error_panel(axes: Axes, mine: Sequence[Curve], every: Sequence[Curve]) -> None:
    rounding = ROUNDING[mine[0].first.dtype]
    errors = [e for curve in every for row in curve.rows.values() if (e := row.gradient_error) and math.isfinite(e)]
    visible = [e for e in errors if e > rounding] or [1.0]
    # a strip below all errors that mean something holds those that are rounding: on a true axis they would take half
    # of the figure and say nothing
    top, low = max(visible) * 3, min(visible) / 3
    strip = low / (top / low) ** 0.2, low
    place = strip[0] ** 0.35 * strip[1] ** 0.65

    def value(row: MeasuredGradient) -> float | None:
        error = row.gradient_error
        return error if error is None or error > rounding else place

    _draw(axes, mine, value)
    axes.set_yscale("log")
    axes.set_ylim(strip[0], top)
    axes.yaxis.set_major_locator(FixedLocator([10.0**k for k in _powers(low, top)]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.axhspan(*strip, color=GREY, alpha=0.16, linewidth=0)
    axes.text(
        0.5,
        strip[0] * 1.06,
        f"rounding: below {rounding:.0e}",
        transform=axes.get_yaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=9.5,
    )
    axes.set_ylabel("relative error of the gradient")
    handles = []
    for gradient, colour in colours(curve.gradient for curve in mine).items():
        orders = {curve.backend: curve.order for curve in mine if curve.gradient == gradient}
        text = "/".join(dict.fromkeys(order for order in orders.values() if order != "–")) or "–"
        label = f"{name(gradient)}: order {text}" if text not in ("exact", "–") else f"{name(gradient)}: {text}"
        handles.append(Line2D([], [], color=colour, linewidth=2.4, label=label.removesuffix(": –")))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.0, 0.14), handlelength=1.4, labelspacing=0.35)


def _powers(low: float, top: float) -> range:
    """Powers of ten in an interval, at most seven."""
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(top))
    return range(first, last + 1, -(-(last - first + 1) // 7))


def _memory_panel(axes: Axes, mine: Sequence[Curve], every: Sequence[Curve]) -> None:
    _draw(axes, mine, lambda row: row.peak_bytes)
    largest = {n: row.gradient_bytes for curve in mine for n, row in sorted(curve.rows.items()) if row.gradient_bytes}
    if largest:
        depths = sorted(largest)
        axes.plot(depths, [largest[n] for n in depths], ":", color=GREY, linewidth=1.8, zorder=1)
        middle = depths[(len(depths) - 1) // 2]
        axes.annotate(
            "the gradient itself",
            (middle, largest[middle]),
            xytext=(8, -4),
            textcoords="offset points",
            va="top",
            color=GREY,
            fontsize=9.5,
        )
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_locator(LogLocator(base=4))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(size(value))))
    axes.set_ylabel("peak bytes beyond weights and batch")
    rows = [row for curve in every for row in curve.rows.values()]
    _names(axes, every, [b for row in rows for b in (row.peak_bytes, row.gradient_bytes) if b])


def _time_panel(axes: Axes, mine: Sequence[Curve], every: Sequence[Curve]) -> None:
    _draw(axes, mine, lambda row: row.step_seconds)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(seconds(value))))
    axes.set_ylabel("seconds of loss and gradient (median)")
    _names(axes, every, [s for curve in every for row in curve.rows.values() if (s := row.step_seconds)])


def _names(axes: Axes, every: Sequence[Curve], values: Sequence[float]) -> None:
    """The legend of the gradient methods, and the same limits in all panels with room for it above the lines."""
    if values:
        bottom, top = min(values) / 1.6, max(values) * 1.6
        axes.set_ylim(bottom, top * (top / bottom) ** 0.33)
    pairs = colours(curve.gradient for curve in every).items()
    handles = [Line2D([], [], color=colour, linewidth=2.4, label=name(gradient)) for gradient, colour in pairs]
    axes.legend(handles=handles, loc="upper left", handlelength=1.4, labelspacing=0.35)


def _plain(text: str) -> str:
    """A tick's number without zeros behind the point."""
    number, _, unit = text.partition(" ")
    return f"{float(number):g} {unit}"


def _key(figure: Figure, series: Sequence[Curve]) -> None:
    """Which marker is which backend, once below all panels."""
    styles = markers(list(dict.fromkeys(curve.backend for curve in series)))
    handles = [Line2D([], [], color=GREY, label=backend, **style) for backend, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=11, handlelength=3)
