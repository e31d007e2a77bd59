"""Times that single precision cannot tell apart, beside a state in single precision: func reads them in double."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from odenet import GridError
from odenet_torch import odeint, odeint_adjoint, odeint_dense, odeint_event

T0 = [1.7e9, -1e9, 2.4e6, 1e5]
Y0 = torch.zeros(2)


class Clock(nn.Module):
    """y' = scale cos(t - t0)."""

    def __init__(self, t0) -> None:
        super().__init__()
        self.t0, self.scale = t0, nn.Parameter(torch.ones(()))

    def forward(self, t, y):
        return self.scale * torch.cos(t - self.t0) * torch.ones_like(y)


@pytest.mark.parametrize("t0", T0)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
@pytest.mark.parametrize("call", [odeint, odeint_adjoint])
def test_a_field_that_depends_on_time(call, method, t0):
    func, t = Clock(t0), torch.linspace(t0, t0 + 2, 41, dtype=torch.float64)
    ys = call(func, Y0, t, method=method, rtol=1e-6, atol=1e-7)
    assert ys.dtype is torch.float32
    torch.testing.assert_close(ys[:, 0].double(), torch.sin(t - t0), rtol=0, atol=1e-5)
    ys[-1].sum().backward()
    assert func.scale.grad.item() == pytest.approx(2 * math.sin(2), abs=1e-4)


@pytest.mark.parametrize("t0", T0)
def test_events_and_dense_output(t0):
    func, start = Clock(t0), torch.tensor(t0, dtype=torch.float64)
    event_t, _ = odeint_event(func, Y0, start, event_fn=lambda t, y: t - t0 - 0.75, rtol=1e-5, atol=1e-6)
    assert event_t.item() - t0 == pytest.approx(0.75, abs=1e-5)
    event_t, _ = odeint_event(func, Y0, start, event_fn=lambda t, y: y[0] - 0.5, rtol=1e-5, atol=1e-6)
    assert event_t.item() - t0 == pytest.approx(math.asin(0.5), abs=1e-4)
    dense = odeint_dense(func, Y0, t0, t0 + 2, rtol=1e-5, atol=1e-6)
    assert dense(torch.tensor(t0 + 1.0, dtype=torch.float64))[0].item() == pytest.approx(math.sin(1), abs=1e-4)


def test_a_field_that_joins_time_and_state_is_told_why_it_cannot_be_called():
    linear = nn.Linear(3, 2)

    def func(t, y):
        return linear(torch.cat([t.reshape(1), y]))

    def solve(t0, call=odeint, **more):
        return call(func, Y0, torch.tensor([t0, t0 + 1], dtype=torch.float64), rtol=1e-3, atol=1e-3, **more)

    assert solve(0.0).shape == solve(100.0).shape == (2, 2)
    for call, more in ((odeint, {}), (odeint_adjoint, {"adjoint_params": ()})):
        with pytest.raises(GridError, match=r"^odeint\w*: times near 1000000000\.0, which float32 cannot tell apart"):
            solve(1e9, call, **more)
