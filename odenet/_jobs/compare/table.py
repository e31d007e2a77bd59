"""The table that a person reads at the end of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from odenet._jobs.compare.results import MeasuredGradient
from odenet._jobs.compare.summary import Curve, curves
from odenet._report.terminal import Table, table
from odenet._report.units import error, seconds, size


def tables(rows: Iterable[MeasuredGradient], screen: Console) -> list[Table]:
    """One table a solver: gradient methods by backends, their error at each depth, and what the ends of the grid cost.

    Args:
        rows: of the comparison.
        screen: whose width it is for; on a narrow one there are fewer depths, then the largest depth alone.
    """
    series = curves(rows)
    return [
        _table([curve for curve in series if curve.solver == solver], screen)
        for solver in dict.fromkeys(curve.solver for curve in series)
    ]


def columns(depths: Sequence[int], ends: Sequence[int]) -> list[str]:
    """The headings; ">" aligns to the right.

    Args:
        depths: whose error has a column.
        ends: the one or two depths whose cost is shown.
    """
    where = "N=" + " → ".join(map(str, ends))
    errors = (f">error N={depth}" for depth in depths)
    return ["gradient", "backend", *errors, ">order", f">peak memory {where}", f">time {where}", ">compile"]


def line(curve: Curve, depths: Sequence[int], ends: Sequence[int]) -> list[str]:
    """The cells of one curve under `columns`."""
    errors = [error(curve.rows[depth].gradient_error if depth in curve.rows else None) for depth in depths]
    costs = [curve.rows.get(depth) for depth in ends]
    compiled = [row.compile_seconds for row in curve.rows.values() if row.compile_seconds]
    return [
        curve.gradient,
        curve.backend,
        *errors,
        curve.order,
        " → ".join(size(row.peak_bytes if row else None) for row in costs),
        " → ".join(seconds(row.step_seconds if row else None) for row in costs),
        seconds(sum(compiled) / len(compiled)) if compiled else "–",
    ]


def depths_of(series: Sequence[Curve]) -> tuple[list[int], list[int]]:
    """Every depth measured, and the first and the last of them."""
    depths = sorted({depth for curve in series for depth in curve.rows})
    return depths, list(dict.fromkeys((depths[0], depths[-1])))


def title(series: Sequence[Curve]) -> str:
    """What a solver's table shows."""
    kinds = ", ".join(dict.fromkeys(curve.first.along for curve in series))
    return f"{series[0].solver} (weights along depth: {kinds}) — gradient error against exact backprop in float64"


def _table(series: Sequence[Curve], screen: Console) -> Table:
    depths, ends = depths_of(series)
    for shown, cost in ((depths, ends), (ends, ends), (ends, ends[-1:])):
        candidate = table(title(series), columns(shown, cost), [line(curve, shown, cost) for curve in series])
        if candidate.fits(screen.width):
            return candidate
    short = [[*cells[:-3], *cells[-2:-1]] for cells in (line(curve, ends, ends[-1:]) for curve in series)]
    heads = columns(ends, ends[-1:])
    return table(title(series), [*heads[:-3], *heads[-2:-1]], short)
