"""Functions as fields, and those of `odeint_adjoint`: one that remembers, draws elsewhere or keeps a graph is refused.

And what a field records in the forward pass is there after the backward pass, with what hooks log in that.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import odenet
from odenet import GradientError
from odenet_torch import ResidualStack, convert, odeint_adjoint

Y0 = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64)
METHODS = "checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint"


class Field(nn.Module):
    """A tensor, a count, a buffer and a list to remember with, and a way to use them."""

    def __init__(self, way):
        super().__init__()
        self.w = nn.Parameter(torch.eye(3, dtype=torch.float64) * 0.5)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.way, self.last, self.n = way, 0.0, 0

    def forward(self, t, y):
        return self.way(self, torch.tanh(y @ self.w), y)


def last(field, slope, y):
    slope = slope + 0.5 * field.last
    field.last = slope.detach()
    return slope


def first(field, slope, y):
    if field.n == 0:
        field.n, field.last = 1, slope.detach()
    return slope + field.last


def counter(field, slope, y):
    field.n += 1
    return slope * (1 + field.n % 3)


def late_counter(field, slope, y):
    field.n += 1
    return slope if field.n < 5 else 2 * slope


def buffer(field, slope, y):
    field.count += 1
    return slope * field.count


def python(field, slope, y):
    return slope * random.random()


def graph(field, slope, y):
    field.w.kept = slope.sum()
    return slope


def hook(field, slope, y):
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return slope


WAYS = [last, first, counter, late_counter, buffer, python, graph, hook]
WHAT = "is not a function of its inputs|draws random numbers from Python|cannot be found again|hook on its input"


def closure(way):
    """The same as a closure, which is made anew in each solve."""
    field = Field(way)
    if way is buffer:
        return (lambda t, y: field(t, y)), tuple(field.parameters())
    w = torch.eye(3, dtype=torch.float64).requires_grad_()
    store = type("Store", (), {"w": w, "last": 0.0, "n": 0, "__module__": __name__})()
    return (lambda t, y: way(store, torch.tanh(y @ w), y)), (w,)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_the_drop_in_refuses_a_function_that_is_none_of_its_arguments(way, method):
    t = torch.linspace(0.0, 1.0, 3)
    for func, params in ((Field(way), None), closure(way)):
        with pytest.raises(GradientError, match=WHAT):
            odeint_adjoint(func, Y0, t, method=method, adjoint_params=params, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("way", [way for way in WAYS if way is not buffer])  # buffers are as they were, step by step
@pytest.mark.parametrize("gradient", METHODS)
def test_solve_refuses_a_closure_as_it_refuses_a_module(way, gradient):
    for field in (Field(way), closure(way)[0]):
        y0 = Y0.clone().requires_grad_()
        with pytest.raises(GradientError, match=WHAT):
            odenet.solve(field, y0, t0=0.0, t1=1.0, steps=6, solver="heun", gradient=gradient)


def test_code_that_was_looked_at_with_another_function_inside_is_looked_at_again():
    def wrapped(inner):
        return lambda t, y: inner(y)

    solve = lambda f: odenet.solve(f, Y0.clone().requires_grad_(), steps=3, solver="euler", gradient="checkpoint")  # noqa: E731
    solve(wrapped(torch.tanh))
    solve(wrapped(lambda y: torch.tanh(y)))
    with pytest.raises(GradientError, match="draws random numbers from Python"):
        solve(wrapped(lambda y: y * random.random()))


class Logging(nn.Module):
    """Keeps values of the forward pass, and logs gradients into the same list."""

    def __init__(self, log):
        super().__init__()
        self.linear, self.log, self.feature, self.n = nn.Linear(3, 3), log, None, 0

    def forward(self, x):
        out = torch.tanh(self.linear(x))
        self.log.append(out.detach())
        self.feature, self.n = out.detach(), self.n + 1
        if out.requires_grad:
            out.register_hook(lambda g: self.log.append(g.detach()))
        return out


class Residual(Logging):
    def forward(self, x):
        return x + super().forward(x)


def recorded(model, log, layers):
    """The log and the features after two passes, and after each forward pass."""
    records, x = [], torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
    log.clear()
    for _ in range(2):
        out = model(x)
        records += [[*log], [layer.feature for layer in layers]]
        out.square().sum().backward()
        records += [[*log], [layer.feature for layer in layers]]
    return records


@pytest.mark.parametrize("way", ["stack", "once", "converted"])
@pytest.mark.parametrize("gradient", [*METHODS[:3], "checkpoint:bits=16"])
def test_what_is_recorded_in_both_passes_is_what_backprop_records(way, gradient):
    results = []
    for method in ("backprop", gradient):
        torch.manual_seed(0)
        log = []
        layers = [(Residual if way == "converted" else Logging)(log) for _ in range(1 if way == "once" else 3)]
        model = nn.Sequential(*layers)
        if way != "converted":
            model = ResidualStack(model, solver="euler", gradient=method)
        elif method != "backprop":
            if method == "checkpoint:states=2":
                return
            convert(model, example=torch.zeros(2, 3), gradient=method)
        results.append(recorded(model, log, layers))
    for plain, ours in zip(*results, strict=True):
        key = lambda x: float(x.sum())  # noqa: E731
        assert len(plain) == len(ours)
        for a, b in zip(sorted(plain, key=key), sorted(ours, key=key), strict=True):
            assert (a - b).norm() <= 0.3 * a.norm() + 1e-4  # rebuilt states are not quite those of the forward pass


def keys(old, new):
    return torch.cat([old, new])


def mean(old, new):
    return 0.5 * (old + new)


def rolling(old, new):
    return torch.cat([old[1:], new[:1]])


class Attending(nn.Module):
    """A branch with keys of earlier calls, whose gradients go back through these calls."""

    def __init__(self, cache, join, index, residual):
        super().__init__()
        self.query, self.key = nn.Linear(4, 4), nn.Linear(4, 4)
        self.cache, self.join, self.index, self.residual = cache, join, index, residual

    def forward(self, x):
        key = self.key(x)
        if self.index in self.cache:
            key = self.join(self.cache[self.index], key)
        self.cache[self.index] = key
        out = torch.softmax(self.query(x) @ key.T, -1) @ key
        return x + out if self.residual else out


@pytest.mark.parametrize("join", [keys, mean, rolling])
@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:segments=2"])
def test_keys_of_earlier_calls_have_their_gradient(join, converted, gradient):
    results = []
    for method in ("backprop", gradient):
        torch.manual_seed(0)
        cache = {}
        model = nn.Sequential(*(Attending(cache, join, i, converted) for i in range(4)))
        if not converted:
            model = ResidualStack(model, solver="euler", gradient=method)
        elif method != "backprop":
            convert(model, example=torch.zeros(2, 4), gradient=method)
        for _ in range(2):
            cache.clear()
            model.zero_grad()
            sum(model(torch.linspace(-k, 1.0, 8).reshape(2, 4)).square().sum() for k in (1, 2, 3)).backward()
        results.append([p.grad for p in model.parameters()])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


CHOICES = {"fixed": {"steps": 6, "solver": "heun"}, "adaptive": {"rtol": 1e-2, "atol": 1e-2, "solver": "dopri5"}}


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "computed"])
@pytest.mark.parametrize(
    ("gradient", "grid"), [*((gradient, "fixed") for gradient in METHODS), ("checkpoint", "adaptive")]
)
def test_a_hook_on_what_stands_for_a_state_is_seen_as_well(gradient, grid, leaf, kind):
    """A state that was computed is lent as a copy, because torch lets everybody write on it; in half precision the
    field is handed another tensor than is carried."""
    w = torch.eye(3, dtype=kind).requires_grad_()

    def field(t, y):
        state = y["a"]
        if state.requires_grad:
            state.register_hook(lambda g: 2 * g)
        return {"a": torch.tanh(state @ w)}

    y0 = Y0.to(kind).clone().requires_grad_()
    with pytest.raises(GradientError, match="hook on its input"):
        odenet.solve(field, {"a": y0 if leaf else 2 * y0}, t0=0.0, t1=1.0, gradient=gradient, **CHOICES[grid])
