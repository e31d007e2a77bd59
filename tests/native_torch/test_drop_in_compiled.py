"""compile in the drop-in: what `odeint` and `odeint_adjoint` give without it, or an error that says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odenet import InputError, UnsupportedError
from odenet_torch.conversion.convert import convert
from odenet_torch.drop_in.odeint import odeint, odeint_adjoint, odeint_dense, odeint_event

KIND = torch.float64
TIMES = [0.0, 0.25, 1.0]


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)
        self.to(KIND)

    def forward(self, t, y):
        return self.two(torch.tanh(self.one(y))) * (1 + t)


class Pair(Field):
    """A tuple for a state."""

    def forward(self, t, y):
        return super().forward(t, y[0]), -y[1] * y[0].sum()


class Writes(Field):
    def forward(self, t, y):
        return super().forward(t, y.mul_(1.5))


class Rotates(Field):
    """A complex state."""

    def forward(self, t, y):
        return y * torch.complex(t, self.one.bias[0]) + self.two.bias * y.conj()


def state(kind=KIND):
    return torch.randn(2, 3, dtype=kind, generator=torch.Generator().manual_seed(1))


def results(call, net, y0, compile, *, moving=False, times=TIMES, **choices):
    """The states at the times, and the gradients of all that may have one."""
    leaves = [leaf.clone().requires_grad_() for leaf in (y0 if isinstance(y0, tuple) else (y0,))]
    t = torch.tensor(times, dtype=KIND, requires_grad=moving)
    ys = call(net, tuple(leaves) if isinstance(y0, tuple) else leaves[0], t, compile=compile, **choices)
    ys = ys if isinstance(ys, tuple) else (ys,)
    wanted = [*leaves, *net.parameters(), *([t] if moving else [])]
    gradients = torch.autograd.grad(sum(y.abs().square().sum() for y in ys), wanted, allow_unused=True)
    zero = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, gradients, strict=True)]
    return [*(y.detach() for y in ys), *zero]


def require_equal(one, other, rtol=1e-9, atol=1e-12):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("dopri5", "bosh3", "adaptive_heun", "fehlberg2", "tsit5", "dopri8")
CASES = [
    (odeint, "rk4", {"options": {"step_size": 0.3, "interp": "cubic"}, "moving": True}, Field),
    (odeint, "euler", {"options": {"step_size": 0.1, "perturb": True}}, Pair),
    (odeint_adjoint, "dopri5", {"moving": True}, Field),
    (odeint_adjoint, "heun3", {"times": [1.0, 0.5]}, Writes),
]
ALL = [
    (odeint_adjoint, "rk4", {"options": {"step_size": 0.25}, "moving": True}, Field),
    (odeint_adjoint, "bosh3", {}, Rotates),
    (odeint_adjoint, "dopri5", {"adjoint_options": {"norm": "seminorm"}, "adjoint_method": "bosh3"}, Pair),
    (odeint, "dopri5", {"moving": True}, Field),
    *((odeint, method, {"options": {"step_size": 0.2}}, kind) for method in FIXED for kind in (Field, Writes)),
    *((odeint_adjoint, method, {}, kind) for method in (*FIXED, *ADAPTIVE) for kind in (Pair, Writes, Rotates)),
    *((odeint_adjoint, method, {"adjoint_method": "euler", "moving": True}, Field) for method in ("rk4", "dopri5")),
]


def check(graphs, call, method, choices, kind):
    seen, choice = graphs
    net = kind()
    y0 = (state(), torch.ones(2, dtype=KIND)) if kind is Pair else state(torch.complex128 if kind is Rotates else KIND)
    if method in ADAPTIVE:
        choices = {"rtol": 1e-6, "atol": 1e-8, **choices}
    plain, compiled = (results(call, net, y0, compile, method=method, **choices) for compile in (False, choice))
    # sizes of adaptive steps follow what rounding leaves of errors
    require_equal(plain, compiled, *((1e-7, 1e-9) if method in ADAPTIVE else ()))
    assert len(seen) == (2 if call is odeint_adjoint else 1)
    with torch.no_grad():
        ys = call(net, y0, torch.tensor(TIMES, dtype=KIND), method=method, compile=choice)
    assert not any(y.requires_grad for y in (ys if isinstance(ys, tuple) else (ys,)))


@pytest.mark.parametrize(("call", "method", "choices", "kind"), CASES)
def test_what_is_compiled_is_what_it_was(graphs, call, method, choices, kind):
    check(graphs, call, method, choices, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "method", "choices", "kind"), ALL)
def test_every_method(graphs, call, method, choices, kind):
    check(graphs, call, method, choices, kind)


def test_a_field_of_no_gradient_returns_states_of_none(graphs):
    _, choice = graphs
    t = torch.tensor(TIMES, dtype=KIND)
    for needed in (False, True):
        rate = torch.ones((), dtype=KIND, requires_grad=needed)
        ys = odeint(lambda t, y, rate=rate: -rate * y, state(), t, method="euler", compile=choice)
        assert ys.requires_grad == needed


@pytest.mark.parametrize("method", ["dopri5", pytest.param("rk4", marks=pytest.mark.slow)])
def test_events_and_dense_output(graphs, method):
    _, choice = graphs
    net, found = Field(), []
    fixed = {"step_size": 0.05} if method == "rk4" else {}
    for compile in (False, choice):
        t, y = odeint_event(
            net,
            state(),
            torch.zeros((), dtype=KIND),
            event_fn=lambda t, y: t - 0.33 + 1e-3 * y.sum(),
            odeint_interface=odeint_adjoint,
            method=method,
            options=fixed,
            compile=compile,
        )
        found.append([t.detach(), y.detach(), *torch.autograd.grad(t + y[-1].sum(), [net.one.weight, net.two.bias])])
        if method == "dopri5":
            found[-1].append(odeint_dense(net, state(), 0.0, 1.0, compile=compile)(0.7).detach())
    require_equal(*found, rtol=1e-7)


class Drops(Field):
    def forward(self, t, y):
        return nn.functional.dropout(super().forward(t, y), 0.5, self.training)


class Counts(Field):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3).to(KIND)

    def forward(self, t, y):
        return self.norm(super().forward(t, y))


class Captures(Field):
    def __init__(self):
        super().__init__()
        self.others = [torch.ones(3, dtype=KIND, requires_grad=True)]

    def forward(self, t, y):
        return super().forward(t, y) * self.others[0]


class Branches(Field):
    def forward(self, t, y):
        return super().forward(t, y) if y.sum() > 0 else y


@pytest.mark.parametrize("kind", [Drops, Counts, Captures, Branches])
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_what_no_graph_can_run_again_is_refused(graphs, kind, method):
    _, choice = graphs
    with pytest.raises(UnsupportedError, match="leave out compile"):
        results(odeint_adjoint, kind(), state(), choice, method=method)


def test_other_methods_and_choices_are_refused_by_name():
    t = torch.tensor(TIMES, dtype=KIND)
    for call in (odeint, odeint_adjoint):
        with pytest.raises(UnsupportedError, match="compile with method 'implicit_adams'"):
            call(Field(), state(), t, method="implicit_adams", compile=True)
        with pytest.raises(InputError, match="mode"):
            call(Field(), state(), t, method="euler", compile={"mode": "default"})
    net = Field()
    with pytest.raises(UnsupportedError, match="no parameters of its own"):
        odeint_adjoint(lambda t, y: net(t, y), state(), t, adjoint_params=tuple(net.parameters()), compile=True)


def test_converted_layers_are_not_compiled():
    with pytest.raises(UnsupportedError, match=r"torch\.compile on the children"):
        convert(nn.Sequential(nn.Linear(2, 2)), example=torch.ones(1, 2), compile=True)
