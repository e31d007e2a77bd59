"""A batch in which each row has steps of its own: one loop for all, in which rows that are done stand still."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import (
    Backprop,
    InputError,
    PIDController,
    Problem,
    Result,
    Solution,
    SolveError,
    Solver,
    Span,
    StateError,
    Stats,
    UnsupportedError,
)
from odenet._problem.span import number
from odenet._solvers.controller import Arithmetic
from odenet._solvers.interpolant import interpolant
from odenet._solvers.step import trial
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.dense import differentiable
from odenet_torch.steps.tolerance import Tolerance

_SUCCESS, _NONFINITE, _MAX_STEPS, _TOO_SMALL = (
    list(Result).index(found) for found in (Result.SUCCESS, Result.NONFINITE, Result.MAX_STEPS, Result.STEP_TOO_SMALL)
)


def solve_rows(made: Problem, given: Layout, y: Leaves) -> Solution:
    """The solution of a problem whose controller is `per_sample`.

    Returns:
        A solution whose `outcome`, and the `steps` and `rejected` of whose stats, have one entry a row.
        `f_evaluations` counts calls of the field on the whole batch.

    Raises:
        UnsupportedError: what needs the same steps in all rows.
        SolveError: a row could not go on, and the controller throws.
    """
    span, solver = made.grid, made.solver
    assert isinstance(span, Span)
    assert isinstance(solver, Solver)
    _check(made, span, y)
    rows, of = y[0].shape[0], {"dtype": given.time, "device": given.device}
    t0, t1 = number("t0", span.t0), number("t1", span.t1)
    assert t0 is not None
    assert t1 is not None
    direction = 1.0 if t1 >= t0 else -1.0
    wanted = [t1] if span.ts is None else torch.as_tensor(span.ts).tolist()
    outs = [y if direction * time <= direction * t0 else _lost(y) for time in wanted]
    field = _field(made, given)
    stats = Stats("torch", solver.label, made.gradient.label, 0, 0)
    control, tableau, order = span.control, solver.tableau, solver.tableau.error_order
    tolerance = Tolerance(control, given, y)
    weights = interpolant(tableau)

    t = torch.full((rows,), t0, **of)
    calls = 0

    def f(t: Tensor, y: Leaves) -> Leaves:
        nonlocal calls
        calls += 1
        return given.slope(field(_beside(t, y[0]), given.call(y)), y)

    first = f(t, y)
    with torch.no_grad():

        def change(by: Tensor) -> Leaves:
            second = f(t + direction * by, _weigh(y, direction * by, (1.0,), (first,)))
            return tuple(b - a for a, b in zip(first, second, strict=True))

        size = _first_size(control, order, tolerance, (t, y, first), change, abs(t1 - t0))
    past = torch.ones(rows, **of), torch.ones(rows, **of)
    accepted = torch.zeros(rows, dtype=torch.int64, device=given.device)
    tried, outcome = accepted.clone(), accepted.clone()
    active = torch.full((rows,), t0 != t1, device=given.device)
    going = t0 != t1
    while going:
        with torch.no_grad():
            lands = direction * (t + direction * size * (1 + 1e-10) - t1) >= 0
            end = torch.where(lands, torch.full_like(t, t1), t + direction * size)
            h = torch.where(active, end - t, torch.zeros_like(t))
            stuck = active & ((h == 0) | ~torch.isfinite(h))
            outcome = torch.where(stuck, _TOO_SMALL, outcome)
            active = active & ~stuck
        step = trial(
            tableau,
            lambda i, at: f(t + tableau.c[i] * h, at),  # noqa: B023
            y,
            h,
            first,
            _weigh,
        )
        slopes = step.slopes if tableau.fsal else (*step.slopes, f(t + h, step.y1))
        with torch.no_grad():
            ratio = tolerance.ratio(step.error, y, step.y1).to(t)
            good, factor, past = control.judge(order, ratio, past, _TENSORS)
            if control.min_step is not None:
                good = good | (torch.isfinite(ratio) & (h.abs() <= control.min_step * (1 + 1e-10)))
            good = good & active
            tried, accepted = tried + active, accepted + good
            size = torch.where(active, control.bounded(h.abs() * factor, _TENSORS), size)
            after = torch.where(good, end, t)
            crossed = [
                good & (direction * time > direction * t) & (direction * time <= direction * end) for time in wanted
            ]
            done = good & lands
            full = active & ~done & (tried >= control.max_steps)
            outcome = torch.where(full, _MAX_STEPS, outcome)
            active = active & ~done & ~full
            going, *any_crossed = torch.stack(
                [active.any(), *(mask.any() for mask in crossed)]
            ).tolist()  # the host read
        for i, (mask, some) in enumerate(zip(crossed, any_crossed, strict=True)):
            if some:
                position = torch.where(mask, (wanted[i] - t) / torch.where(h == 0, 1, h), 1.0)
                inside = _weigh(y, h, [w if isinstance(w, Tensor) else None for w in weights.weights(position)], slopes)
                at_end = mask & (end == wanted[i])
                inside = _where(at_end, step.y1, inside)
                outs[i] = _where(mask, inside, outs[i])
        y, first, t = _where(good, step.y1, y), _where(good, slopes[-1], first), after
    finite = functools.reduce(torch.logical_and, (torch.isfinite(leaf).flatten(1).all(1) for leaf in map(_deep, first)))
    outcome = torch.where((outcome == _TOO_SMALL) & ~finite, _NONFINITE, outcome)
    stats.steps, stats.rejected, stats.f_evaluations = accepted, tried - accepted, calls
    _require_ended(span, outcome)
    ys = tuple(given.returned(torch.stack(column), i) for i, column in enumerate(zip(*outs, strict=True)))
    return Solution(torch.tensor(wanted, **of), given.unflatten(ys), stats, outcome)


def _first_size(
    control: PIDController,
    order: int,
    tolerance: Tolerance,
    start: tuple[Tensor, Leaves, Leaves],
    change: Callable[[Tensor], Leaves],
    whole: float,
) -> Tensor:
    """Sizes of the first steps, at most `whole`; `change` is that of the slope over an Euler step."""
    t, y, first = start
    if control.first_step is not None:
        size = torch.full_like(t, control.first_step)
    else:
        d0, d1 = tolerance.size(y, y).to(t), tolerance.size(first, y).to(t)
        tested = control.trial(d0, d1, _TENSORS).clamp(max=whole)
        d2 = tolerance.size(change(tested), y).to(t) / tested.clamp(min=torch.finfo(t.dtype).tiny)
        size = control.first(order, tested, d1, d2, _TENSORS)
    return control.bounded(size.clamp(max=whole), _TENSORS)


def _check(made: Problem, span: Span, y: Leaves) -> None:
    if not isinstance(made.gradient, Backprop):
        raise UnsupportedError(
            f"gradient {made.gradient.label!r} with per_sample=True",
            "backprop",
            "take one step size for the whole batch, or gradient='backprop'",
        )
    if span.event is not None or span.dense or span.every or span.stops:
        raise UnsupportedError("event, dense, ts='all', step_t or jump_t with per_sample=True", "times in ts")
    if made.weights is not None and made.weights.kind != "shared":
        raise UnsupportedError("weights that change with depth with per_sample=True", "shared weights, or steps=N")
    if len({leaf.shape[0] if leaf.ndim else None for leaf in y} | {None}) != 2:
        raise StateError(
            f"leaves of shapes {[tuple(leaf.shape) for leaf in y]} with per_sample=True",
            "leaves with one leading axis of the same length, that of the samples",
        )
    kept = span.ts if isinstance(span.ts, (list, tuple)) else [span.ts]
    if any(isinstance(t, Tensor) and differentiable(t) for t in (span.t0, span.t1, *kept)):
        raise InputError("a time that needs a gradient with per_sample=True", "numbers")


def _field(made: Problem, given: Layout) -> Any:
    field, weights = made.field, made.weights
    if weights is None:
        return field
    tree = weights.at(0)
    return lambda t, y: field(t, y, tree)


def _require_ended(span: Span, outcome: Tensor) -> None:
    if span.control.throw and bool((outcome != _SUCCESS).any()):
        failed = outcome.nonzero().flatten().tolist()
        worst = list(Result)[int(outcome.max())]
        named = ", ".join(map(str, failed[:8]))
        raise SolveError(
            f"{len(failed)} of {len(outcome)} rows could not go on (rows {named}): {worst.happened}",
            remedy=f"{worst.remedy}; PIDController(throw=False) returns what there is",
        )


def _beside(row: Tensor, like: Tensor) -> Tensor:
    """One number a row, to broadcast to a leaf."""
    return row.reshape(-1, *(1,) * (like.ndim - 1))


def _weigh(y: Leaves | None, h: Tensor, weights: Sequence[Any], slopes: Sequence[Leaves]) -> Leaves:
    """See `odenet._solvers.step.Weigh`, h and weights being numbers, or one a row."""
    total = y
    for weight, slope in zip(weights, slopes, strict=False):
        if weight is None or (isinstance(weight, float) and not weight):
            continue
        terms = tuple(_beside((h * weight).to(k.real.dtype), k) * k for k in slope)
        total = terms if total is None else tuple(a + b for a, b in zip(total, terms, strict=True))
    assert total is not None
    return total


def _where(mask: Tensor, one: Leaves, other: Leaves) -> Leaves:
    return tuple(torch.where(_beside(mask, a), a, b) for a, b in zip(one, other, strict=True))


def _lost(y: Leaves) -> Leaves:
    return tuple(torch.full_like(leaf, torch.nan) for leaf in y)


def _deep(leaf: Tensor) -> Tensor:
    return leaf if leaf.ndim > 1 else leaf.unsqueeze(1)


def _pick(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(condition, bool):
        return one if condition else other
    return torch.where(condition, one, other)


def _bound(name: str) -> Any:
    def bound(one: Any, other: Any) -> Any:
        if not isinstance(one, Tensor):
            one, other = other, one
        if isinstance(other, Tensor):
            return getattr(torch, "minimum" if name == "max" else "maximum")(one, other.to(one))
        return one.clamp(**{name: other})

    return bound


_TENSORS = Arithmetic(_bound("max"), _bound("min"), _pick)
