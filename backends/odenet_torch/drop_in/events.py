"""The gradient of an event's time, where it is found without one."""

from __future__ import annotations

import torch
from torch import Tensor

from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.field.state import Leaves
from odenet_torch.steps.times import WithoutRate, crossing, flat, moved


def linked(flow: OdeintProblem, event_t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The event's time and the state then, moving with all that the condition depends on.

    Args:
        flow: with its `event_fn`.
        event_t: the time.
        y: the state, differentiable as the state at a fixed time.
    """
    event_t = event_t.detach()
    if not torch.is_grad_enabled():
        return event_t, y
    entry = 0 if flow.event(event_t, y.detach()).dtype is torch.bool else _entry(flow, event_t, y)

    def met(time: Tensor, at: Leaves) -> Tensor:
        return flow.event(time, at[0])[entry]

    def slope(time: Tensor, at: Leaves) -> Leaves:
        return (flow.f(time, at[0]),)

    if flat(met, slope, event_t, (y,)):
        event_t, y = WithoutRate.apply(event_t, y)
        return event_t, y
    by = crossing(met, slope, event_t, (y,))
    if by is None:
        return event_t, y
    return event_t + by, moved(slope, event_t, by, (y,))[0]


def _entry(flow: OdeintProblem, event_t: Tensor, y: Tensor) -> int:
    """Of several conditions, the one that is nearest to zero, for its rate."""
    time, at = event_t.clone().requires_grad_(), y.detach().requires_grad_()
    values = flow.event(time, at)
    if len(values) == 1:
        return 0
    rates = torch.zeros_like(values)
    with torch.no_grad():
        slope = flow.f(event_t, y)
    for i in range(len(values) if values.requires_grad else 0):
        by_time, by_state = torch.autograd.grad(values[i], (time, at), retain_graph=True, allow_unused=True)
        parts = [0.0 if by_time is None else by_time, 0.0 if by_state is None else (by_state * slope.conj()).sum().real]
        rates[i] = parts[0] + parts[1]
    return int((values.detach() / torch.where(rates == 0, torch.inf, rates)).abs().argmin())
