"""Adaptive methods: odenet's own loop, its times those of torchdiffeq's call."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import Backprop, Event, InputError, PIDController, Problem, SolveError, Solver, Span
from odenet.kit import Compile, Tableau, compiling, interpolant, weigh
from odenet_torch.drop_in.compiled import traced
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.words import stopped
from odenet_torch.field.differentiating import readable
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.gradients.accepted_steps import plain
from odenet_torch.steps.adaptive import ForwardSolve, begin
from odenet_torch.steps.compiled import compilable
from odenet_torch.steps.dense import differentiable, times_of_any_shape
from odenet_torch.steps.size_control import EVER, StepCallbacks
from odenet_torch.steps.times import from_start, moves, to_outputs


def solve(
    flow: OdeintProblem, solver: Solver, control: PIDController, on: StepCallbacks | None, compile: Compile = False
) -> tuple[Tensor | None, Tensor]:
    """The time of the event (None without one), and the state at the times (with one: at t0 and there).

    Raises:
        SolveError: it could not go on.
    """
    with readable("an adaptive solve"):
        return _solve(flow, solver, control, on, compile)


def _solve(
    flow: OdeintProblem, solver: Solver, control: PIDController, on: StepCallbacks | None, compile: Compile
) -> tuple[Tensor | None, Tensor]:
    if flow.event_fn is None:
        forward_pass, leaves = forward(flow, solver, control, on, compile=compile)
        ys = to_outputs(forward_pass, forward_pass.run, run(flow, forward_pass, leaves))
        if flow.recording is not None:
            flow.recording.accepted = solver.tableau, forward_pass.grid.nodes
        return None, forward_pass.run.layout.returned(ys[0], 0)
    if 0.0 in flow.first_signs():
        return flow.t[0].detach(), torch.stack([flow.y0, flow.y0])
    forward_pass, leaves = forward(flow, solver, control, on, compile=compile)
    (last,) = run(flow, forward_pass, leaves)
    if forward_pass.event is None:  # nothing moves, so that steps grow up to the end of all times
        raise SolveError(
            f"no event occurred up to t={forward_pass.grid.nodes[-1]:.8g}", remedy="look at the signs of event_fn"
        )
    event_t = torch.tensor(forward_pass.event, dtype=flow.t.dtype, device=flow.t.device)
    return event_t, torch.stack([flow.y0, forward_pass.run.layout.returned(last[-1], 0)])


def run(flow: OdeintProblem, forward_pass: ForwardSolve, leaves: Leaves) -> Leaves:
    """The outputs of a pass that is about to run.

    Raises:
        SolveError: it could not go on.
    """
    try:
        return plain(forward_pass, leaves)
    except SolveError:
        if forward_pass.loop.failed is None:  # it was a solve within func
            raise
        raise stopped(flow, forward_pass) from None


def forward(
    flow: OdeintProblem,
    solver: Solver,
    control: PIDController,
    on: StepCallbacks | None = None,
    *,
    dense: bool = False,
    compile: Compile = False,
) -> tuple[ForwardSolve, Leaves]:
    """A pass that is about to run, and where it begins."""
    moving = moves(flow.t)
    ts: Any = flow.t.unbind(0) if moving else flow.times
    if flow.event_fn is None:
        span = Span(ts[0], ts[-1], ts, control, dense=dense)
    else:
        tolerances = [bound for bound in torch.as_tensor(control.atol).reshape(-1).tolist() if bound > 0]
        event = Event(flow.event, tolerance=min(tolerances, default=None))
        span = Span(ts[0], flow.direction * EVER, None, control, event)
    problem = Problem(flow.f, flow.y0, None, span, solver, Backprop(), compiling(compile))
    state_layout, leaves = flow.layout()
    field = FunctionField(flow.f, None)
    if problem.compile is not None:
        problem = dataclasses.replace(problem, compile=compilable(problem))
        field.traced, field.module, field.inner = traced(flow), flow.func, flow.reads
    ready = begin(problem, state_layout, leaves, field)
    ready.loop.on = on
    return ready, from_start(span, ready.run, leaves)


@dataclass(frozen=True)
class Continuous:
    """`y(t)` for times of any shape, which leads that of the result; differentiable by these, too.

    Args:
        tableau: the method.
        layout: of the state.
        nodes: ends of the steps, in the order of the solve.
        steps: of each the state at its start, and its slopes.
    """

    tableau: Tableau
    layout: Layout
    nodes: Sequence[float]
    steps: Sequence[tuple[Leaves, Sequence[Leaves], Leaves]]

    def __call__(self, t: Any) -> Tensor:
        """The state at times t.

        Raises:
            InputError: a time outside of the solve.
        """
        times = times_of_any_shape(t)
        moving = differentiable(times)
        flat = times.reshape(-1)
        if not len(flat):
            raise InputError("odeint_dense's solution at no time", "at least one time")
        states = [
            self._at(time, flat[i] if moving else time) for i, time in enumerate(flat.detach().double().cpu().tolist())
        ]
        stacked = torch.stack(states)
        return self.layout.returned(stacked.reshape((*times.shape, *stacked.shape[1:])), 0)

    def _at(self, t: float, time: Any) -> Tensor:
        nodes = self.nodes
        sign = 1 if nodes[-1] >= nodes[0] else -1
        slack = 1e-6 * abs(nodes[-1] - nodes[0])
        if not sign * nodes[0] - slack <= sign * t <= sign * nodes[-1] + slack:
            raise InputError(f"odeint_dense's solution at t={t}", f"times between {nodes[0]} and {nodes[-1]}")
        n = bisect.bisect_right([sign * node for node in nodes], sign * t) - 1
        n = max(0, min(n, len(self.steps) - 1))
        y, slopes, _ = self.steps[n]
        h = nodes[n + 1] - nodes[n]
        (state,) = weigh(y, h, interpolant(self.tableau).weights((time - nodes[n]) / h), slopes)
        return state.to(y[0].dtype)  # a state without an axis would be widened by a time in double
