"""`odeint_adjoint` with tolerances: what its own steps are off by, and its gradient by the first time."""

import warnings

import pytest
import torch

import odenet
from odenet_torch import odeint, odeint_adjoint


class Field(torch.nn.Module):
    """It contracts, and how much depends on time."""

    def __init__(self, damping, by_time):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.damping, self.by_time = damping, by_time

    def forward(self, t, y):
        return self.w * torch.tanh(y) - self.damping * (1 + self.by_time * torch.sin(3 * t)) * y


def gradients(solve, module, **choices):
    y0 = torch.tensor([1.0, -0.8], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ys = solve(module, y0, t, **choices)
        found = torch.autograd.grad(ys[1:].sum(), (y0, t))
    return found, [w.message.certificate for w in caught if issubclass(w.category, odenet.GradientWarning)]


@pytest.mark.parametrize(("method", "rtol"), [("fehlberg2", 1e-2), ("fehlberg2", 1e-3), ("bosh3", 1e-2)])
def test_steps_that_are_too_long_for_the_adjoint_are_said_to_be(method, rtol):
    choices = {"rtol": rtol, "atol": rtol / 1000, "method": method}
    (exact, _), _ = gradients(odeint, Field(10.0, 0.0), rtol=1e-10, atol=1e-12)
    (y0, _), said = gradients(odeint_adjoint, Field(10.0, 0.0), **choices)
    off = float((y0 - exact).norm() / exact.norm())
    assert off > 0.1
    assert [certificate > min(off, 1) / 3 for certificate in said] == [True]


def test_steps_that_are_short_enough_are_not():
    for method in ("fehlberg2", "bosh3", "dopri5", "adaptive_heun"):
        _, said = gradients(odeint_adjoint, Field(2.0, 0.0), rtol=1e-5, atol=1e-8, method=method)
        assert not said


@pytest.mark.parametrize("damping", [3.0, 12.0, 25.0])
def test_the_gradient_by_the_first_time_does_not_drift_with_the_state(damping):
    (y0, exact), _ = gradients(odeint, Field(damping, 0.9), rtol=1e-11, atol=1e-13)
    (adjoint, t), _ = gradients(odeint_adjoint, Field(damping, 0.9), rtol=1e-6, atol=1e-9)
    assert t[0].item() == pytest.approx(exact[0].item(), rel=1e-3)
    assert adjoint == pytest.approx(y0, rel=1e-3)
    assert torch.allclose(t[1:], exact[1:], rtol=1e-4)
