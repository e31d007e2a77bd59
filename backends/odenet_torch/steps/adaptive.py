"""An adaptive solve: the steps are accepted one by one, and what the user wants of each is kept.

Over 250 lines: the loop and what is kept of each of its steps, with and without gradients, read each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import Event, Problem, Result, Solution, SolveError, Solver, Span, Stats
from odenet.kit import number
from odenet_torch.field.differentiating import readable, record
from odenet_torch.field.field import Field, FunctionField
from odenet_torch.field.memory import written
from odenet_torch.field.state import Layout, Leaves, layout, meta_state, require_times
from odenet_torch.steps.accepted import Accepted, AcceptedField, stops_of
from odenet_torch.steps.compiled import CompiledSteps
from odenet_torch.steps.dense import Dense, between
from odenet_torch.steps.events import Watch
from odenet_torch.steps.fixed import Run
from odenet_torch.steps.per_sample import solve_rows
from odenet_torch.steps.resolution import explained, resolved, widened
from odenet_torch.steps.size_control import AcceptedStep, AdaptiveLoop, Evaluate, lead, moments
from odenet_torch.steps.times import at_event, from_start, to_outputs
from odenet_torch.steps.tolerance import Tolerance
from odenet_torch.steps.watched_steps import watched

_CODES = {result: code for code, result in enumerate(Result)}
Back = Callable[["ForwardSolve", Leaves], Leaves]
"""A gradient method: the outputs' leaves with a leading time axis, differentiable in its way."""


@dataclass
class OutputTimes:
    """Which outputs a solve has, as its steps are accepted.

    Args:
        list: times, in the order of the solve.
        last: whether the end alone is wanted.
        every: whether the end of every step is.
        direction: of time, 1 or -1.
        done: how many of the times have been met.
    """

    list: list[float]
    last: bool
    every: bool
    direction: float
    done: int = 0

    def count_before(self, t0: float) -> int:
        """How many outputs are the state at t0."""
        while self.done < len(self.list) and self.direction * self.list[self.done] <= self.direction * t0:
            self.done += 1
        return 1 if self.every else self.done

    def within(self, step: AcceptedStep, end: float, slack: float = 0.0) -> Iterator[float]:
        """Positions of the outputs in a step.

        Args:
            step: the step.
            end: where the outputs end: at the end of the step, 1, or at an event, whose state is the last of them.
            slack: how far beyond an event a time may lie that is that of the event but for rounding.
        """
        ended = end < 1.0 or slack > 0.0
        while self.done < len(self.list):
            t = self.list[self.done]
            position = 1.0 if step.t1 == t else (t - step.t) / step.h
            if step.is_last and not ended:
                position = min(position, 1.0)  # a time that is t1 but for rounding
            if position > end + slack:
                break
            self.done += 1
            yield min(position, 1.0)
        if ended or self.every or (self.last and step.is_last):
            yield end

    def times(self, grid: Accepted, event: float | None) -> list[float]:
        """The times of the outputs, that of the event among them, and those that were not reached after it."""
        if self.list:
            return self.list if event is None else [*self.list[: self.done], event, *self.list[self.done :]]
        nodes = grid.nodes if self.every else grid.nodes[-1:]
        return nodes if event is None else [*nodes[:-1], event]


