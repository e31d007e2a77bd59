"""What `odeint_adjoint` in fixed steps says of its gradient, beside its true error."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from quick import quick
from torch import nn

from odenet import GradientWarning
from odenet_torch import odeint, odeint_adjoint
from odenet_torch.drop_in import step_back


class Net(nn.Module):
    def __init__(self, seed, scale, act=torch.tanh, extra=None):
        super().__init__()
        torch.manual_seed(seed)
        self.inner, self.outer = nn.Linear(4, 8).double(), nn.Linear(8, 4).double()
        self.scale, self.act, self.extra = scale, act, extra or nn.Identity()

    def forward(self, t, y):
        return self.scale * self.outer(self.extra(self.act(self.inner(y) + t)))


def gradient(solve, net, t, seed=0, **choices):
    torch.manual_seed(seed)
    y0 = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    ys = solve(net, y0, t, **choices)
    return torch.cat([part.flatten() for part in torch.autograd.grad(ys[-1].square().sum(), (y0, *net.parameters()))])


def said(net, t, **choices):
    """The true relative error of the gradient, and what was said of it; 0 for nothing."""
    exact = gradient(odeint, net, t, **{key: value for key, value in choices.items() if "adjoint" not in key})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        off = gradient(odeint_adjoint, net, t, **choices) - exact
    told = [warning.message.certificate for warning in caught if issubclass(warning.category, GradientWarning)]
    return (off.norm() / exact.norm()).item(), max(told, default=0.0)


TIMES = {
    "one step": (torch.linspace(0, 1, 2).double(), None),
    "from time to time": (torch.linspace(0, 1, 5).double(), None),
    "irregular": (torch.cat([torch.zeros(1), torch.logspace(-2, 0, 5)]).double(), None),
    "many steps between times": (torch.linspace(0, 1, 3).double(), {"step_size": 0.125}),
    "times within steps": (torch.linspace(0, 1, 4).double(), {"step_size": 0.15}),
    "back in time": (torch.linspace(1, 0, 4).double(), None),
}


CASES = [(times, seed) for times in TIMES for seed in range(2)]


@pytest.mark.parametrize(("times", "seed"), quick(CASES, [(times, n % 2) for n, times in enumerate(TIMES)]))
def test_no_gradient_is_wrong_in_silence(times, seed):
    t, options = TIMES[times]
    errors = [
        said(Net(seed, scale, act), t, method=method, options=options)
        for act in (torch.tanh, torch.sin)
        for method in ("euler", "midpoint", "rk4")
        for scale in (0.05, 1.0, 4.0)
    ]
    assert any(error < 0.1 for error, _ in errors)
    assert any(certificate for _, certificate in errors)
    for error, certificate in errors:
        assert certificate > error / 3 or error <= 0.1
        assert certificate < 10 * max(error, 0.1)


def test_steps_back_of_another_size_and_method():
    t = torch.linspace(0, 1, 2).double()
    for back in ({"adjoint_options": {"step_size": 0.02}}, {"adjoint_method": "rk4", "adjoint_options": {}}):
        error, certificate = said(Net(0, 4.0), t, method="euler", options={"step_size": 0.25}, **back)
        assert error / 3 < certificate < 3 * error
        assert error > 0.1


def test_what_is_said():
    t = torch.linspace(0, 1, 5).double()
    with pytest.warns(GradientWarning, match=r"odeint_adjoint through 4 steps of euler .*step .* of 4.*take odeint"):
        gradient(odeint_adjoint, Net(0, 4.0), t, method="euler")


def test_dropout_is_drawn_as_it_was_and_leaves_nothing():
    t = torch.linspace(0, 1, 5).double()
    # with one mask forth and another back, in the first step, it was off by 2e-4
    error, _ = said(Net(0, 0.02, extra=nn.Dropout(0.5)), t, method="rk4")
    assert error < 5e-5
    net = Net(0, 0.02, extra=nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8).double()))
    y0 = torch.ones(6, 4, dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(net, y0, t, method="euler")
    counted, random = net.extra[1].num_batches_tracked.clone(), torch.get_rng_state()
    ys[-1].sum().backward()  # warnings are errors here: with another mask the step would be another
    assert net.extra[1].num_batches_tracked == counted
    assert torch.equal(torch.get_rng_state(), random)


def test_the_gradient_is_what_it_was_and_some_passes_are_compared(monkeypatch):
    compared = []
    finish = step_back.StepBack.finish
    monkeypatch.setattr(step_back.StepBack, "finish", lambda self, a: (compared.append(n), finish(self, a)))
    net, t, gradients = Net(0, 0.05), torch.linspace(0, 1, 21).double(), []
    for n in range(1, 36):  # noqa: B007
        gradients.append(gradient(odeint_adjoint, net, t, method="euler"))
    assert sorted({*compared}) == [1, 2, 4, 8, 16, 32]
    assert all(torch.equal(g, gradients[0]) for g in gradients)
    compared.clear()
    net.scale = 12.0  # doubtful, and looked at each time from when that is seen
    for n in range(36, 52):  # noqa: B007
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GradientWarning)
            gradient(odeint_adjoint, net, t, method="euler")
    assert sorted({*compared}) == [48, 49, 50, 51]


def test_a_state_of_zeros_and_a_gradient_of_zero():
    t = torch.linspace(0, 1, 3).double()
    net = Net(0, 1.0)
    y0 = torch.zeros(6, 4, dtype=torch.float64, requires_grad=True)
    ys = odeint_adjoint(net, y0, t, method="rk4")
    (0 * ys[-1]).sum().backward()
    assert not y0.grad.any()


def test_fields_without_parameters_tuples_and_numbers():
    solve = partial(odeint_adjoint, method="euler", adjoint_params=())
    t = torch.linspace(0, 1, 3)
    number = solve(lambda t, y: -1.5 * y, torch.ones((), requires_grad=True), t)[-1]
    with pytest.warns(GradientWarning):
        number.backward()
    pair = (torch.ones(2, requires_grad=True), torch.ones(3, dtype=torch.float32, requires_grad=True))
    total = sum(leaf[-1].sum() for leaf in solve(lambda t, y: (-1.5 * y[0], y[1]), pair, t))
    with pytest.warns(GradientWarning):
        total.backward()


def pairs(h):
    return torch.tanh(nn.functional.layer_norm(h.unflatten(-1, (-1, 2)), (2,)).flatten(-2))


@pytest.mark.parametrize(
    ("seed", "times", "choices"),
    [
        (1, "from time to time", {"method": "rk4"}),
        (9, "irregular", {"method": "heun2"}),
        (0, "back in time", {"method": "euler", "adjoint_method": "midpoint"}),
        (2, "many steps between times", {"method": "midpoint", "options": {"step_size": 1 / 64}}),
        # steps that follow the error, there, back, or both ways
        (0, "one step", {"method": "dopri5", "rtol": 1e-2, "atol": 1e-3}),
        (1, "one step", {"method": "bosh3", "rtol": 1e-2, "adjoint_method": "rk4", "adjoint_rtol": 1e-2}),
        (1, "back in time", {"method": "euler", "adjoint_method": "dopri5", "adjoint_rtol": 1e-3}),
    ],
)
def test_where_two_numbers_are_normalised_together_it_is_the_error_of_the_whole_gradient(seed, times, choices):
    """Two steps tell little of it there, and what the state drifts by nothing."""
    net, (t, _) = Net(seed, 4.0, act=pairs), TIMES[times]
    back = {"adjoint_options": choices.get("options", {})}
    exact = gradient(odeint, net, t, **{key: value for key, value in choices.items() if "adjoint" not in key})
    with pytest.warns(GradientWarning, match="all steps are compared") as told:
        off = gradient(odeint_adjoint, net, t, **choices, **back) - exact
    parts = [(off[place].norm() / exact[place].norm()).item() for place in (slice(24), slice(24, None))]
    assert told[0].message.certificate == pytest.approx(max(parts), rel=1e-9)


def test_two_numbers_that_are_normalised_together_where_times_lie_within_steps():
    t, options = TIMES["times within steps"]
    for seed in range(3):
        error, certificate = said(Net(seed, 2.0, act=pairs), t, method="rk4", options=options)
        assert error > 0.1
        assert certificate > 0.1
    # of steps that follow the error, a time divides the step that it lies in
    error, certificate = said(Net(1, 4.0, act=pairs), t, method="dopri5", rtol=1e-4, atol=1e-5)
    assert error > 0.1
    assert error / 2 < certificate < 2 * error


def test_what_states_have_drifted_by_comes_on_top_of_what_steps_are_off_by():
    """The field rotates: the steps are compared at states that are known, and look right, by less than 0.1."""

    class Rotating(nn.Module):
        def __init__(self):
            super().__init__()
            rate = torch.tensor([[0.0, 5.0], [-5.0, 0.0]], dtype=torch.float64)
            self.rates = nn.Parameter(torch.block_diag(rate, rate))

        def forward(self, t, y):
            return y @ self.rates.T

    error, certificate = said(Rotating(), torch.linspace(0, 1, 9).double(), method="heun2")
    assert 0.1 < error < certificate < 2 * error
