"""A batch in which each row has steps of its own: one loop for all, in which rows that are done stand still.

Over 250 lines: one loop, whose every line is about rows in different states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import (
    Backprop,
    InputError,
    OdenetError,
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
from odenet.kit import Tableau, Trial, interpolant, landing, number, trial
from odenet_torch.field import random_state
from odenet_torch.field.differentiating import listed, record, transformed
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Layout, Leaves, meta_state
from odenet_torch.steps.dense import differentiable
from odenet_torch.steps.gate import Gate
from odenet_torch.steps.independence import (
    known_independent,
    note_independent,
    refuse_batch_statistics,
    require_independent,
)
from odenet_torch.steps.resolution import explained, resolved, widened
from odenet_torch.steps.rows import ROWS, beside, choose_rows, finite_rows, stand_ins, weigh_rows
from odenet_torch.steps.tolerance import Tolerance

_SUCCESS, _NONFINITE, _MAX_STEPS, _TOO_SMALL = (
    list(Result).index(result) for result in (Result.SUCCESS, Result.NONFINITE, Result.MAX_STEPS, Result.STEP_TOO_SMALL)
)

_ASIDE = 1e-3  # of the span: how far times of rows are moved to see who reads them
_WILD = 1e3  # error ratio of a step beyond which its stages may have left the numbers of the field


def solve_rows(problem: Problem, state_layout: Layout, y: Leaves) -> Solution:
    """The solution of a problem whose controller is `per_sample`.

    Returns:
        A solution whose `outcome`, and the `steps` and `rejected` of whose stats, have one entry a row.
        `f_evaluations` counts calls of the field on the whole batch.

    Raises:
        UnsupportedError: what needs the same steps in all rows.
        SolveError: a row could not go on, and the controller throws.
    """
    span, solver = problem.grid, problem.solver
    assert isinstance(span, Span)
    assert isinstance(solver, Solver)
    _check(problem, span, y)
    t0, t1 = number("t0", span.t0), number("t1", span.t1)
    assert t0 is not None
    assert t1 is not None
    state_layout = resolved(state_layout, t0, t1)
    rows, device = y[0].shape[0], state_layout.device
    # steps add up in float64, whatever the field is called with
    kind = torch.float32 if device.type == "mps" else torch.float64
    direction = 1.0 if t1 >= t0 else -1.0
    times = [t1] if span.ts is None else torch.as_tensor(span.ts).tolist()
    outs = [y if direction * time <= direction * t0 else _lost(y) for time in times]
    row_steps = RowSteps(_field(problem, state_layout), state_layout, solver.tableau, kind, wide=widened(state_layout))
    stats = Stats("torch", solver.label, problem.gradient.label, 0, 0)
    control, order = span.control, solver.tableau.error_order
    tolerance = Tolerance(control, state_layout, y)
    weights = interpolant(solver.tableau)

    t = torch.full((rows,), t0, dtype=kind, device=device)
    last = torch.full_like(t, t1)
    spacing = torch.finfo(kind).eps * max(abs(t0), abs(t1))
    random = random_state.state(device)
    first = row_steps.slope(t, y)
    after_first = random_state.state(device)
    accepted = torch.zeros(rows, dtype=torch.int64, device=device)
    tried, outcome = accepted.clone(), accepted.clone()
    active = torch.full((rows,), t0 != t1, device=device)
    going = all_active = t0 != t1
    if going:

        def again(t: Tensor, y: Leaves) -> Leaves:
            random_state.restore(device, random)
            return row_steps.slope(t, y)

        known = known_independent(problem.field, t0, t1)
        require_independent(again, t, t + _ASIDE * (t1 - t0), y, first, None if known else (t0, t1))
        if not known:
            note_independent(problem.field, t0, t1)
        random_state.restore(device, after_first)
        active = finite_rows(y, first)
        outcome = torch.where(active, outcome, _NONFINITE)
        going, all_active = listed(torch.stack([active.any(), active.all()]))
        if going and not all_active and torch.is_grad_enabled():
            first = row_steps.slope(t, stand_ins(active, y))
    size = torch.zeros_like(t)
    if going:
        with torch.no_grad():

            def change(by: Tensor) -> Leaves:
                second = row_steps.slope(t + direction * by, weigh_rows(y, direction * by, (1.0,), (first,)))
                return tuple(b - a for a, b in zip(first, second, strict=True))

            size = _first_size(control, order, tolerance, (t, y, first), change, abs(t1 - t0))
    past = torch.ones_like(t), torch.ones_like(t)
    targets = direction * torch.tensor(times, dtype=kind, device=device).unsqueeze(1)
    while going:
        with torch.no_grad():
            end, lands = landing(t, size, last, direction, spacing, ROWS)
            h = end - t
            length = h.abs()
            moving = active & (length > 0) & (length < torch.inf)
            outcome = torch.where(active & ~moving, _TOO_SMALL, outcome)
            active = moving
            h = torch.where(active, h, 0)
        step = row_steps.attempt(t, y, h, first, None if all_active else active)
        with torch.no_grad():
            ratio = tolerance.ratio(step.error, y, step.y1).to(t)
            good, factor, past = control.judge(order, ratio, past, ROWS)
            if control.min_step is not None:
                good = good | (torch.isfinite(ratio) & (length <= control.min_step * (1 + 1e-10)))
            good = good & active
            tried, accepted = tried + active, accepted + good
            tried_size = torch.where(good, length, torch.minimum(length, size))  # as of one state: it must shrink
            size = torch.where(active, control.bounded(tried_size * factor, ROWS), size)
            before, after = direction * t, direction * end
            crossed = good & (targets > before) & (targets <= after)
            done = good & lands
            full = active & ~done & (tried >= control.max_steps)
            outcome = torch.where(full, _MAX_STEPS, outcome)
            wild = active & ~good & ~(ratio <= _WILD)
            active = active & ~done & ~full
            flags = [active.any(), active.all(), good.any(), wild.any()]
            flags = torch.cat([torch.stack(flags), crossed.any(1)])
            going, all_active, some, astray, *any_crossed = listed(flags)  # the host read
        if not some:
            continue
        if astray and torch.is_grad_enabled():
            # what went astray must not be part of what autograd records: the accepted rows once more, without it
            step = row_steps.attempt(t, y, torch.where(good, h, 0), first, good)
        for i, (mask, met) in enumerate(zip(crossed.unbind(0), any_crossed, strict=True)):
            if met and times[i] == t1:  # the steps that come to it end there
                outs[i] = choose_rows(mask, step.y1, outs[i])
            elif met:
                position = torch.where(mask, (times[i] - t) / torch.where(h == 0, 1, h), 1.0)
                parts = [w if isinstance(w, Tensor) else None for w in weights.weights(position)]
                inside = weigh_rows(y, torch.where(mask, h, 0), parts, step.slopes)
                inside = choose_rows(mask & (end == times[i]), step.y1, inside)
                outs[i] = choose_rows(mask, inside, outs[i])
        y, first = choose_rows(good, step.y1, y), choose_rows(good, step.slopes[-1], first)
        t = torch.where(good, end, t)
    if random_state.same(random, after_first):  # who draws random numbers has other slopes each time
        with torch.no_grad():
            require_independent(row_steps.slope, t, t - _ASIDE * (t1 - t0), y, first, known=accepted > 0)
    finite = finite_rows(first)
    outcome = torch.where((outcome == _TOO_SMALL) & ~finite, _NONFINITE, outcome)
    stats.steps, stats.rejected, stats.f_evaluations = accepted, tried - accepted, row_steps.calls
    _require_ended(span, outcome)
    ys = tuple(state_layout.returned(torch.stack(column), i) for i, column in enumerate(zip(*outs, strict=True)))
    return Solution(
        torch.tensor(times, dtype=state_layout.time, device=device), state_layout.unflatten(ys), stats, outcome
    )


@dataclass
class RowSteps:
    """The field, and one step of all rows.

    Args:
        field: of time and state.
        layout: of the state.
        tableau: the method.
        kind: number type of the times that steps add up in.
        calls: of the field so far.
        wide: whether times are wider than the state, see `odenet_torch.steps.resolution`.
    """

    field: Callable[[Tensor, Any], Any]
    layout: Layout
    tableau: Tableau
    kind: torch.dtype
    calls: int = 0
    wide: bool = False

    @functools.cached_property
    def nodes(self) -> Tensor:
        """Of the stages, as a column."""
        return torch.tensor(self.tableau.c, dtype=self.kind, device=self.layout.device).unsqueeze(1)

    def slope(self, t: Tensor, y: Leaves) -> Leaves:
        """The slopes of all rows, each at its time; raises what `at` raises."""
        return self.at(t, beside(t.to(self.layout.time), y[0]), y)

    def at(self, t: Tensor, time: Tensor, y: Leaves, alone: bool = False) -> Leaves:
        """The slopes of all rows.

        Args:
            t: the time of each row.
            time: the same as the field is called with it.
            y: the state.
            alone: whether nobody else reads it.

        Raises:
            GridError: times that float32 cannot tell apart, of a field that does not take others.
            UnsupportedError: a field that takes one time alone.
        """
        self.calls += 1
        try:
            if not self.wide:
                return self._gated(time, y, alone)
            with explained(t[0].item()):
                return self._gated(time, y, alone)
        except OdenetError:
            raise
        except Exception as error:
            if not self._takes_one_time(t, y):
                raise
            raise UnsupportedError(
                f"per_sample=True with a field that takes one time, and not one of each row ({error})",
                f"fields of a time of shape {tuple(time.shape)}, which has an entry a row and is to broadcast",
                "write torch.where(t < c, a, b) for branches on t, and tensor operations for numbers made of it; or "
                "take one step size for the whole batch (per_sample=False, or steps=N)",
            ) from error

    def _takes_one_time(self, t: Tensor, y: Leaves) -> bool:
        """Whether the field, which has failed, returns a slope where the time is a number."""
        try:
            self.layout.evaluate(lambda y: self.field(t[0].to(self.layout.time), y), tuple(leaf.detach() for leaf in y))
        except Exception:
            return False
        return True

    def _gated(self, time: Tensor, y: Leaves, alone: bool) -> Leaves:
        layout = self.layout
        recorded = torch.is_grad_enabled() and (transformed() or any(leaf.requires_grad for leaf in y))
        if not recorded:  # as at a y0 that needs no gradient: none comes back to it
            slope = layout.evaluate(lambda y: self.field(time, y), y)
            layout.memory.hold(slope)
            return slope
        gate = Gate()
        y = gate.enter(*y, alone=alone)
        return gate.leave(*layout.evaluate(lambda y: self.field(time, y), y))

    def attempt(self, t: Tensor, y: Leaves, h: Tensor, first: Leaves, mask: Tensor | None) -> Trial:
        """A step; its slopes are those that dense output reads.

        Args:
            t, y, h, first: where each row begins, its size and its slope there.
            mask: the rows that count. Others stand in the place of one of them, with a step of size zero.
        """
        if mask is not None:
            t, *rest = stand_ins(mask, (t, *y, *first))
            y, first = tuple(rest[: len(y)]), tuple(rest[len(y) :])
        tableau, memory = self.tableau, self.layout.memory
        moments = t + self.nodes * h  # a row of times for each stage, made at once
        times = moments.to(self.layout.time).reshape(len(moments), -1, *(1,) * (y[0].ndim - 1)).unbind(0)
        last = tableau.stages - 1 if tableau.fsal else -1  # whose state is the end of the step

        def stage(i: int, at: Leaves) -> Leaves:
            return self.at(moments[i] if self.wide else t, times[i], at, alone=i != last)

        step = trial(tableau, stage, y, h, first, functools.partial(weigh_rows, columns={}))
        slopes = step.slopes if tableau.fsal else (*step.slopes, self.slope(t + h, step.y1))
        memory.require_kept()
        memory.slopes[:] = memory.slopes[-1:]
        return Trial(step.y1, step.error, slopes)


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
        size_of = tolerance.sizes(y)
        d0, d1 = size_of(y).to(t), size_of(first).to(t)
        tested = control.trial(d0, d1, ROWS).clamp(max=whole)
        d2 = size_of(change(tested)).to(t) / tested.clamp(min=torch.finfo(t.dtype).tiny)
        size = control.first(order, tested, d1, d2, ROWS)
    return control.bounded(size.clamp(max=whole), ROWS)


def _check(problem: Problem, span: Span, y: Leaves) -> None:
    if not isinstance(problem.gradient, Backprop):
        raise UnsupportedError(
            f"gradient {problem.gradient.label!r} with per_sample=True",
            "backprop",
            "take one step size for the whole batch, or gradient='backprop'",
        )
    unknown = {
        "event": span.event is not None,
        "dense=True": span.dense,
        "ts='all'": span.every,
        "step_t": bool(span.control.step_t),
        "jump_t": bool(span.control.jump_t),
    }
    if any(unknown.values()):
        raise UnsupportedError(
            f"{', '.join(name for name, given in unknown.items() if given)} with per_sample=True",
            "times in ts",
            "solve without per_sample, with steps for all rows, or row by row",
        )
    if problem.weights is not None and problem.weights.kind != "shared":
        raise UnsupportedError("weights that change with depth with per_sample=True", "shared weights, or steps=N")
    if any(leaf.is_meta for leaf in y):
        raise meta_state()
    if not all(leaf.ndim for leaf in y) or len({leaf.shape[0] for leaf in y}) != 1:
        raise StateError(
            f"leaves of shapes {[tuple(leaf.shape) for leaf in y]} with per_sample=True",
            "leaves with one leading axis of the same length, that of the samples",
        )
    outputs = span.ts if isinstance(span.ts, (list, tuple)) else [span.ts]
    if any(isinstance(t, Tensor) and differentiable(t) for t in (span.t0, span.t1, *outputs)):
        raise InputError("a time that needs a gradient with per_sample=True", "numbers")
    refuse_batch_statistics(problem.field)


def _field(problem: Problem, state_layout: Layout) -> Any:
    inner = FunctionField(problem.field, problem.weights)
    inner.recorded(state_layout.device, None)
    weights = () if problem.weights is None else (problem.weights.at(0),)

    def field(t: Tensor, y: Any) -> Any:
        if inner.reads is not None:
            return inner(t, y, 0, 0.0, 1)
        try:
            return problem.field(t, y, *weights)
        except RuntimeError as error:
            return record(error, problem.field, t, y, *weights)

    return field


def _require_ended(span: Span, outcome: Tensor) -> None:
    if span.control.throw and bool((outcome != _SUCCESS).any()):
        failed = listed(outcome.nonzero().flatten())
        worst = list(Result)[int(outcome.max())]
        named = ", ".join(map(str, failed[:8]))
        raise SolveError(
            f"{len(failed)} of {len(outcome)} rows could not go on (rows {named}): {worst.happened}",
            remedy=f"{worst.remedy}; PIDController(throw=False) returns what there is",
        )


def _lost(y: Leaves) -> Leaves:
    return tuple(torch.full_like(leaf, torch.nan) for leaf in y)
