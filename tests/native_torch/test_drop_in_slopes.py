"""The drop-in's functions: slopes of another shape are refused; the adjoint draws and counts as the way forth did."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from odenet import GradientError, StateError
from odenet_torch import odeint, odeint_adjoint, odeint_dense, odeint_event

T = torch.linspace(0.0, 1.0, 5)
CALLS = {
    "odeint": odeint,
    "fixed": functools.partial(odeint, method="rk4"),
    "adjoint": functools.partial(odeint_adjoint, adjoint_params=()),
    "fixed adjoint": functools.partial(odeint_adjoint, adjoint_params=(), method="euler"),
    "dense": lambda func, y0, t: odeint_dense(func, y0, t[0], t[-1])(0.5),
    "event": lambda func, y0, t: odeint_event(func, y0, t[0], event_fn=lambda t, y: t - 0.5),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("slope", "message"),
    [
        (lambda t, y: y[:1], r"a tensor of shape \(1,\) for a state that is a tensor of shape \(3,\).*expand"),
        (lambda t, y: y.sum(), r"shape \(\) for"),
        (lambda t, y: y[None], r"shape \(1, 3\)"),
        (lambda t, y: None, "returned a NoneType"),
        (lambda t, y: 0.0, "returned a float"),
        (lambda t, y: (y,), r"a tuple of \(3,\)"),
    ],
)
def test_a_slope_of_another_shape(call, slope, message):
    with pytest.raises(StateError, match=message):
        call(slope, torch.ones(3), T)


@pytest.mark.parametrize("call", [call for name, call in CALLS.items() if name != "dense"])
@pytest.mark.parametrize(
    "slope",
    [
        lambda t, y: (y[0].mT, y[1]),  # as many entries
        lambda t, y: (y[0].reshape(-1), y[1]),
        lambda t, y: (y[1], y[0]),
        lambda t, y: (y[0],),
        lambda t, y: (y[0], y[1], y[1]),
        lambda t, y: (y[0], 0.0),
        lambda t, y: torch.ones(9),
        lambda t, y: None,
    ],
)
def test_a_tuple_of_other_shapes(call, slope):
    with pytest.raises(StateError, match=r"func returned .* for a state that is a tuple of \(2, 3\), \(3,\)"):
        call(slope, (torch.ones(2, 3), torch.ones(3)), T)


def test_a_list_may_stand_for_a_tuple():
    y0 = torch.ones(2, 3), torch.ones(3)
    listed = odeint(lambda t, y: [-leaf for leaf in y], y0, T)
    plain = odeint(lambda t, y: tuple(-leaf for leaf in y), y0, T)
    assert all(torch.equal(a, b) for a, b in zip(listed, plain, strict=True))


class Net(nn.Module):
    def __init__(self, extra):
        super().__init__()
        self.linear, self.extra = nn.Linear(4, 4), extra

    def forward(self, t, y):
        return torch.tanh(self.extra(self.linear(y)))


def gradient(call, net, t, seed=1, **choices):
    torch.manual_seed(seed)
    net.zero_grad()
    y0 = torch.linspace(-1.0, 1.0, 32).reshape(8, 4)
    call(net, y0, t, **choices)[-1].square().sum().backward()
    return net.linear.weight.grad.clone()


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4"])
def test_dropout_draws_the_same_mask_again(method):
    """The adjoint differs from the gradient of the steps by what the steps' size makes it, and not by other masks."""
    torch.manual_seed(0)
    net, t = Net(nn.Dropout(0.5)), torch.linspace(0.0, 1.0, 65)
    exact = gradient(odeint, net, t, method=method)
    found = gradient(odeint_adjoint, net, t, method=method)
    state = torch.get_rng_state()
    assert (found - exact).norm() < 0.02 * exact.norm()
    assert (gradient(odeint, net, t, seed=2, method=method) - exact).norm() > 0.02 * exact.norm()
    gradient(odeint_adjoint, net, t, method=method)
    assert torch.equal(torch.get_rng_state(), state)  # a way back draws nothing of the user's
    if method in ("euler", "rk4"):
        spaced = gradient(
            odeint_adjoint, net, torch.tensor([0.0, 0.5, 1.0]), method=method, options={"step_size": 1 / 64}
        )
        assert (spaced - exact).norm() < 0.02 * exact.norm()


def test_dropout_of_steps_that_differ_is_refused():
    net = Net(nn.Dropout(0.5))
    for choices in ({}, {"method": "rk4", "options": {"step_size": 0.3}}):
        with pytest.raises(GradientError, match=r"draws random numbers.*func\.eval\(\), take odeint"):
            gradient(odeint_adjoint, net, torch.tensor([0.0, 1.0]), rtol=1e-2, atol=1e-1, **choices)
    gradient(odeint_adjoint, net.eval(), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_normalisation_counts_each_batch_once(method, wrapped):
    counts, means = [], []
    for call in (odeint, odeint_adjoint):
        torch.manual_seed(0)
        net = Net(nn.BatchNorm1d(4))
        calls = functools.partial(call, lambda t, y, net=net: net(t, y)) if wrapped else functools.partial(call, net)
        if call is odeint_adjoint:
            calls = functools.partial(calls, adjoint_params=tuple(net.parameters()))
        calls(torch.ones(8, 4).cumsum(0), T, method=method, rtol=1e-2, atol=1e-2)[-1].sum().backward()
        counts.append(net.extra.num_batches_tracked.item())
        means.append(net.extra.running_mean.clone())
    assert counts[0] == counts[1] > 0
    torch.testing.assert_close(*means)


def test_a_counter_of_the_users_counts_both_ways():
    class Counting(Net):
        def __init__(self):
            super().__init__(nn.Identity())
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, t, y):
            self.calls += 1
            return super().forward(t, y)

    net = Counting()
    gradient(odeint_adjoint, net, T, method="euler")
    assert net.calls == 8


@pytest.mark.parametrize("method", ["euler", "rk4", "dopri5", "explicit_adams", "implicit_adams", "scipy_solver"])
@pytest.mark.parametrize("call", [odeint, functools.partial(odeint_adjoint, adjoint_params=())])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")  # by torchdiffeq
def test_a_func_may_write_on_the_time_that_it_is_given(call, method):
    def writes(t, y):
        t.add_(0.3)
        return torch.tanh(y) * t

    y0 = torch.tensor([1.0, 0.5])
    right = call(lambda t, y: torch.tanh(y) * (t + 0.3), y0, T, method=method)
    assert torch.equal(call(writes, y0, T, method=method), right)
