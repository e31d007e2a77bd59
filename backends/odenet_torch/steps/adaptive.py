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
from odenet_torch.steps.accepted import Accepted, Along, stops_of
from odenet_torch.steps.compiled import CompiledSteps
from odenet_torch.steps.dense import Dense, between
from odenet_torch.steps.events import Watch
from odenet_torch.steps.fixed import Run
from odenet_torch.steps.per_sample import solve_rows
from odenet_torch.steps.resolution import explained, resolved, widened
from odenet_torch.steps.size_control import Evaluate, Step, Walk
from odenet_torch.steps.times import at_event, from_start, to_outputs
from odenet_torch.steps.tolerance import Tolerance

Back = Callable[["Forward", Leaves], Leaves]
"""A gradient method: the outputs' leaves with a leading time axis, differentiable in its way."""


@dataclass
class Wanted:
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

    def within(self, step: Step, end: float, slack: float = 0.0) -> Iterator[float]:
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
class Forward:
    """A forward pass, before and after it has run.

    Args:
        run: whose grid grows as steps are accepted.
        span: times and control.
        t0, t1: ends of the solve.
        ts: the times of the outputs, once it has run.
        walk: the loop.
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
    walk: Walk
    dense: Dense | None
    event: float | None = None
    entry: int = 0
    row: int = -1

    @property
    def grid(self) -> Accepted:
        """The steps."""
        assert isinstance(self.run.grid, Accepted)
        return self.run.grid

    def pass_over(
        self, y: Leaves, keep: Callable[[int], bool] | None = None, first: Leaves | None = None
    ) -> tuple[list[Leaves], dict[int, Leaves]]:
        """Solve.

        Args:
            y: the state at t0.
            keep: the indices of states that a way back is to be given, beside the last.
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

        wanted = self._wanted()
        for _ in range(wanted.count_before(self.t0)):
            put(0, 0.0, y)
        if self.t0 == self.t1 and wanted.last:
            put(0, 0.0, y)
        for step, last in self._steps(y, first):
            n, end = step.n, 1.0 if last is None else last
            grid.nodes.append(step.t1)
            for position in wanted.within(step, end, 0.0 if last is None else self._slack(step)):
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
            y = step.y1
        self._require_ended()
        self.row = len(outputs) - 1
        self.ts = wanted.times(grid, self.event)
        lost = tuple(torch.full_like(leaf, torch.nan) for leaf in y)
        return outputs + [lost] * (len(self.ts) - len(outputs)), states

    @property
    def outcome(self) -> Result:
        """How it ended."""
        return self.walk.failed or (Result.SUCCESS if self.event is None else Result.EVENT)

    def _steps(self, y: Leaves, first: Leaves | None) -> Iterator[tuple[Step, float | None]]:
        """The accepted steps, each with the position at which an event ended the solve (None: it did not)."""
        event = self.span.event
        watch = None
        if isinstance(event, Event):
            watch = Watch(event, self.run.layout, self.walk.tableau, self.t0, y)
        for step in self.walk.steps(self.t0, y, first):
            crossing = None if watch is None else watch.crossing(step)
            if crossing is not None:
                self.event, self.entry = _moment(step, crossing.position), crossing.entry
                yield step, crossing.position
                return
            yield step, None

    def _slack(self, step: Step) -> float:
        """How far beyond the event a time in `ts` counts as that of the event, as a part of the step."""
        assert self.span.event is not None
        rounding = 64 * torch.finfo(self.run.layout.time).eps * max(abs(step.t), abs(step.t1))
        return (rounding + (self.span.event.tolerance or 0.0)) / abs(step.h)

    def _between(self, step: Step, position: float) -> Leaves:
        return between(self.walk.tableau, position, step.y, step.h, step.ends)

    def _wanted(self) -> Wanted:
        span = self.span
        if span.ts is None:
            return Wanted([], last=True, every=False, direction=1.0)
        direction = 1.0 if self.t1 >= self.t0 else -1.0
        return Wanted([] if span.every else times_of(span), last=False, every=span.every, direction=direction)

    def _require_ended(self) -> None:
        walk = self.walk
        if walk.failed is None or not self.span.control.throw:
            return
        happened = walk.failed.happened
        if walk.failed is Result.MAX_STEPS and walk.tried < self.span.control.max_steps:
            happened = (
                f"at that pace, and at a thousand times it, {self.span.control.max_steps} steps would not reach t1"
            )
        raise SolveError(
            f"the solve stopped at t={self.grid.nodes[-1]:.8g} after {walk.n} steps "
            f"({walk.tried - walk.n} rejected): {happened}",
            remedy=f"{walk.failed.remedy}; PIDController(throw=False) returns what there is",
        )


