"""Gradients with respect to t0, t1, the times in `ts` and the time of an event, where these are tensors that need one.

They are those of the ODE: `dy(t)/dt = f(t, y)`, and y(t) moves with t0 as with y0 - (t0' - t0) f(t0, y0). The state is
moved by a difference that is zero and has the right derivative; one evaluation of f a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from odenet import Event, GradientError, Span, UnsupportedError
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.accepted import Along
from odenet_torch.steps.dense import shifted
from odenet_torch.steps.events import condition
from odenet_torch.steps.fixed import Run

if TYPE_CHECKING:
    from odenet_torch.steps.adaptive import Forward


def from_start(span: Span, run: Run, y0: Leaves) -> Leaves:
    """y0, with the derivative by t0.

    Raises:
        UnsupportedError: the layers of the weights would move with t0 or t1.
    """
    moving = [t for t in (span.t0, span.t1) if _needs(t)]
    if moving and isinstance(run.field, Along) and run.field.count > 1:
        raise UnsupportedError(
            "a gradient with respect to t0 or t1 with weights that change with depth, whose layers would move with it",
            "shared weights, or times that need no gradient",
        )
    if not _needs(span.t0):
        return y0
    return shifted(y0, -_zero(span.t0, run), slope_at(run, _number(span.t0), y0))


def to_outputs(found: Forward, ys: Leaves, event: Tensor | None) -> Leaves:
    """The outputs, with the derivatives by their times (before an event: those after it are lost)."""
    span, run = found.span, found.run
    wanted: list[Any] = [] if span.ts is None or span.every else list(span.ts)
    if span.ts is None and event is None:
        wanted = [span.t1]
    if not any(_needs(t) for t in wanted):
        return ys
    rows = list(zip(*(leaf.unbind(0) for leaf in ys), strict=True))
    for i, t in enumerate(wanted):
        if _needs(t) and bool(torch.isfinite(rows[i][0]).all()):
            rows[i] = shifted(rows[i], _zero(t, run), slope_at(run, _number(t), rows[i]))
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def at_event(found: Forward, ys: Leaves) -> tuple[Leaves, Tensor | None]:
    """The outputs and the time of the event, differentiable by the implicit function theorem.

    With g the condition, `dt = -(dg/dy dy) / (dg/dt + dg/dy f)`. Chen, Amos, Nickel 2021, "Learning neural event
    functions for ordinary differential equations", section 3.1.
    """
    span, run, t = found.span, found.run, found.event
    if span.event is None:
        return ys, None
    time = torch.as_tensor(torch.nan if t is None else t, dtype=run.layout.time, device=run.layout.device)
    if t is None or not torch.is_grad_enabled():
        return ys, time
    row = found.row
    y = tuple(leaf[row] for leaf in ys)
    value = condition(span.event, run.layout, time, y)[found.entry]
    if value.dtype is torch.bool:
        time, *y = WithoutRate.apply(time, *y)
    elif value.requires_grad:
        slope = slope_at(run, t, y)
        moved = -(value - value.detach()) / _rate(span.event, run.layout, found.entry, time, y, slope)
        y, time = shifted(y, moved, slope), time + moved.to(time.dtype)
    else:
        return ys, time
    ys = tuple(torch.cat([leaf[:row], last.unsqueeze(0), leaf[row + 1 :]]) for leaf, last in zip(ys, y, strict=True))
    return ys, time


class WithoutRate(torch.autograd.Function):
    """Time and state of an event whose condition is a boolean, which says nothing of how fast it is approached."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        if any(bool(g.any()) for g in gradients):  # NaN is true
            raise GradientError(
                "the time, or the state, of an event whose condition is a boolean has no derivative",
                "a condition that is a real number",
                "write y < 0 as the number y, with direction=-1",
            )
        return gradients


def _rate(event: Event, layout: Layout, entry: int, time: Tensor, y: Leaves, slope: Leaves) -> Tensor:
    """How fast an entry of the condition changes along the solution."""
    at = (time.detach().requires_grad_(), *(leaf.detach().requires_grad_() for leaf in y))
    along = (torch.ones_like(time), *slope)
    with torch.enable_grad():
        value = condition(event, layout, at[0], at[1:])[entry]
    parts = torch.autograd.grad(value, at, allow_unused=True)
    terms = [(g.conj() * k).real.sum() for g, k in zip(parts, along, strict=True) if g is not None]
    return torch.stack([term.to(value.dtype) for term in terms]).sum()


def slope_at(run: Run, t: float, y: Leaves) -> Leaves:
    """The field, without a derivative of its own."""
    assert isinstance(run.field, Along)
    with torch.no_grad():
        still = tuple(leaf.detach() for leaf in y)
        time = torch.full((), t, dtype=run.layout.time, device=run.layout.device)
        return run.layout.slope(run.field.at(time, t, run.layout.call(still)), still)


def _needs(t: Any) -> bool:
    return torch.is_grad_enabled() and isinstance(t, Tensor) and t.requires_grad


def _number(t: Tensor) -> float:
    return t.detach().item()


def _zero(t: Tensor, run: Run) -> Tensor:
    return (t - t.detach()).to(device=run.layout.device)
