"""Adaptive methods: odenet's own loop, its times those of torchdiffeq's call."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from odenet import Backprop, Event, PIDController, Problem, SolveError, Solver, Span
from odenet.kit import Compile, compiling
from odenet_torch.drop_in.flow import Flow, parts
from odenet_torch.drop_in.words import stopped
from odenet_torch.field.differentiating import readable
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Leaves, layout
from odenet_torch.gradients.accepted_steps import plain
from odenet_torch.steps.adaptive import Forward, begin
from odenet_torch.steps.compiled import compilable
from odenet_torch.steps.size_control import EVER, On
from odenet_torch.steps.times import from_start, moves, to_outputs


def solve(
    flow: Flow, solver: Solver, control: PIDController, on: On | None, compile: Compile = False
) -> tuple[Tensor | None, Tensor]:
    """The time of the event (None without one), and the state at the times (with one: at t0 and there).

    Raises:
        SolveError: it could not go on.
    """
    with readable("an adaptive solve"):
        return _solve(flow, solver, control, on, compile)


def _solve(
    flow: Flow, solver: Solver, control: PIDController, on: On | None, compile: Compile
) -> tuple[Tensor | None, Tensor]:
    if flow.event_fn is None:
        found, leaves = forward(flow, solver, control, on, compile=compile)
        ys = to_outputs(found, found.run, run(flow, found, leaves))
        return None, found.run.layout.returned(ys[0], 0)
    if 0.0 in flow.signs(flow.times[0], flow.y0):
        return flow.t[0].detach(), torch.stack([flow.y0, flow.y0])
    found, leaves = forward(flow, solver, control, on, compile=compile)
    (last,) = run(flow, found, leaves)
    assert found.event is not None
    event_t = torch.tensor(found.event, dtype=flow.t.dtype, device=flow.t.device)
    return event_t, torch.stack([flow.y0, found.run.layout.returned(last[-1], 0)])


def run(flow: Flow, found: Forward, leaves: Leaves) -> Leaves:
    """The outputs of a pass that is about to run.

    Raises:
        SolveError: it could not go on.
    """
    try:
        return plain(found, leaves)
    except SolveError:
        if found.walk.failed is None:  # it was a solve within func
            raise
        raise stopped(flow, found) from None


def forward(
    flow: Flow,
    solver: Solver,
    control: PIDController,
    on: On | None = None,
    *,
    dense: bool = False,
    compile: Compile = False,
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
    made = Problem(flow.f, flow.y0, None, span, solver, Backprop(), compiling(compile))
    given, leaves = layout(flow.y0)
    field = FunctionField(flow.f, None)
    if made.compile is not None:
        made = dataclasses.replace(made, compile=compilable(made))
        field.traced, field.module, field.inner = (
            functools.partial(_slope, flow.func, flow.shapes),
            flow.func,
            flow.reads,
        )
    ready = begin(made, given, leaves, field)
    ready.walk.on = on
    return ready, from_start(span, ready.run, leaves)


def _slope(func: Any, shapes: tuple[torch.Size, ...] | None, t: Tensor, y: Tensor) -> Tensor:
    """What `Flow.f` does of each evaluation, for a graph."""
    value = func(t.to(y.real.dtype), y if shapes is None else parts(y, shapes))
    value = value if shapes is None else torch.cat([part.reshape(-1) for part in value])
    return value.to(y.dtype) if y.is_complex() or not value.is_complex() else value  # that widens the state