def solve_adaptive(made: Problem, methods: Callable[[Stats], Back], field: Field | None = None) -> Solution:
    """The solution of a problem with tolerances.

    Args:
        made: the problem.
        methods: from the statistics to the gradient method.
        field: stands for the problem's own field and weights.

    Raises:
        SolveError: the solve could not go on, and the controller throws.
    """
    assert isinstance(made.grid, Span)
    assert isinstance(made.solver, Solver)
    given, leaves = layout(made.y0)
    with readable("an adaptive solve"):
        if made.grid.control.per_sample:
            return solve_rows(made, given, leaves)
        return _solve_together(made, methods, field, given, leaves)


def _solve_together(
    made: Problem, methods: Callable[[Stats], Back], field: Field | None, given: Layout, leaves: Leaves
) -> Solution:
    assert isinstance(made.grid, Span)
    stats = Stats("torch", made.solver.label, made.gradient.label, 0, 0)
    found = begin(made, given, leaves, field or FunctionField(made.field, made.weights))
    run = found.run
    leaves = from_start(made.grid, run, leaves)
    ys = methods(stats)(found, leaves)
    stats.steps, stats.rejected = found.walk.n, found.walk.tried - found.walk.n
    stats.f_evaluations = found.walk.evaluations
    if found.dense is not None:
        found.dense.require_graph(made.gradient.label, ys)
    ys, event = at_event(found, run, ys)
    ts = torch.tensor(found.ts, dtype=given.time, device=given.device)
    if found.event is not None and made.grid.ts is not None and not made.grid.every:
        asked = [i for i in range(len(found.ts)) if i != found.row]  # the event's own state is no output
        ts, ys = ts[asked], tuple(leaf[asked] for leaf in ys)
    ys = to_outputs(found, run, ys)
    ys = tuple(given.returned(leaf, i) for i, leaf in enumerate(ys))
    outcome = list(Result).index(found.outcome)
    return Solution(ts, given.unflatten(ys), stats, outcome, event, found.dense)


def _moment(step: Step, position: float) -> float:
    """The time at a position of a step."""
    return step.t1 if position == 1.0 else step.t + position * step.h


def begin(made: Problem, given: Layout, leaves: Leaves, field: Field) -> Forward:
    """A forward pass that is about to run."""
    span, solver = made.grid, made.solver
    assert isinstance(span, Span)
    assert isinstance(solver, Solver)
    t0, t1 = number("t0", span.t0), number("t1", span.t1)
    assert t0 is not None
    assert t1 is not None
    if given.device.type == "meta":
        raise meta_state()
    given = resolved(given, t0, t1)
    require_times(given.time, (t0, t1))
    depth = made.weights
    count = 1 if depth is None or depth.kind == "shared" else depth.intervals or 1
    layers = (*(t0 + (t1 - t0) * m / count for m in range(count)), t1)
    stops, jumps = stops_of(span, t0, t1, layers, depth is not None and depth.kind == "piecewise")
    grid = Accepted(layers, jumps, given.time, [t0])
    along = Along(field, grid)
    run = Run(along, given, grid, solver)
    tolerance = Tolerance(span.control, given, leaves)
    walk = Walk(evaluation(run), solver.tableau, span.control, tolerance, given.device, given.time, stops, jumps)
    walk.memory = given.memory
    choices = made.compile
    if choices is not None:
        assert isinstance(field, FunctionField)
        walk.compiled = lambda y, first: CompiledSteps(field, walk, given, grid, choices, y, first)
    dense = Dense(solver.tableau, given, t0, leaves) if span.dense else None
    return Forward(run, span, t0, t1, [], walk, dense)


def evaluation(run: Run) -> Evaluate:
    """The field in the forward pass, with nothing between it and the loop that need not be there."""
    given, field = run.layout, run.field
    assert isinstance(field, Along)
    at, slope, direct, memory = field.at, given.slope, field.field.direct(), given.memory
    counted, held = memory.counted, memory.held

    def evaluate(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        found = given.evaluate(lambda y: at(t, time, y), y)
        memory.hold(found)
        return found

    if widened(given):

        def evaluate_wide(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
            with explained(time):
                return evaluate(t, rank, time, y)

        return evaluate_wide
    if direct is None:
        return evaluate

    def called(t: Tensor, y: Any) -> Any:
        try:
            return direct(t, y)
        except RuntimeError as error:
            return record(error, direct, t, y)

    def evaluate_tree(t: Tensor, rank: int, time: float, y: Leaves) -> Leaves:
        found = given.evaluate(lambda y: called(t, y), y)
        memory.hold(found)
        return found

    if not (given.single and given.given == given.carried):
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
            held.append((found := (value,), value._version))
            return found
        found = slope(value, y)
        memory.hold(found)
        return found

    return evaluate_one


def times_of(span: Span) -> list[float]:
    """The times that are wanted, as floats."""
    given: Any = span.ts
    found = [number("ts", t) for t in (given.tolist() if isinstance(given, Tensor) else given)]
    return [t for t in found if t is not None]
