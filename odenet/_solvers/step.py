"""One explicit Runge-Kutta step, written once.

Only `+` and `*` on leaves and Python floats: the same lines run in a torch loop, under `jit(scan)` and on NumPy arrays.
A state here is the tuple of the leaves of whatever tree the user has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from odenet._solvers.tableau import Tableau

Leaves = tuple[Any, ...]
Stage = Callable[[int, Leaves], Leaves]
"""`stage(i, y)` evaluates the field at the time and with the weights of stage i."""
Weigh = Callable[["Leaves | None", Any, Sequence[Any], Sequence[Leaves]], Leaves]
"""`weigh(y, h, weights, slopes)` is y + h sum_i weights[i] slopes[i], without y where that is None."""
Plus = Callable[[Any, float, Any], Any]
"""`plus(leaf, factor, slope)` is `leaf + factor * slope`."""


def plus(leaf: Any, factor: float, slope: Any) -> Any:
    """See `Plus`. A backend may have a faster one."""
    return leaf + factor * slope


def increment(tableau: Tableau, stage: Stage, y: Leaves, h: float, plus: Plus = plus) -> Leaves:
    """`D(y) = h sum_i b[i] k[i]`, so that the step is `y + D(y)`.

    Args:
        tableau: the method.
        stage: the field at stage i.
        y: leaves of the state.
        h: step size; negative to step back in time.
        plus: see `Plus`.
    """
    stage_slopes = slopes(tableau, stage, y, h, plus=plus)
    weighed = [(h * weight, slope) for weight, slope in zip(tableau.b, stage_slopes, strict=False) if weight]
    (first, slope), *rest = weighed
    total = tuple(first * k for k in slope)
    for weight, slope in rest:
        total = tuple([plus(d, weight, k) for d, k in zip(total, slope, strict=True)])
    return total


def slopes(
    tableau: Tableau, stage: Stage, y: Leaves, h: float, count: int | None = None, plus: Plus = plus
) -> list[Leaves]:
    """Those of the first `count` stages, or of the stages that the step weighs; the rest is as in `increment`."""
    stage_slopes: list[Leaves] = []
    for i in range(count or tableau.step_stages):
        at = y
        for weight, slope in zip(tableau.a[i], stage_slopes, strict=True):
            if weight:
                at = tuple([plus(leaf, h * weight, k) for leaf, k in zip(at, slope, strict=True)])
        stage_slopes.append(stage(i, at))
    return stage_slopes


def weigh(y: Leaves | None, h: Any, weights: Sequence[Any], slopes: Sequence[Leaves]) -> Leaves:
    """`y + h sum_i weights[i] slopes[i]`, leaf by leaf, as `Weigh` has it. A backend may have a faster one."""
    terms = [(h * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if not _zero(weight)]
    if y is not None and not terms:
        return y
    (factor, slope), *terms = terms
    total = tuple(factor * leaf for leaf in slope)
    for factor, slope in terms:
        total = tuple(leaf + factor * k for leaf, k in zip(total, slope, strict=True))
    return total if y is None else add(y, total)  # the sum is rounded onto y once


def _zero(weight: Any) -> bool:
    return weight is None or (isinstance(weight, (int, float)) and weight == 0)  # one that is traced is not known


@dataclass(frozen=True)
class Trial:
    """One step of a method with an error estimate, before it is accepted.

    Args:
        y1: the state at its end.
        error: the estimated error of y1.
        slopes: of all stages; the last is the slope at y1 where the method is first-same-as-last.
    """

    y1: Leaves
    error: Leaves
    slopes: tuple[Leaves, ...]


def trial(tableau: Tableau, stage: Stage, y: Leaves, h: Any, first: Leaves, weigh: Weigh = weigh) -> Trial:
    """A step with its error estimate.

    Args:
        tableau: the method; it has `b_low`.
        stage: the field at stage i.
        y: the state at the start.
        h: step size, signed; a number, or a traced one.
        first: the slope at y, evaluated already.
        weigh: see `Weigh`.
    """
    slopes, at = [first], y
    for i in range(1, tableau.stages):
        at = weigh(y, h, tableau.a[i], slopes)
        slopes.append(stage(i, at))
    y1 = at if tableau.fsal else weigh(y, h, tableau.b, slopes)
    assert tableau.error_weights is not None
    return Trial(y1, weigh(None, h, tableau.error_weights, slopes), tuple(slopes))


def positions(tableau: Tableau, reverse: bool = False) -> tuple[float, ...]:
    """Where in the step, from 0 (its start) to 1 (its end), each stage reads time and weights.

    A step of size -h from y[n+1] reads the same step's weights at mirrored places. Euler's only stage stays where it
    is: the reversed residual block is `y - h f(t[n], y, w[n])` with its own layer (Sander et al. 2022, section 4.1).
    """
    nodes = tableau.c[: tableau.step_stages]
    return tuple(1 - node for node in nodes) if reverse and len(nodes) > 1 else nodes


def add(y: Leaves, d: Leaves) -> Leaves:
    """The sum `y + d`, leaf by leaf."""
    return tuple([leaf + change for leaf, change in zip(y, d, strict=True)])


def subtract(y: Leaves, d: Leaves) -> Leaves:
    """The difference `y - d`, leaf by leaf."""
    return tuple([leaf - change for leaf, change in zip(y, d, strict=True)])


def combine(*terms: tuple[Any, Leaves]) -> Leaves:
    """The sum of factor times leaves over the terms, leaf by leaf."""
    (factor, first), *rest = terms
    total = first if isinstance(factor, (int, float)) and factor == 1 else tuple([factor * leaf for leaf in first])
    for factor, leaves in rest:
        number = factor if isinstance(factor, (int, float)) else None  # one that is traced is none that is known
        if number == 1:
            total = tuple([leaf + term for leaf, term in zip(total, leaves, strict=True)])
        elif number == -1:
            total = tuple([leaf - term for leaf, term in zip(total, leaves, strict=True)])
        elif factor is not None and number != 0:
            total = tuple([leaf + factor * term for leaf, term in zip(total, leaves, strict=True)])
    return total
