"""Derivatives by times: t0, t1, ts, the time of an event, Solution.at(t), with equal steps and with tolerances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, odeint, odeint_event

TIGHT = {"rtol": 1e-11, "atol": 1e-13}
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),  # of torch.func.jvp
]
EXACT = ("backprop", "checkpoint", "checkpoint:states=2")


def field(t, y, a=1.0):
    return -a * torch.sin(y) + torch.sin(t) * y


def slope(function, at, width=1e-5):
    """A central difference."""
    return (function(at + width) - function(at - width)) / (2 * width)


def hessian_by_differences(function, at, width=1e-3):
    found = np.zeros((len(at), len(at)))
    for i in range(len(at)):
        for j in range(len(at)):

            def moved(one, other, i=i, j=j):
                v = at.clone()
                v[i] += one * width
                v[j] += other * width
                return float(function(v))

            found[i, j] = (moved(1, 1) - moved(1, -1) - moved(-1, 1) + moved(-1, -1)) / (4 * width**2)
    return torch.tensor(found)


@pytest.mark.parametrize("ts", [None, "all"])
@pytest.mark.parametrize(
    ("solver", "gradient", "allowed"),
    [
        *((solver, gradient, 1e-8) for solver in ("euler", "rk4", "dopri5") for gradient in EXACT),
        ("reversible:rk4", "reversible", 1e-8),
        ("reversible-heun", "backprop", 1e-8),
        ("alf", "reversible", 1e-8),
        ("rk4", "discrete-adjoint", 1e-5),  # as far off as its gradient of weights
        ("rk4", "continuous-adjoint", 2e-3),
    ],
)
def test_equal_steps_have_the_derivative_of_the_discrete_solve(solver, gradient, allowed, ts):
    def loss(t0, t1, gradient="backprop"):
        y0 = torch.tensor([1.2, 0.7])
        found = odenet.solve(field, y0, t0=t0, t1=t1, steps=6, solver=solver, gradient=gradient, ts=ts)
        return (found.ys[:, 0] * torch.arange(1.0, len(found.ys) + 1)).sum() ** 2

    for first, last in ((0.1, 0.8), (0.8, -0.4), (0.3, 0.3)):
        t0, t1 = torch.tensor(first, requires_grad=True), torch.tensor(last, requires_grad=True)
        value = loss(t0, t1, gradient)
        assert value.item() == loss(first, last).item()  # not a bit is changed
        found = torch.autograd.grad(value, (t0, t1))
        right = [slope(lambda t, b=last: loss(t, b).item(), first), slope(lambda t, a=first: loss(a, t).item(), last)]
        assert [g.item() for g in found] == pytest.approx(right, rel=allowed, abs=1e-8 + allowed)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"])
@pytest.mark.parametrize("choices", [{"steps": 200, "solver": "rk4"}, TIGHT], ids=["equal", "adaptive"])
def test_kept_times_have_the_derivative_of_the_ode(gradient, choices):
    ts = torch.tensor([0.0, 0.4, 0.8, 1.0], requires_grad=True)
    ys = odenet.solve(field, torch.tensor([1.3]), ts=ts, gradient=gradient, **choices).ys
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (found,) = torch.autograd.grad((ys[:, 0] * weights).sum(), ts)
    torch.testing.assert_close(found, field(ts, ys[:, 0]).detach() * weights, rtol=1e-7, atol=1e-7)


def test_kept_times_stay_where_the_ends_move():
    """One tensor as t1 and as the last time is t1 alone; a time that does not move has no derivative by t1."""
    t1 = torch.tensor(0.8, requires_grad=True)
    choices = {"steps": 40, "solver": "rk4"}
    y = odenet.solve(field, torch.tensor([1.3]), t1=t1, ts=[torch.tensor(0.4), t1], **choices).ys
    (found,) = torch.autograd.grad(y[1, 0], t1, retain_graph=True)
    right = slope(lambda t: odenet.solve(field, torch.tensor([1.3]), t1=t, **choices).y1.item(), 0.8)
    assert found.item() == pytest.approx(right, rel=1e-8)
    assert torch.autograd.grad(y[0, 0], t1)[0].item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint"])
@pytest.mark.parametrize(("kind", "solver"), [("piecewise", "euler"), ("linear", "heun")])
def test_times_of_a_network_set_the_size_of_its_steps(kind, solver, gradient):
    weights = torch.tensor([[0.4], [-0.9], [1.1], [0.3]])

    def layer(t, y, w):
        return torch.tanh(w * y) * torch.cos(t)

    def last(t1, w, gradient="backprop"):
        return odenet.solve(layer, torch.ones(1), odenet.Depth(w, kind), t1=t1, solver=solver, gradient=gradient).y1

    t1, moving = torch.tensor(0.9, requires_grad=True), weights.clone().requires_grad_()
    found, by_weights = torch.autograd.grad(last(t1, moving, gradient).sum(), (t1, moving))
    assert found.item() == pytest.approx(slope(lambda t: last(t, weights).item(), 0.9), rel=2e-2)
    still = weights.clone().requires_grad_()
    assert torch.equal(by_weights, torch.autograd.grad(last(0.9, still, gradient).sum(), still)[0])
    with pytest.raises(odenet.UnsupportedError, match="layers meet there"):
        odenet.solve(layer, torch.ones(1), odenet.Depth(weights, kind), t1=t1, ts=[0.9], solver=solver)
    with pytest.raises(odenet.UnsupportedError, match=r"layers would move.*take steps=N"):
        odenet.solve(layer, torch.ones(1), odenet.Depth(weights[:2], "linear"), t1=t1, rtol=1e-3)


@pytest.mark.parametrize("choices", [{"steps": 50}, TIGHT], ids=["equal", "adaptive"])
def test_modules_whose_time_is_a_parameter(choices):
    class Rate(nn.Module):
        def forward(self, t, y):
            return field(t, y)

    model = NeuralODE(Rate(), t1=nn.Parameter(torch.tensor(0.8)), **choices)
    model(torch.tensor([1.3])).sum().backward()
    right = slope(lambda t: odenet.solve(field, torch.tensor([1.3]), t1=t, **TIGHT).y1.item(), 0.8)
    assert model.t1.grad.item() == pytest.approx(right, rel=1e-5)
    stack = ResidualStack([nn.Linear(2, 2), nn.Linear(2, 2)], t1=nn.Parameter(torch.tensor(1.5)), gradient="checkpoint")
    stack(torch.ones(2)).sum().backward()

    def plain(t):
        return ResidualStack(list(stack.blocks), t1=t)(torch.ones(2)).sum().item()

    assert stack.t1.grad.item() == pytest.approx(slope(plain, 1.5), rel=1e-8)


@pytest.mark.parametrize(
    "choices", [{"steps": 8, "solver": "rk4"}, {"rtol": 1e-9, "atol": 1e-11}], ids=["equal", "adaptive"]
)
def test_second_derivatives_by_every_pair(choices):
    """By y0, a weight, t0 and t1, in either order."""

    def loss(v):
        return odenet.solve(field, v[:1], v[1], t0=v[2], t1=v[3], **choices).y1.sum() ** 2

    at = torch.tensor([1.3, 0.7, 0.1, 0.8])
    right = hessian_by_differences(loss, at)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, at), right, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.func.hessian(loss)(at), right, rtol=0, atol=1e-5)


def test_second_derivatives_by_a_time_with_a_way_back_of_their_own():
    a, t1 = torch.tensor(0.7, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    for gradient in ("checkpoint", "discrete-adjoint", "continuous-adjoint"):
        y = odenet.solve(field, torch.tensor([1.3]), a, t1=t1, gradient=gradient, **TIGHT).y1
        (by_time,) = torch.autograd.grad((y**2).sum(), t1, create_graph=True)
        found = torch.autograd.grad(by_time, (a, t1))
        right = hessian_by_differences(
            lambda v: odenet.solve(field, torch.tensor([1.3]), v[0], t1=v[1], **TIGHT).y1.sum() ** 2,
            torch.tensor([0.7, 0.9]),
        )
        torch.testing.assert_close(torch.stack(found), right[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("part", ["time", "state"])
def test_second_derivatives_of_an_event(part):
    def loss(v):
        choices = {"rtol": 1e-9, "atol": 1e-11, "event": lambda t, y: y - 0.5 - v[2] * t}
        found = odenet.solve(lambda t, y, a: -a * y, v[:1], v[1], t1=10.0, **choices)
        return found.event_t if part == "time" else found.y1.sum()

    at = torch.tensor([1.3, 0.7, 0.1])
    right = hessian_by_differences(loss, at)
    torch.testing.assert_close(torch.autograd.functional.hessian(loss, at), right, rtol=1e-4, atol=1e-4)
    if part == "time":
        torch.testing.assert_close(torch.func.hessian(loss)(at), right, rtol=1e-4, atol=1e-4)


def test_second_derivative_of_an_event_in_the_drop_in():
    a = torch.tensor(0.7, requires_grad=True)
    t, _ = odeint_event(
        lambda t, y: -a * y, torch.tensor([1.3]), torch.tensor(0.0), event_fn=lambda t, y: y - 0.5, **TIGHT
    )
    (first,) = torch.autograd.grad(t, a, create_graph=True)
    assert first.item() == pytest.approx(-math.log(2.6) / 0.49)
    assert torch.autograd.grad(first, a)[0].item() == pytest.approx(2 * math.log(2.6) / 0.343)


def test_second_derivatives_in_the_drop_in():
    a, t = torch.tensor(0.7, requires_grad=True), torch.tensor([0.0, 0.3, 0.9], requires_grad=True)
    y = odeint(lambda t, y: -a * y * y + torch.sin(t), torch.tensor([1.3]), t, rtol=1e-10, atol=1e-12)
    (by_time,) = torch.autograd.grad((y[2] ** 2).sum(), t, create_graph=True)
    by_a, by_times = torch.autograd.grad(by_time[2], (a, t))
    assert by_a.item() == pytest.approx(-0.5586768, abs=1e-6)  # of SciPy's flow, by differences
    assert by_times[2].item() == pytest.approx(0.9479158, abs=1e-6)


@pytest.mark.parametrize("choices", [{"steps": 20, "solver": "rk4"}, TIGHT], ids=["equal", "adaptive"])
def test_forward_mode(choices):
    def last(t0, t1):
        return odenet.solve(field, torch.tensor([1.3]), t0=t0, t1=t1, **choices).y1

    ends, one = (torch.tensor(0.1), torch.tensor(0.8)), torch.tensor(1.0)
    _, found = torch.func.jvp(last, ends, (one, 0 * one))
    assert found.item() == pytest.approx(slope(lambda t: last(t, 0.8).item(), 0.1), rel=1e-5)
    _, found = torch.func.jvp(last, ends, (0 * one, one))
    assert found.item() == pytest.approx(slope(lambda t: last(0.1, t).item(), 0.8), rel=1e-5)
    found = torch.func.grad(lambda t: last(0.1, t).sum())(ends[1])
    assert found.item() == pytest.approx(slope(lambda t: last(0.1, t).item(), 0.8), rel=1e-5)


def test_the_end_of_every_step_and_of_an_event_that_does_not_come():
    for more in ({"ts": "all"}, {"event": lambda t, y: y + 5.0}):
        t1 = torch.tensor(0.8, requires_grad=True)
        y1 = odenet.solve(field, torch.tensor([1.3]), t1=t1, **more, **TIGHT).y1
        (found,) = torch.autograd.grad(y1.sum(), t1)
        assert found.item() == pytest.approx(field(torch.tensor(0.8), y1).item(), rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dense_output_by_its_times(dtype):
    ts = torch.tensor([[0.0, 0.33], [0.8, 1.0]], requires_grad=True)
    y0 = torch.tensor(1.3, dtype=dtype)
    found = odenet.solve(field, y0, dense=True, rtol=1e-6, atol=1e-8)
    ys = found.at(ts)
    assert ys.dtype == dtype
    assert torch.equal(ys, found.at(ts.detach()))
    (by_time,) = torch.autograd.grad(ys.sum(), ts, create_graph=True)
    torch.testing.assert_close(by_time.to(dtype), field(ts.to(dtype), ys), rtol=1e-4, atol=1e-4)
    assert torch.autograd.grad(by_time.sum(), ts)[0].abs().min() > 0


def test_dense_output_without_a_graph_says_so():
    a, t = torch.tensor(0.7, requires_grad=True), torch.tensor(0.4, requires_grad=True)
    for gradient in ("checkpoint", "discrete-adjoint", "continuous-adjoint"):
        found = odenet.solve(field, torch.tensor([1.3]), a, dense=True, gradient=gradient, **TIGHT)
        (by_time,) = torch.autograd.grad(found.at(t).sum(), t)  # the times are no matter of the steps
        assert by_time.item() == pytest.approx(field(t, found.at(t), a).item(), rel=1e-6)
        with pytest.raises(odenet.GradientError, match=r"Solution\.at.*name the times in ts"):
            found.at(0.4).sum().backward()


def test_an_event_whose_condition_does_not_cross_has_no_gradient():
    a = torch.tensor(1.0, requires_grad=True)
    found = odenet.solve(
        lambda t, y, a: torch.ones_like(y) * a,
        torch.tensor([0.0]),
        a,
        t1=2.0,
        event=lambda t, y: torch.where(t * 0 + y.detach() < 1, -1.0, 1.0) + 0 * y,
        **TIGHT,
    )
    assert found.event_t.item() == pytest.approx(1.0)
    with pytest.raises(odenet.GradientError, match="does not change along the solution"):
        found.event_t.backward()


def test_what_has_no_derivative_by_a_time_refuses_one():
    t1 = torch.tensor(0.8, requires_grad=True)
    rows = odenet.PIDController(per_sample=True)
    for times in ({"t1": t1}, {"ts": [0.5, t1]}, {"ts": torch.stack([t1])}):
        with pytest.raises(odenet.InputError, match="needs a gradient with per_sample"):
            odenet.solve(field, torch.ones(3, 1), control=rows, **times)
    with pytest.raises(odenet.UnsupportedError, match=r"with respect to a time.*torchdiffeq"):
        odenet.solve(field, torch.ones(3), t1=t1, steps=4, backend="torchdiffeq")


@pytest.mark.parametrize("name", ["jump_t", "step_t"])
@pytest.mark.filterwarnings("error")
def test_times_of_steps_that_need_a_gradient_are_refused(name):
    """It is not zero, and steps that end there do not give it."""
    at = torch.tensor(0.4, requires_grad=True)
    for times in ([at], torch.stack([at, 2 * at])):
        with pytest.raises(odenet.GridError, match="needs a gradient"):
            odenet.PIDController(rtol=1e-6, **{name: times})
