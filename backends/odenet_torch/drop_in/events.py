"""The gradient of an event's time, where it is found without one."""

from __future__ import annotations

import torch
from torch import Tensor

from odenet_torch.drop_in.flow import Flow
from odenet_torch.steps.times import WithoutRate


def linked(flow: Flow, event_t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The event's time and the state then, moving with all that the condition depends on.

    With g the condition that is met, `dt = -(dg/dy dy + dg/dw dw) / (dg/dt + dg/dy f)`. Chen, Amos, Nickel 2021,
    "Learning neural event functions for ordinary differential equations", section 3.1.

    Args:
        flow: with its `event_fn`.
        event_t: the time.
        y: the state, differentiable as the state at a fixed time.
    """
    event_t = event_t.detach()
    if not torch.is_grad_enabled():
        return event_t, y
    time, at = event_t.clone().requires_grad_(), y.detach().requires_grad_()
    values = flow.event(time, at)
    if values.dtype is torch.bool:
        return WithoutRate.apply(event_t, y)
    rates = torch.zeros_like(values)
    with torch.no_grad():
        slope = flow.f(event_t, y)
    for i in range(len(values) if values.requires_grad else 0):
        by_time, by_state = torch.autograd.grad(values[i], (time, at), retain_graph=True, allow_unused=True)
        found = [0.0 if by_time is None else by_time, 0.0 if by_state is None else (by_state * slope.conj()).sum().real]
        rates[i] = found[0] + found[1]
    # of several conditions it is the one that is nearest to zero, for its rate
    entry = int((values.detach() / torch.where(rates == 0, torch.inf, rates)).abs().argmin())
    value = flow.event(event_t, y)[entry]
    if not value.requires_grad:
        return event_t, y
    moved = -(value - value.detach()) / (rates[entry] + 1e-12)
    return event_t + moved.to(event_t.dtype), y + moved.to(y.real.dtype) * slope
