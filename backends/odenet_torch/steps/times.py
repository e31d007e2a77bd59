"""Gradients with respect to t0, t1, the times in `ts` and the time of an event, where these are tensors that need one.

They are those of the ODE: `dy(t)/dt = f(t, y)`, and y(t) moves with t0 as with y0 - (t0' - t0) f(t0, y0). The state is
moved by a difference that is zero and has the right derivatives, up to the second: a midpoint step of no length.

Over 250 lines: one rule of derivative for each time that may need a gradient, and the node that all share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from odenet import GradientError, Span, UnsupportedError
from odenet.kit import add
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.accepted import AcceptedField
from odenet_torch.steps.dense import differentiable
from odenet_torch.steps.events import condition
from odenet_torch.steps.fixed import Run
from odenet_torch.steps.size_control import AdaptiveLoop


class ForwardPass(Protocol):
    """What is read of a forward pass (`odenet_torch.steps.adaptive.ForwardSolve`), after it."""

    span: Span
    loop: AdaptiveLoop
    event: float | None
    entry: int
    row: int


Slope = Callable[[Tensor, Leaves], Leaves]
"""The field of time and state, which autograd records."""


def from_start(span: Span, run: Run, y0: Leaves) -> Leaves:
    """y0, with the derivative by t0.

    Raises:
        UnsupportedError: the layers of the weights would move with t0 or t1.
    """
    depth = run.field.depth
    if depth is not None and depth.kind != "shared" and (moves(span.t0) or moves(span.t1)):
        raise UnsupportedError(
            "a gradient with respect to t0 or t1 with weights that change with depth, whose layers would move with it",
            "shared weights, or times that need no gradient",
            "take steps=N, where t0 and t1 set the size of the steps alone",
        )
    if not moves(span.t0):
        return y0
    by, start = zero(span.t0, run.layout), _number(span.t0)
    return moved(slope(run, start), _time(start, run.layout) + by, -by, y0)


def to_outputs(forward: ForwardPass, run: Run, ys: Leaves) -> Leaves:
    """The outputs, with the derivatives by their times (before an event: those after it are lost).

    Args:
        forward: the forward pass.
        run: as it was before the pass, whose weights have their graph.
        ys: the outputs.
    """
    span = forward.span
    times: list[Any] = list(span.ts) if not (span.ts is None or span.every) else []
    count = len(ys[0])
    if not times and forward.event is None and not forward.loop.failed:
        times = [None] * (count - 1) + [span.t1]
    if not any(moves(t) for t in times):
        return ys
    rows = list(zip(*(leaf.unbind(0) for leaf in ys), strict=True))
    for i, t in enumerate(times):
        if moves(t) and bool(torch.isfinite(rows[i][0]).all()):
            start = _number(t)
            rows[i] = moved(slope(run, start), _time(start, run.layout), zero(t, run.layout), rows[i])
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def at_event(forward: ForwardPass, run: Run, ys: Leaves) -> tuple[Leaves, Tensor | None]:
    """The outputs and the time of the event, differentiable by the implicit function theorem.

    Args:
        forward: the forward pass.
        run: as it was before the pass, whose weights have their graph.
        ys: the outputs.
    """
    span, t, layout = forward.span, forward.event, run.layout
    if span.event is None:
        return ys, None
    time = torch.full((), torch.nan if t is None else t, dtype=layout.time, device=layout.device)
    if t is None or not torch.is_grad_enabled():
        return ys, time
    event, row = span.event, forward.row
    y = tuple(leaf[row] for leaf in ys)

    def met(time: Tensor, y: Leaves) -> Tensor:
        return condition(event, layout, time, y)[forward.entry]

    if flat(met, slope(run, t), time, y):
        time, *y = WithoutRate.apply(time, *y)
    else:
        by = crossing(met, slope(run, t), time, y)
        if by is None:
            return ys, time
        y, time = moved(slope(run, t), time, by, y), time + by
    ys = tuple(torch.cat([leaf[:row], last.unsqueeze(0), leaf[row + 1 :]]) for leaf, last in zip(ys, y, strict=True))
    return ys, time


def flat(met: Callable[[Tensor, Leaves], Tensor], f: Slope, time: Tensor, y: Leaves) -> bool:
    """Whether a condition says nothing of how fast it is approached: a boolean, or a number that is made of one.

    One that depends on the time alone has a rate; it moves with nothing that the state depends on.
    """
    value = met(time, y)
    if value.dtype is torch.bool:
        return True
    return not differentiable(value) and any(map(differentiable, y)) and not bool(_rate(met, time, y, f))


class WithoutRate(torch.autograd.Function):
    """Time and state of an event whose condition is `flat`."""

    @staticmethod
    def forward(ctx: Any, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        if any(bool(g.any()) for g in gradients):  # NaN is true
            raise GradientError(
                "the time, or the state, of an event whose condition is a boolean, or a number without a graph (as is "
                "that of (y < 0).float() or y.detach()), has no derivative",
                "a condition that is a real number and changes with the state",
                "write y < 0 as the number y, with direction=-1",
            )
        return gradients


def moved(f: Slope, start: Tensor, by: Tensor, y: Leaves) -> Leaves:
    """The state at `start + by` on the solution through y at `start`, for a `by` that is zero and has derivatives.

    It is y with the first and second derivatives of the flow: by `by`, by y, and by what f reads. The slope that the
    midpoint is found with needs no graph: it would count in third derivatives alone.
    """
    with torch.no_grad():
        first = f(start, y)
    half = tuple(leaf + (by / 2).to(leaf.real.dtype) * k for leaf, k in zip(y, first, strict=True))
    slopes = f(start + by / 2, half)
    return add(y, tuple(_product(by.to(k.real.dtype), k) for k in slopes))


def crossing(met: Callable[[Tensor, Leaves], Tensor], f: Slope, time: Tensor, y: Leaves) -> Tensor | None:
    """By how much the time moves at which a condition is met: zero, with its derivatives.

    With g the condition, `dt = -(dg/dy dy + dg/dw dw) / (dg/dt + dg/dy f)`: a Newton step. A second one, from the
    condition at the moved time, makes second derivatives right. Chen, Amos, Nickel 2021, "Learning neural event
    functions for ordinary differential equations", section 3.1.

    Args:
        met: the condition, one number.
        f: the field.
        time, y: where it is met; y differentiable as the state at a fixed time.

    Returns:
        None where the condition needs no gradient.
    """
    value = met(time, y)
    if not differentiable(value):
        return None
    rate = _rate(met, time, y, f)
    if not bool(rate):  # the host was read to find the event: once more is no matter
        return _undefined(value, time)
    by = -(value - value.detach()) / rate
    again = met(time + by.to(time.dtype), moved(f, time, by, y))
    by = by - (again - again.detach()) / rate
    return by.to(time.dtype)


def moves(t: Any) -> bool:
    """Whether a time needs a gradient."""
    return isinstance(t, Tensor) and differentiable(t)


def zero(t: Tensor, layout: Layout) -> Tensor:
    """`t - t`, with the derivative of the first."""
    return (t - _plain(t)).reshape(()).to(dtype=layout.time, device=layout.device)


def slope(run: Run, at: float) -> Slope:
    """The field of time and state around a time of an adaptive solve."""
    along, layout = run.field, run.layout
    assert isinstance(along, AcceptedField)
    linear = along.depth is not None and along.depth.kind == "linear"

    def f(t: Tensor, y: Leaves) -> Leaves:
        value = layout.evaluate(lambda y: along.at(t, at, y), y, start=True)
        return tuple(_NoTimeDerivative.apply(k) for k in value) if linear and torch.is_grad_enabled() else value

    return f


def _product(by: Tensor, k: Tensor) -> Tensor:
    """`by k`; the gradient of k, which is zero, is made only where it has a derivative in its turn."""
    if torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0:
        return by * k
    return _Product.apply(by, k)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, by: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(by, k)
        return by * k

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        by, k = ctx.saved_tensors
        part = by * g if torch.is_grad_enabled() else None
        return (g * k.conj()).real.sum().to(by.dtype), part


class _NoTimeDerivative(torch.autograd.Function):
    """A slope whose weights are interpolated at a time that has no graph: it has no derivative by that time."""

    @staticmethod
    def forward(ctx: Any, k: Tensor) -> Tensor:
        return k.view_as(k)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise UnsupportedError(
            "a second derivative by a time with weights that are linear in depth",
            "first derivatives there; second ones with weights that are shared or piecewise",
        )


def _rate(met: Callable[[Tensor, Leaves], Tensor], time: Tensor, y: Leaves, f: Slope) -> Tensor:
    """How fast a condition changes along the solution."""
    with torch.no_grad():
        along = (torch.ones_like(time), *f(time, tuple(map(_plain, y))))
    still = (_plain(time), *map(_plain, y))
    if torch._C._are_functorch_transforms_active():  # which do not let a tensor be made to need a gradient
        _, back, *_ = torch.func.vjp(lambda t, *y: met(t, y), *still)
        parts = back(torch.ones((), dtype=time.dtype, device=time.device))
    else:
        with torch.enable_grad():
            at = tuple(leaf.detach().requires_grad_() for leaf in still)
            value = met(at[0], at[1:])
        parts = torch.autograd.grad(value, at, allow_unused=True) if value.requires_grad else ()
    terms = [(g.conj() * k).real.sum().double() for g, k in zip(parts, along, strict=False) if g is not None]
    return torch.stack(terms).sum().detach() if terms else torch.zeros((), dtype=torch.float64)


def _undefined(value: Tensor, time: Tensor) -> Tensor:
    """Zero, whose derivative is refused: the condition touches zero, and its time has none."""
    still = (value - value.detach()).to(time.dtype)
    if not still.requires_grad:
        return still

    def refuse(_: Tensor) -> None:
        raise GradientError(
            "the gradient of an event's time, whose condition does not change along the solution there",
            "conditions that cross zero at a rate",
            "take a condition that is not flat where it is met, or Solution.event_t.detach()",
        )

    still.register_hook(refuse)
    return still


def _plain(t: Tensor) -> Tensor:
    """A time without a derivative of any kind."""
    if torch.autograd.forward_ad._current_level >= 0:
        t = torch.autograd.forward_ad.unpack_dual(t).primal
    return t.detach()


def _number(t: Tensor) -> float:
    return _plain(t).item()


def _time(t: float, layout: Layout) -> Tensor:
    return torch.full((), t, dtype=layout.time, device=layout.device)
