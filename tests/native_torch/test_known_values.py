"""Right values of situations that users reported, each beside its closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from quick import pairwise
from torch import nn

import odenet
from odenet_torch import odeint, odeint_adjoint, odeint_event

METHODS = ("backprop", "checkpoint", "checkpoint:states=3", "discrete-adjoint", "continuous-adjoint")


class Oscillator(nn.Module):
    """A Hamiltonian net as users write it: the field is a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, y):
        energy = 0.5 * self.k * y[0] ** 2 + 0.5 * y[1] ** 2
        (slope,) = torch.autograd.grad(energy, y, create_graph=True)
        return torch.stack([slope[1], -slope[0]])


def closed(k):
    """Of the sum of both entries at t=1 from (1, 0)."""
    return math.cos(math.sqrt(k)) - math.sqrt(k) * math.sin(math.sqrt(k))


SLOPE = (closed(2 + 1e-6) - closed(2 - 1e-6)) / 2e-6


STEPPING = {"equal": {"steps": 50, "solver": "rk4"}, "adaptive": {"rtol": 1e-8, "atol": 1e-10}}


@pytest.mark.parametrize(
    ("method", "stepping", "recorded"), pairwise(itertools.product(METHODS, STEPPING, (True, False)))
)
def test_gradients_of_a_hamiltonian_net(method, stepping, recorded):
    choices = STEPPING[stepping]
    net, y0 = Oscillator(), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=recorded)
    end = odenet.solve(net, y0, t1=1.0, gradient=method, **choices).y1
    (by,) = torch.autograd.grad(end.sum(), net.k)
    assert by.item() == pytest.approx(SLOPE, rel=1e-7)


def test_the_drop_ins_differentiate_a_hamiltonian_net():
    net, y0 = Oscillator(), torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    for call in (odeint, odeint_adjoint):
        end = call(net, y0, torch.tensor([0.0, 1.0], dtype=torch.float64))[-1]
        assert torch.autograd.grad(end.sum(), net.k)[0].item() == pytest.approx(SLOPE, rel=1e-7)
    start = torch.tensor(0.0, dtype=torch.float64)
    met, _ = odeint_event(net, y0, start, event_fn=lambda t, y: y[0], odeint_interface=odeint)
    assert met.item() == pytest.approx(math.pi / 2 / math.sqrt(2), rel=1e-7)
    assert torch.autograd.grad(met, net.k)[0].item() == pytest.approx(-math.pi / 4 / 2**1.5, rel=1e-6)


@pytest.mark.parametrize("drop_in", [True, False])
def test_second_derivatives_of_an_events_time(drop_in):
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0, tight = torch.tensor([1.3], dtype=torch.float64), {"rtol": 1e-10, "atol": 1e-12}
    if drop_in:
        met, _ = odeint_event(
            lambda t, y: -a * y,
            y0,
            torch.tensor(0.0, dtype=torch.float64),
            event_fn=lambda t, y: y - 0.5,
            odeint_interface=odeint,
            **tight,
        )
    else:
        met = odenet.solve(lambda t, y, a: -a * y, y0, a, t1=10.0, event=lambda t, y: y - 0.5, **tight).event_t
    (first,) = torch.autograd.grad(met, a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    share = math.log(2.6)
    np.testing.assert_allclose(
        [met.item(), first.item(), second.item()], [share / 0.7, -share / 0.49, 2 * share / 0.343], rtol=1e-8
    )


def test_a_steady_state_is_a_boolean_event():
    y0 = torch.ones(1, dtype=torch.float64)

    def still(t, y):
        return y.norm() < 1e-3

    met = odenet.solve(lambda t, y: -y, y0, t1=100.0, rtol=1e-6, event=still)
    assert met.result is odenet.Result.EVENT
    assert met.event_t.item() == pytest.approx(math.log(1e3), rel=1e-5)
    dropped, _ = odeint_event(lambda t, y: -y, y0, torch.tensor(0.0, dtype=torch.float64), event_fn=still)
    assert dropped.item() == pytest.approx(math.log(1e3), rel=1e-5)


def test_states_changed_between_solves_in_steps_from_a_large_time():
    """Twenty solves of 0.01 s one after the other, from t = 131072 in float32."""
    y = torch.ones(1)
    for i in range(20):
        first = 131072 + 0.01 * i
        y = odenet.solve(lambda t, y: -y, y, t0=first, t1=first + 0.01, steps=4, solver="rk4").y1
    assert y.item() == pytest.approx(math.exp(-0.2), rel=1e-5)


def test_an_interpolant_of_high_order_loses_nothing_of_a_straight_line():
    """dopri8's coefficients had an error of 4e-12 in sums that are 1 and 0."""
    for name in ("bosh3", "dopri5", "tsit5", "dopri8"):
        line = odenet.solve(
            lambda t, y: torch.ones_like(y),
            torch.zeros(1, dtype=torch.float64),
            solver=name,
            dense=True,
            control=odenet.PIDController(1e-6, first_step=1.0),
        )
        times = torch.linspace(0, 1, 33, dtype=torch.float64)
        assert (line.at(times)[:, 0] - times).abs().max() < 1e-13
