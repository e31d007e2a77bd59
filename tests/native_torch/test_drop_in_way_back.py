"""What `odeint_adjoint` says of its gradient where steps follow the error, or end at an event."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from odenet import GradientWarning, UselessGradientWarning
from odenet_torch import odeint, odeint_adjoint, odeint_event


class Damped(nn.Module):
    """A tanh field that contracts, which counts its evaluations."""

    def __init__(self, damping):
        super().__init__()
        self.damping, self.calls = damping, 0
        self.w = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, t, y):
        self.calls += 1
        return self.w * (1 + torch.tanh(y)) - self.damping * y


def told(solve, net, *, wanted=True, scale=1.0, **choices):
    """The gradient of y0 (with `wanted`) and of w, by a loss of that scale; and what was said of it."""
    y0 = torch.tensor([1.0, -0.8], dtype=torch.float64, requires_grad=wanted)
    choices = {"rtol": 1e-6, "atol": 1e-6, **choices}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ys = solve(net, y0, torch.tensor([0.0, 1.0], dtype=torch.float64), **choices)
        parts = torch.autograd.grad(scale * ys[-1].sum(), (y0, net.w) if wanted else net.w)
    certificates = [warning.message.certificate for warning in caught if issubclass(warning.category, GradientWarning)]
    return [part / scale for part in parts], certificates


def off(parts, exact):
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(parts, exact, strict=True))


@pytest.mark.parametrize("options", [{}, {"adjoint_method": "rk4", "adjoint_options": {"step_size": 0.02}}])
def test_a_state_that_is_integrated_back_to_elsewhere(options):
    for damping, wrong in ((1.0, False), (25.0, True)):
        net = Damped(damping)
        exact, _ = told(odeint, net)
        parts, certificates = told(odeint_adjoint, net, **options)
        assert (off(parts, exact) > 0.1) == wrong == bool(certificates)
        assert not wrong or certificates[0] > off(parts, exact) / 3


def test_a_gradient_that_nobody_asks_for_is_not_doubted():
    net = Damped(25.0)
    exact, _ = told(odeint, net, wanted=False)
    parts, certificates = told(odeint_adjoint, net, wanted=False)
    assert off(parts, exact) < 1e-3
    assert not certificates


def test_a_costate_below_the_tolerance_is_said_not_to_be_resolved():
    # the state is at rest and bounds no step, and the adjoint turns around 40 times a second
    def rotating(t, y):
        return torch.stack([y[1], -1600.0 * y[0]]) * w

    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    for scale, wrong in ((1.0, False), (1e-9, True)):
        y0 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ys = odeint_adjoint(
                lambda t, y: rotating(t, y), y0, torch.tensor([0.0, 1.0], dtype=torch.float64),
                rtol=1e-6, atol=1e-6, adjoint_params=(w,),
            )  # fmt: skip
            (part,) = torch.autograd.grad(scale * ys[-1, 0], y0)
        exact = torch.tensor([torch.tensor(40.0).cos(), torch.tensor(40.0).sin() / 40], dtype=torch.float64)
        assert (((part / scale - exact).norm() / exact.norm()).item() > 0.1) == wrong
        assert any(issubclass(warning.category, UselessGradientWarning) for warning in caught) == wrong


def test_the_user_sees_no_evaluation_of_the_comparison_and_an_event_is_compared(monkeypatch):
    counts = []
    for quiet in (False, True):
        net = Damped(25.0)
        if quiet:
            monkeypatch.setattr("odenet_torch.drop_in.adjoint.passes_due", lambda _: None)
        parts, certificates = told(odeint_adjoint, net)
        assert bool(certificates) != quiet
        counts.append((net.calls, *map(torch.Tensor.tolist, parts)))
    assert counts[0] == counts[1]  # to the last bit
    monkeypatch.undo()
    net, y0 = Damped(25.0), torch.tensor([1.0, -0.8], dtype=torch.float64, requires_grad=True)
    _, ys = odeint_event(
        net, y0, torch.tensor(0.0), event_fn=lambda t, y: t - 1.0, odeint_interface=odeint_adjoint, rtol=1e-6, atol=1e-6
    )
    with pytest.warns(UselessGradientWarning, match="odeint_adjoint"):
        ys[-1].sum().backward()