@dataclass
class ForwardSolve:
    """A forward pass, before and after it has run.

    Args:
        run: whose grid grows as steps are accepted.
        span: times and control.
        t0, t1: ends of the solve.
        ts: the times of the outputs, once it has run.
        loop: the loop.
        dense: dense output, where that is wanted.
        event: the time of the event that ended the solve.
        entry: the entry of its condition that changed.
        row: the place of its state among the outputs.
    """

    run: Run
    span: Span
    t0: float
    t1: float
    ts: list[float]
    loop: AdaptiveLoop
    dense: Dense | None
    event: float | None = None
    entry: int = 0
    row: int = -1
    last: AcceptedStep | None = None
    """The last step, until its backward pass has taken what it keeps of that."""

    @property
    def grid(self) -> Accepted:
        """The grid of the accepted steps."""
        assert isinstance(self.run.grid, Accepted)
        return self.run.grid

    def pass_over(
        self, y: Leaves, keep: Callable[[int], bool] | None = None, first: Leaves | None = None
    ) -> tuple[list[Leaves], dict[int, Leaves]]:
        """Solve.

        Args:
            y: the state at t0.
            keep: the indices of states that a backward pass is to be given, beside the last.
            first: the slope there, if it is known.

        Returns:
            The outputs, and the states that are kept, by index.

        Raises:
            SolveError: it could not go on.
        """
        grid, outputs, states = self.grid, [], {0: y}
        del grid.nodes[1:]
        grid.places.clear()

        def put(n: int, position: float, state: Leaves) -> None:
            grid.places.append((n, position))
            outputs.append(state)

        outputs_due = self._wanted()
        for _ in range(outputs_due.count_before(self.t0)):
            put(0, 0.0, y)
        if self.t0 == self.t1 and outputs_due.last:
            put(0, 0.0, y)
        for step, last in self._steps(y, first):
            n, end = step.n, 1.0 if last is None else last
            grid.nodes.append(step.t1)
            for position in outputs_due.within(step, end, 0.0 if last is None else self._slack(step)):
                if position >= 1.0:
                    put(n + 1, 0.0, step.y1)
                else:
                    put(n, position, self._between(step, position))
            if self.dense is not None:
                self.dense.add(step.t1, step.y, list(step.ends), step.y1, _moment(step, end))
            if keep is not None:
                if n and not keep(n) and n not in {at for at, position in grid.places if not position}:
                    del states[n]
                states[n + 1] = step.y1
            y, self.last = step.y1, step
        self._require_ended()
        self.row = len(outputs) - 1
        self.ts = outputs_due.times(grid, self.event)
        if missing := len(self.ts) - len(outputs):
            outputs += [tuple(torch.full_like(leaf, torch.nan) for leaf in y)] * missing
        return outputs, states

    @property
    def outcome(self) -> Result:
        """How the solve ended."""
        return self.loop.failed or (Result.SUCCESS if self.event is None else Result.EVENT)

    def _steps(self, y: Leaves, first: Leaves | None) -> Iterator[tuple[AcceptedStep, float | None]]:
        """The accepted steps, each with the position at which an event ended the solve (None: it did not)."""
        event = self.span.event
        steps = self.loop.steps(self.t0, y, first)
        if not isinstance(event, Event):
            yield from ((step, None) for step in steps)
            return
        watch = Watch(event, self.run.layout, self.loop.tableau, self.t0, y)
        if watch.undefined and self.t0 != self.t1:
            self.loop.failed = Result.EVENT_NAN
            return
        # what is kept of a step is kept before the field is called again, which might write on it
        counted = self.run.layout.memory.counted
        together = counted and self.dense is None and self.span.ts is None and self.loop.on is None
        for step, crossing in watched(self.loop, watch, steps, together=together):
            if crossing is None:
                yield step, None
                continue
            self.event, self.entry = _moment(step, crossing.position), crossing.entry
            yield step, crossing.position

    def _slack(self, step: AcceptedStep) -> float:
        """How far beyond the event a time in `ts` counts as that of the event, as a part of the step."""
        assert self.span.event is not None
        rounding = 64 * torch.finfo(self.run.layout.time).eps * max(abs(step.t), abs(step.t1))
        return (rounding + (self.span.event.tolerance or 0.0)) / abs(step.h)

    def _between(self, step: AcceptedStep, position: float) -> Leaves:
        return between(self.loop.tableau, position, step.y, step.h, step.ends)

    def _wanted(self) -> OutputTimes:
        span = self.span
        if span.ts is None:
            return OutputTimes([], last=True, every=False, direction=1.0)
        direction = 1.0 if self.t1 >= self.t0 else -1.0
        return OutputTimes([] if span.every else times_of(span), last=False, every=span.every, direction=direction)

    def _require_ended(self) -> None:
        loop = self.loop
        if loop.failed is None or not self.span.control.throw:
            return
        happened = loop.failed.happened
        if loop.failed is Result.MAX_STEPS and loop.tried < self.span.control.max_steps:
            happened = (
                f"at that pace, and at {lead(loop.tried):.0f} times it, {self.span.control.max_steps} steps would not "
                "reach t1"
            )
        raise SolveError(
            f"the solve stopped at t={self.grid.nodes[-1]:.8g} after {loop.n} steps "
            f"({loop.tried - loop.n} rejected): {happened}",
            remedy=f"{loop.failed.remedy}; PIDController(throw=False) returns what there is",
        )


def solve_adaptive(problem: Problem, methods: Callable[[Stats], Back], field: Field | None = None) -> Solution:
    """The solution of a problem with tolerances.

    Args:
        problem: the problem.
        methods: from the statistics to the gradient method.
        field: stands for the problem's own field and weights.

    Raises:
        SolveError: the solve could not go on, and the controller throws.
    """
    assert isinstance(problem.grid, Span)
    assert isinstance(problem.solver, Solver)
    state_layout, leaves = layout(problem.y0)
    with readable("an adaptive solve"):
        if problem.grid.control.per_sample:
            return solve_rows(problem, state_layout, leaves)
        return _solve_together(problem, methods, field, state_layout, leaves)


