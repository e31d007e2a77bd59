"""The one sentence that a comparison opens with: what to take on this network, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence

from odenet._gradients.names import Backprop
from odenet._jobs.compare.results import Comparison
from odenet._jobs.compare.summary import Curve, curves
from odenet._report.units import error, factor

TOLERANCE = 1e-2  # a gradient further off than this is not recommended
SAVING = 0.8  # of backprop's memory: what saves less is not worth another method
ALIKE = 1.25  # methods whose memory is within this factor of the least are chosen from by their error


def verdict(results: Comparison) -> str:
    """A sentence for each solver, from the rows of the first backend that has them at the largest depth."""
    sentences = []
    series = curves(results.rows)
    for solver in dict.fromkeys(curve.solver for curve in series):
        backend = next(curve.backend for curve in series if curve.solver == solver)
        sentences.append(_sentence([c for c in series if (c.solver, c.backend) == (solver, backend)]))
    return " ".join(sentences) or "No cell has been measured yet."


def _sentence(series: Sequence[Curve]) -> str:
    """About the gradient methods of one solver and backend."""
    depth = max(curve.last.depth for curve in series)
    there = [curve for curve in series if curve.last.depth == depth]
    where = f"{there[0].backend}, {there[0].solver}, N={depth}"
    base = next((curve.last for curve in there if curve.gradient == Backprop().label), None)
    if base is None:
        return f"{where}: backprop was not measured, so that nothing can be said of what others save."
    saving = [
        curve
        for curve in there
        if (curve.last.gradient_error or 0.0) <= TOLERANCE
        and (curve.last.peak_bytes or 0) <= SAVING * (base.peak_bytes or 0)
    ]
    if not saving or not base.peak_bytes or not base.step_seconds:
        return (
            f"{where}: take backprop; no other method saves a fifth of its memory with a gradient error of at most "
            f"{error(TOLERANCE)}."
        )
    least = min(curve.last.peak_bytes or 0 for curve in saving)
    alike = [curve for curve in saving if (curve.last.peak_bytes or 0) <= ALIKE * least]
    best = min(alike, key=lambda curve: curve.last.gradient_error or 0.0)
    memory, seconds = (best.last.peak_bytes or 0) / base.peak_bytes, (best.last.step_seconds or 0.0) / base.step_seconds
    return (
        f"{where}: take {best.gradient}; gradient error {error(best.last.gradient_error)}, memory "
        f"{factor(memory)} and time {factor(seconds)} of backprop's."
    )
