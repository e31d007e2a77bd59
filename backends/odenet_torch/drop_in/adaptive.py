"""Adaptive methods: odenet's own loop, its times those of torchdiffeq's call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from odenet import Backprop, Event, PIDController, Problem, Solver, Span
from odenet_torch.drop_in.flow import Flow
from odenet_torch.field.differentiating import readable
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Leaves, layout
from odenet_torch.gradients.accepted_steps import plain
from odenet_torch.steps.adaptive import Forward, begin
from odenet_torch.steps.size_control import EVER, On
from odenet_torch.steps.times import from_start, moves, to_outputs


def solve(flow: Flow, solver: Solver, control: PIDController, on: On | None) -> tuple[Tensor | None, Tensor]:
    """The time of the event (None without one), and the state at the times (with one: at t0 and there).

    Raises:
        SolveError: it could not go on.
    """
    with readable("an adaptive solve"):
        return _solve(flow, solver, control, on)


def _solve(flow: Flow, solver: Solver, control: PIDController, on: On | None) -> tuple[Tensor | None, Tensor]:
    if flow.event_fn is None:
        found, leaves = forward(flow, solver, control, on)
        ys = to_outputs(found, found.run, plain(found, leaves))
        return None, found.run.layout.returned(ys[0], 0)
    if 0.0 in flow.signs(flow.times[0], flow.y0):
        return flow.t[0].detach(), torch.stack([flow.y0, flow.y0])
    found, leaves = forward(flow, solver, control, on)
    (last,) = plain(found, leaves)
    assert found.event is not None
    event_t = torch.tensor(found.event, dtype=flow.t.dtype, device=flow.t.device)
    return event_t, torch.stack([flow.y0, found.run.layout.returned(last[-1], 0)])


def forward(
    flow: Flow, solver: Solver, control: PIDController, on: On | None = None, *, dense: bool = False
) -> tuple[Forward, Leaves]:
    """A pass that is about to run, and where it begins."""
    moving = moves(flow.t)
    ts: Any = flow.t.unbind(0) if moving else flow.times
    if flow.event_fn is None:
        span = Span(ts[0], ts[-1], ts, control, dense=dense)
    else:
        found = [each for each in torch.as_tensor(control.atol).reshape(-1).tolist() if each > 0]
        event = Event(flow.event, tolerance=min(found, default=None))
        span = Span(ts[0], flow.direction * EVER, None, control, event)
    made = Problem(flow.f, flow.y0, None, span, solver, Backprop())
    given, leaves = layout(flow.y0)
    run = begin(made, given, leaves, FunctionField(flow.f, None))
    run.walk.on = on
    return run, from_start(span, run.run, leaves)