def _solve_together(
    problem: Problem, methods: Callable[[Stats], Back], field: Field | None, state_layout: Layout, leaves: Leaves
) -> Solution:
    assert isinstance(problem.grid, Span)
    stats = Stats("torch", problem.solver.label, problem.gradient.label, 0, 0)
    forward = begin(problem, state_layout, leaves, field or FunctionField(problem.field, problem.weights))
    run = forward.run
    leaves = from_start(problem.grid, run, leaves)
    ys = methods(stats)(forward, leaves)
    stats.steps, stats.rejected = forward.loop.n, forward.loop.tried - forward.loop.n
    stats.f_evaluations = forward.loop.evaluations
    if forward.dense is not None:
        forward.dense.require_graph(problem.gradient.label, ys)
    ys, event = at_event(forward, run, ys)
    ts = moments(forward.ts, state_layout.time, state_layout.device)
    if forward.event is not None and problem.grid.ts is not None and not problem.grid.every:
        rows = [i for i in range(len(forward.ts)) if i != forward.row]  # the event's own state is no output
        ts, ys = ts[rows], tuple(leaf[rows] for leaf in ys)
    ys = to_outputs(forward, run, ys)
    ys = tuple(state_layout.returned(leaf, i) for i, leaf in enumerate(ys))
    outcome = _CODES[forward.outcome]
    return Solution(ts, state_layout.unflatten(ys), stats, outcome, event, forward.dense)


def _moment(step: AcceptedStep, position: float) -> float:
    """The time at a position of a step."""
    return step.t1 if position == 1.0 else step.t + position * step.h


def begin(problem: Problem, state_layout: Layout, leaves: Leaves, field: Field) -> ForwardSolve:
    """A forward pass that is about to run."""
    span, solver = problem.grid, problem.solver
    assert isinstance(span, Span)
    assert isinstance(solver, Solver)
    t0, t1 = number("t0", span.t0), number("t1", span.t1)
    assert t0 is not None
    assert t1 is not None
    if state_layout.device.type == "meta":
        raise meta_state()
    state_layout = resolved(state_layout, t0, t1)
    require_times(state_layout.time, (t0, t1))
    depth = problem.weights
    count = 1 if depth is None or depth.kind == "shared" else depth.intervals or 1
    layers = (*(t0 + (t1 - t0) * m / count for m in range(count)), t1)
    stops, jumps = stops_of(span, t0, t1, layers, depth is not None and depth.kind == "piecewise")
    grid = Accepted(layers, jumps, state_layout.time, [t0])
    along = AcceptedField(field, grid)
    run = Run(along, state_layout, grid, solver)
    tolerance = Tolerance(span.control, state_layout, leaves)
    loop = AdaptiveLoop(
        evaluation(run), solver.tableau, span.control, tolerance, state_layout.device, state_layout.time, stops, jumps
    )
    loop.memory = state_layout.memory
    choices = problem.compile
    if choices is not None:
        assert isinstance(field, FunctionField)
        loop.compiled = lambda y, first: CompiledSteps(field, loop, state_layout, grid, choices, y, first)
    dense = Dense(solver.tableau, state_layout, t0, leaves) if span.dense else None
    return ForwardSolve(run, span, t0, t1, [], loop, dense)


def evaluation(run: Run) -> Evaluate:
    """The field in the forward pass, with nothing between it and the loop that need not be there."""
    state_layout, field = run.layout, run.field
    assert isinstance(field, AcceptedField)
    at, slope, direct, memory = field.at, state_layout.slope, field.field.direct(), state_layout.memory
    counted, returned = memory.counted, memory.slopes

    def evaluate(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        slopes = state_layout.evaluate(lambda y: at(t, time, y), y)
        memory.hold(slopes)
        return slopes

    if widened(state_layout):

        def evaluate_wide(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
            with explained(time):
                return evaluate(t, rank, time, y)

        return evaluate_wide
    if direct is None:
        return evaluate

    def call(t: Tensor, y: Any) -> Any:
        try:
            return direct(t, y)
        except RuntimeError as error:
            return record(error, direct, t, y)

    def evaluate_tree(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        slopes = state_layout.evaluate(lambda y: call(t, y), y)
        memory.hold(slopes)
        return slopes

    if not (state_layout.single and state_layout.dtypes == state_layout.carried):
        return evaluate_tree

    def evaluate_one(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        if memory.careful or not counted:
            return evaluate_tree(t, rank, time, y)
        (leaf,) = y
        before = leaf._version
        try:
            value = direct(t, leaf)
        except RuntimeError as error:
            value = record(error, direct, t, leaf)
        if leaf._version != before:
            raise written()
        if type(value) is Tensor and value.shape == leaf.shape and value.dtype is leaf.dtype:
            returned.append((slopes := (value,), value._version))
            return slopes
        slopes = slope(value, y)
        memory.hold(slopes)
        return slopes

    return evaluate_one


def times_of(span: Span) -> list[float]:
    """The times that are wanted, as floats."""
    ts: Any = span.ts
    times = [number("ts", t) for t in (ts.tolist() if isinstance(ts, Tensor) else ts)]
    return [t for t in times if t is not None]
