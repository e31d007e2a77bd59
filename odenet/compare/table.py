"""The table that a person reads at the end of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from odenet._tables import table
from odenet.compare.row import Row
from odenet.compare.summary import Curve, curves
from odenet.compare.units import error, seconds, size

_NARROW = 120  # columns of a terminal under which only some depths fit


def tables(rows: Iterable[Row], width: int) -> list[Table]:
    """One table a solver: gradient methods by backends, their error at each depth, and what the ends of the grid cost.

    Args:
        rows: of the comparison.
        width: of the terminal, in characters; on a narrow one only the first and the last depth are shown.
    """
    found = curves(rows)
    return [
        _table([curve for curve in found if curve.solver == solver], width)
        for solver in dict.fromkeys(curve.solver for curve in found)
    ]


def columns(depths: Sequence[int]) -> list[str]:
    """The headings for these depths; ">" aligns to the right."""
    first, last = depths[0], depths[-1]
    ends = f"N={first}" if first == last else f"N={first} → {last}"
    return [
        "gradient",
        "backend",
        *(f">error N={depth}" for depth in depths),
        ">order",
        f">peak memory {ends}",
        f">time {ends}",
        ">compile",
    ]


def line(curve: Curve, depths: Sequence[int]) -> list[str]:
    """The cells of one curve under `columns`."""
    errors = [error(curve.rows[depth].gradient_error if depth in curve.rows else None) for depth in depths]
    ends = [curve.rows.get(depth) for depth in dict.fromkeys((depths[0], depths[-1]))]
    compiled = [row.compile_seconds for row in curve.rows.values() if row.compile_seconds]
    return [
        curve.gradient,
        curve.backend,
        *errors,
        curve.order,
        " → ".join(size(row.peak_bytes if row else None) for row in ends),
        " → ".join(seconds(row.step_seconds if row else None) for row in ends),
        seconds(sum(compiled) / len(compiled)) if compiled else "–",
    ]


def title(found: Sequence[Curve]) -> str:
    """What a solver's table shows."""
    kinds = ", ".join(dict.fromkeys(curve.first.along for curve in found))
    return f"{found[0].solver} (weights along depth: {kinds}) — gradient error against exact backprop in float64"


def _table(found: Sequence[Curve], width: int) -> Table:
    depths = sorted({depth for curve in found for depth in curve.rows})
    if width < _NARROW and len(depths) > 2:
        depths = [depths[0], depths[-1]]
    return table(title(found), columns(depths), (line(curve, depths) for curve in found))
