"""Events in torch: where a condition is looked at, what a boolean's gradient is, and the drop-in's events."""

from __future__ import annotations

import math

import pytest
import torch

import odenet
from odenet import Event, GradientError, PIDController, Result
from odenet_torch import odeint, odeint_adjoint, odeint_event

GRADIENTS = ("backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint")


pytestmark = pytest.mark.usefixtures("double")


def rises(condition, **choices):
    """y' = 1 from 0, in steps that grow to cross most of [0, 1] at once."""
    return odenet.solve(lambda t, y: torch.ones_like(y), torch.zeros(1), t1=1.0, rtol=1e-6, event=condition, **choices)


@pytest.mark.parametrize("solver", ["heun", "bosh3", "dopri5", "tsit5", "dopri8"])
def test_roots_that_lie_in_one_step_are_seen_in_their_order(solver):
    for roots in ((0.5, 0.6), (0.2, 0.5, 0.6), (0.3, 0.35, 0.9), (0.15, 0.4, 0.7, 0.95), (1.0,)):
        solution = rises(lambda t, y, roots=roots: math.prod(t - root for root in roots), solver=solver)
        assert solution.result is Result.EVENT, roots
        assert solution.event_t.item() == pytest.approx(roots[0], abs=1e-12)


def test_a_condition_that_begins_at_zero_and_comes_back_within_the_first_step_is_seen():
    for first_step in (0.1, 4.0, 10.0):
        control = PIDController(rtol=1e3, atol=1e3, first_step=first_step)
        solution = odenet.solve(
            lambda t, y: torch.ones_like(y), torch.zeros(1), t1=10.0, control=control, event=lambda t, y: torch.sin(y)
        )
        assert solution.event_t.item() == pytest.approx(math.pi)


def test_subintervals_bound_what_is_seen():
    twice = lambda t, y: (t - 0.52) * (t - 0.53)  # noqa: E731
    assert rises(Event(twice, subintervals=1)).result is Result.SUCCESS
    assert rises(Event(twice, subintervals=200)).event_t.item() == pytest.approx(0.52)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("ts", [None, [0.1, 0.3, 0.6, 2.0], "all"])
def test_the_time_of_an_event_has_its_gradient_whatever_is_kept(gradient, ts):
    """y = exp(-w t) is 1/4 at t = ln 4 / w; a boolean says nothing of the rate."""
    w = torch.tensor(2.0, requires_grad=True)

    def solve(condition):
        return odenet.solve(
            lambda t, y, w: -w * y, torch.ones(1), w, t1=2.0, ts=ts, rtol=1e-9, atol=1e-10, gradient=gradient,
            event=condition,
        )  # fmt: skip

    number, boolean = solve(lambda t, y: y - 0.25), solve(lambda t, y: y < 0.25)
    assert number.event_t.item() == pytest.approx(math.log(4) / 2, abs=1e-8)
    assert boolean.event_t.item() == pytest.approx(number.event_t.item(), abs=1e-9)
    (found,) = torch.autograd.grad(number.event_t, w)
    assert found.item() == pytest.approx(-math.log(4) / 4, abs=1e-8)
    with pytest.raises(GradientError, match="boolean"):
        torch.autograd.grad(boolean.event_t, w, retain_graph=True)
    if ts is None:
        with pytest.raises(GradientError, match="boolean"):
            torch.autograd.grad(boolean.y1.sum(), w)
    else:  # the states before it have theirs
        t = boolean.ts[1].item()
        (found,) = torch.autograd.grad(boolean.ys[1].sum(), w)
        assert found.item() == pytest.approx(-t * math.exp(-2 * t), abs=1e-8)


def test_times_that_coincide_with_the_event_or_lie_beyond_it():
    for level in (0.25, 0.5, 1.0):
        solution = rises(lambda t, y, level=level: y - level, ts=[0.25, 0.5, 1.0])
        assert solution.result is Result.EVENT
        assert solution.ts.tolist() == [0.25, 0.5, 1.0]
        right = [t if t <= level else math.nan for t in (0.25, 0.5, 1.0)]
        assert solution.ys.flatten().tolist() == pytest.approx(right, nan_ok=True)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_drop_in_knows_booleans_and_the_first_of_several(method):
    options = None if method == "dopri5" else {"step_size": 0.1}
    wave = lambda t, y: torch.stack([y[1], -y[0]])  # noqa: E731
    event_t, _ = odeint_event(
        wave,
        torch.tensor([1.0, 0.0]),
        torch.tensor(0.0),
        event_fn=lambda t, y: y[0] < 0,
        method=method,
        options=options,
    )
    assert event_t.item() == pytest.approx(math.pi / 2, abs=1e-4)
    several = lambda t, y: (t - 0.2) * (t - 0.5) * (t - 0.6)  # noqa: E731
    options = options and {"step_size": 1.0}
    event_t, _ = odeint_event(
        lambda t, y: torch.ones_like(y), torch.zeros(1), torch.tensor(0.0), event_fn=several, method=method,
        options=options,
    )  # fmt: skip
    assert event_t.item() == pytest.approx(0.2, abs=1e-6)


class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, t, y):
        return -self.rate * y


@pytest.mark.parametrize("interface", [odeint, odeint_adjoint])
def test_the_drop_in_refuses_the_gradient_of_a_booleans_time(interface):
    field = Decay()
    event_t, _ = odeint_event(
        field, torch.ones(1), torch.tensor(0.0), event_fn=lambda t, y: y < 0.25, odeint_interface=interface
    )
    with pytest.raises(GradientError, match="boolean"):
        event_t.backward()


FLAT = {
    "float": lambda t, y: (y < 0.25).float(),
    "where": lambda t, y: torch.where(y < 0.25, -1.0, 1.0),
    "detached": lambda t, y: y.detach() - 0.25,
}


@pytest.mark.parametrize("name", FLAT)
def test_the_gradient_of_an_event_whose_condition_has_no_graph_is_refused(name):
    field = Decay()
    start, choices = torch.ones(1), {"t1": 5.0, "rtol": 1e-5, "event": FLAT[name]}
    solution = odenet.solve(lambda t, y: field(t, y), start, **choices)
    for result in (solution.event_t, solution.y1.sum()):
        with pytest.raises(GradientError, match="without a graph"):
            result.backward(retain_graph=True)
    if name != "float":  # at zero where torchdiffeq's call begins: that is its event
        event_t, _ = odeint_event(field, start, torch.tensor(0.0), event_fn=FLAT[name])
        with pytest.raises(GradientError, match="without a graph"):
            event_t.backward()


def test_an_event_of_the_time_alone_has_the_gradient_of_a_fixed_time():
    field = Decay()
    odenet.solve(lambda t, y: field(t, y), torch.ones(1), rtol=1e-6, event=lambda t, y: t - 0.5).y1.sum().backward()
    assert field.rate.grad.item() == pytest.approx(-0.5 * math.exp(-1.0), rel=1e-4)


@pytest.mark.parametrize("made", [torch.zeros(1, device="meta"), torch.ones(1).to_sparse()])
def test_a_condition_without_values_is_refused_in_words(made):
    with pytest.raises(odenet.InputError, match="cannot be read"):
        rises(lambda t, y: made)


def test_an_event_over_an_empty_batch_is_that_of_the_time():
    event_t, _ = odeint_event(lambda t, y: -y, torch.ones(0, 3), torch.tensor(0.0), event_fn=lambda t, y: t - 0.5)
    assert event_t.item() == pytest.approx(0.5)
