"""Methods without an error estimate: steps from time to time, or over a grid of the user's.

Over 250 lines: grid, steps, what lies between them and their events share the record of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import GridError, InputError, SolveError, Solver
from odenet.kit import Compile, Tableau, add, shown, slopes
from odenet_torch.drop_in.compiled import EqualSteps, choices
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.options import Spacing, unwritten
from odenet_torch.field.memory import overwritten, versions
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.dense import differentiable
from odenet_torch.steps.size_control import StepCallbacks
from odenet_torch.steps.weighted_sum import weigh_leaves

_MOST = 2**31 - 1  # steps
_EVENT_STEPS = 20000  # as there: then it is given up
_PARTS = tuple(i / 8 for i in range(1, 8))  # of the step in which an event happened, whose ends are looked at
_ROUNDING = 1e-6  # of a step: what is smaller is no step of its own

Evaluate = Callable[[Tensor, Leaves], Leaves]


@dataclass
class FixedStep:
    """A step.

    Args:
        n: its index.
        t, t1: its ends.
        h: its signed size, differentiable where the times are.
        end: t1, differentiable as well.
        y, y1: the states there.
        slopes: of its stages.
    """

    n: int
    t: float
    t1: float
    h: Any
    end: Tensor
    y: Leaves
    y1: Leaves
    slopes: Sequence[Leaves]


def solve(
    flow: OdeintProblem, solver: Solver, spacing: Spacing, on: StepCallbacks | None, compile: Compile = False
) -> tuple[Tensor | None, Tensor]:
    """Solve in equal steps; arguments and results are those of `odenet_torch.drop_in.adaptive.solve`."""
    chosen = choices(compile)
    graph = None if chosen is None else EqualSteps(flow, chosen, solver.tableau)
    event_t, ys = _solve(flow, solver, spacing, on, graph)
    return event_t, ys if graph is None else graph.returned(ys)


def _solve(
    flow: OdeintProblem, solver: Solver, spacing: Spacing, on: StepCallbacks | None, graph: EqualSteps | None
) -> tuple[Tensor | None, Tensor]:
    state_layout, y0 = flow.layout()

    def evaluate(t: Tensor, y: Leaves) -> Leaves:
        return state_layout.evaluate(lambda at: flow.f(t, at), y)

    if flow.event_fn is not None:
        return _until_event(flow, solver.tableau, spacing, on, (state_layout, y0, evaluate), graph)
    if len(flow.times) == 1:
        return None, flow.y0.unsqueeze(0)
    grid, outputs, direction = nodes(flow, spacing, flow.y0, flow.t), [y0[0]], flow.direction
    moving = differentiable(flow.t)
    on_stage = None if flow.recording is None else flow.recording.forth(solver.tableau, spacing.perturb)
    run = None if graph is None else graph.step
    for step in steps(evaluate, solver.tableau, y0, grid, state_layout.time, spacing.perturb, on, on_stage, run):
        while len(outputs) < len(flow.times) and direction * step.t1 >= direction * (t := flow.times[len(outputs)]):
            # a time at which a step ends moves within it, unless the grid is made of the times themselves
            if t == step.t1 and not (moving and (spacing.interp == "cubic" or grid is not flow.t)):
                outputs.append(step.y1[0])
                continue
            offset = (flow.t[len(outputs)] - grid[step.n]).to(state_layout.time) if moving else t - step.t
            outputs.append(_between(step, offset / step.h, spacing.interp, evaluate))
    return None, state_layout.returned(torch.stack(outputs), 0)


def nodes(flow: OdeintProblem, spacing: Spacing, y0: Tensor, t: Tensor) -> Tensor:
    """The ends of all steps.

    Args:
        flow: with the function.
        spacing: of steps.
        y0: the state.
        t: first and last time, and those between them that are wanted.

    Raises:
        GridError: a grid that does not go from the first of the times to the last.
    """
    if spacing.grid_constructor is not None:
        with unwritten("grid_constructor", (y0,)):
            grid = spacing.grid_constructor(flow.func if flow.shapes is None else flow.f, y0, t)
        if not isinstance(grid, Tensor) or not grid.is_floating_point() or grid.ndim != 1 or not len(grid):
            raise GridError(f"grid_constructor made {shown(grid)}", "a one-dimensional tensor of floats")
        ends, expected = [grid[0].item(), grid[-1].item()], [t[0].item(), t[-1].item()]
        if ends != expected:
            raise GridError(
                f"grid_constructor made a grid from {ends[0]} to {ends[1]}", f"{expected[0]} to {expected[1]}"
            )
        if not bool((torch.diff(grid.detach()) * math.copysign(1.0, expected[1] - expected[0]) >= 0).all()):
            raise GridError(f"grid_constructor made {shown(grid.tolist())}", "times in the order of the solve")
        return grid
    if spacing.step_size is None:
        return t
    steps_in_all = (t[-1] - t[0]).item() / spacing.step_size
    # a last step of nothing but rounding is none
    if abs(steps_in_all) > _MOST:
        raise GridError(f"step_size={spacing.step_size} makes {abs(steps_in_all):.1e} steps", f"at most {_MOST}")
    count = max(1, math.ceil(abs(steps_in_all) - _ROUNDING))
    places = torch.arange(count, dtype=t.dtype, device=t.device) * math.copysign(spacing.step_size, steps_in_all)
    return torch.cat([places + t[0], t[-1:]])


def steps(
    evaluate: Evaluate,
    tableau: Tableau,
    y: Leaves,
    grid: Tensor,
    time: torch.dtype,
    perturb: bool,
    on: StepCallbacks | None,
    on_stage: Callable[[int, int, float, float], None] | None = None,
    run: Callable[[Leaves, Tensor], tuple[Leaves, Sequence[Leaves]]] | None = None,
) -> Iterator[FixedStep]:
    """Those from the first node of a grid to the last; nothing is read from the device but the grid, and that once.

    Args:
        evaluate: the field.
        tableau: the method.
        y: the state at the first node.
        grid: the nodes.
        time: number type of the times that the field is called with.
        perturb: see `Spacing`.
        on: who is told of steps.
        on_stage: who is told of stages, with the step, the stage and the ends of the step, before each.
        run: a compiled step: from the state, and the size of the step with the times of its stages, to the state at
            its end and the slopes.
    """
    ends = grid.tolist()
    precise = grid.to(torch.promote_types(grid.dtype, time))
    size = precise[1:] - precise[:-1]
    moving = differentiable(size)
    sizes: Sequence[Any] = size.to(time).unbind(0) if moving else size.tolist()
    times = _stage_times(precise, size, tableau, time, perturb)
    rows = (times if run is None else torch.cat([size[:, None].to(time), times], 1)).unbind(0)
    lasts = precise[1:].to(time).unbind(0)
    h: Any
    for n, (h, row, last) in enumerate(zip(sizes, rows, lasts, strict=True)):
        if on is not None:
            on.tried(ends[n], y, float(h))
        if run is not None:
            if on_stage is not None:
                on_stage(n, 0, ends[n], ends[n + 1])
            y1, ks = run(y, row)
            yield FixedStep(n, ends[n], ends[n + 1], h, last, y, y1, ks)
            y = y1
            continue
        at, counts = row.unbind(0), []

        def stage(i: int, state: Leaves, n: int = n, at: Sequence[Tensor] = at, counts: list[int] = counts) -> Leaves:
            if on_stage is not None:
                on_stage(n, i, ends[n], ends[n + 1])
            slope = evaluate(at[i], state)
            counts.append(versions(slope))
            return slope

        ks = slopes(tableau, stage, y, h)
        if len(counts) > 1 and [versions(k) for k in ks] != counts:
            raise overwritten()
        # first the increment: each term on its own added to y would round it once more
        y1 = add(y, weigh_leaves(None, h, tableau.b, ks))
        yield FixedStep(n, ends[n], ends[n + 1], h, last, y, y1, ks)
        y = y1


def _stage_times(grid: Tensor, size: Tensor, tableau: Tableau, time: torch.dtype, perturb: bool) -> Tensor:
    """The times of all stages, one row a step."""
    c = torch.tensor(tableau.c[: tableau.step_stages], dtype=grid.dtype, device=grid.device)
    times = torch.where(c == 1, grid[1:, None], grid[:-1, None] + size[:, None] * c).to(time)
    if not perturb:
        return times
    with torch.no_grad():
        ahead = (size[:, None].sign() * math.inf).to(time)
        beside = torch.where(c == 1, torch.nextafter(times, -ahead), times)
        beside[:, :1] = torch.nextafter(times[:, :1], ahead)
        move = beside - times
    return times + move


def _between(step: FixedStep, position: Any, interp: str, evaluate: Evaluate) -> Tensor:
    """The state within a step, on a line or on a cubic (Hermite) that has the slopes of its ends."""
    p, (y,), (y1,) = position, step.y, step.y1
    if interp == "linear":
        return y + p * (y1 - y)
    (first,), before = step.slopes[0], versions(step.slopes[0])
    (last,) = evaluate(step.end, step.y1)
    if versions(step.slopes[0]) != before:
        raise overwritten()
    slopes_part = (1 - p) * first - p * last
    return y + p * p * (3 - 2 * p) * (y1 - y) + step.h * p * (1 - p) * slopes_part


def _until_event(
    flow: OdeintProblem,
    tableau: Tableau,
    spacing: Spacing,
    on: StepCallbacks | None,
    start: tuple[Layout, Leaves, Evaluate],
    graph: EqualSteps | None,
) -> tuple[Tensor, Tensor]:
    state_layout, y, evaluate = start
    run = None if graph is None else graph.step
    if spacing.step_size is None:
        raise InputError("an event with a method of fixed steps and no step_size", "options={'step_size': h}")
    before = flow.first_signs()
    if 0.0 in before:
        return flow.t[0].detach(), torch.stack([flow.y0, flow.y0])
    h = flow.direction * spacing.step_size
    for n in range(_EVENT_STEPS):
        ends = flow.t[0] + torch.arange(n, n + 2, dtype=flow.t.dtype, device=flow.t.device) * h
        (step,) = steps(evaluate, tableau, y, ends, state_layout.time, spacing.perturb, on, None, run)
        y = step.y1
        if flow.signs(step.t1, state_layout.call(y)) != before:
            break
    else:
        raise SolveError(
            f"no event within {_EVENT_STEPS} steps of step_size={spacing.step_size}",
            remedy="take a larger step_size, or look at the signs of event_fn",
        )

    def at(position: Any) -> Tensor:
        return state_layout.returned(_between(step, position, spacing.interp, evaluate), 0)

    def changed(position: float) -> bool:
        return flow.signs(step.t + position * h, at(position)) != before

    with torch.no_grad():
        # of several changes within the step the first
        high = next((position for position in _PARTS if changed(position)), 1.0)
        low = high - _PARTS[0]
        while high - low > max(spacing.precision / abs(h), 2.0**-52):
            middle = (low + high) / 2
            low, high = (low, middle) if changed(middle) else (middle, high)
    event_t = torch.tensor(step.t + high * h, dtype=flow.t.dtype, device=flow.t.device)
    place = ((step.t + high * h - ends[0]) / h).to(state_layout.time) if differentiable(ends) else high
    return event_t, torch.stack([flow.y0, at(place)])
