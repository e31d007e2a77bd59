"""What a field, a block and an event can be called with: asked of what is called, and not of what that wraps."""

from __future__ import annotations

import functools
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

import odenet
import odenet_jax
import odenet_torch

ONES = {"torch": lambda: torch.ones(2, dtype=torch.float64), "jax": lambda: jnp.ones(2)}
GRIDS = {"fixed": {"steps": 40, "solver": "rk4"}, "adaptive": {"rtol": 1e-6, "atol": 1e-6}}
TIMES = torch.tensor([0.0, 1.0])


def decay(y):
    return -y


class WithTime:
    def __init__(self, function):
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, t, y):
        return self.function(y)


def with_time(function):
    @functools.wraps(function)
    def field(t, y):
        return function(y)

    return field


def passed_on(function):
    @functools.wraps(function)
    def field(*arguments):
        return function(arguments[-1])

    return field


def passed_on_whole(function):
    @functools.wraps(function)
    def called(*arguments):
        return function(*arguments)

    return called


@pytest.mark.parametrize("wrapper", [WithTime, with_time, passed_on, lambda f: functools.partial(with_time(f))])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("one", ONES)
def test_what_a_decorator_wrote_is_called_as_it_says_itself(one, grid, wrapper):
    """`functools.wraps` gives it the signature of what it wraps, which it may call with fewer arguments."""
    y = odenet.solve(wrapper(decay), ONES[one](), **GRIDS[grid]).y1
    assert float(abs(y - math.exp(-1)).max()) < 1e-5


@pytest.mark.parametrize("one", ONES)
def test_conditions_of_events_too(one):
    event = odenet.Event(with_time(lambda y: y[0] - 0.5))
    solution = odenet.solve(with_time(decay), ONES[one](), **GRIDS["adaptive"], event=event)
    assert float(solution.event_t) == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("one", ONES)
def test_a_condition_whose_wrapper_passes_all_on_is_refused_in_words(one):
    event = odenet.Event(passed_on_whole(lambda y: y[0] - 0.5))
    with pytest.raises(odenet.InputError, match=r"an event's condition takes .*Allowed: a condition"):
        odenet.solve(with_time(decay), ONES[one](), **GRIDS["adaptive"], event=event)


def test_functions_of_the_drop_ins_too():
    assert float(odenet_torch.odeint(with_time(decay), torch.ones(2), TIMES)[-1, 0]) == pytest.approx(
        0.367879, abs=1e-5
    )
    against = functools.wraps(decay)(lambda y, t: -y)
    y = odenet_jax.odeint(against, jnp.ones(2), jnp.array([0.0, 1.0]))
    assert float(y[-1, 0]) == pytest.approx(0.367879, abs=1e-5)


CALLS = {
    "solve": lambda field, one, grid: odenet.solve(field, one, **grid),
    "NeuralODE": lambda field, one, grid: (odenet_torch if isinstance(one, torch.Tensor) else odenet_jax).NeuralODE(
        field, **grid
    )(one),
    "odeint": lambda field, one, grid: (
        odenet_torch.odeint(field, one, TIMES)
        if isinstance(one, torch.Tensor)
        else odenet_jax.odeint(field, one, jnp.array([0.0, 1.0]))
    ),
    "odeint_adjoint": lambda field, one, grid: odenet_torch.odeint_adjoint(field, one, TIMES),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (kind, call)
        for kind in ("Sequential", "MLP", "jit", "filter_jit")
        for call in CALLS
        if kind == "Sequential" or call != "odeint_adjoint"  # torch's alone
    ],
)
def test_a_network_of_the_state_alone_is_refused_in_words(kind, call, grid):
    """The mistake of a first try: a network that takes no time is a block, and no field."""
    if kind == "Sequential":
        field, one = nn.Sequential(nn.Linear(2, 2), nn.Tanh()), ONES["torch"]().float()
    else:
        mlp = eqx.nn.MLP(2, 2, 4, 1, key=jax.random.key(0))
        field, one = {"MLP": mlp, "jit": jax.jit(decay), "filter_jit": eqx.filter_jit(decay)}[kind], ONES["jax"]()
    with pytest.raises(odenet.InputError, match=r"(field|func).* takes .*Allowed: .*\((t, y|y, t)"):
        CALLS[call](field, one, GRIDS[grid])


class TakesTime(nn.Module):
    def forward(self, t, x):
        return x


def test_blocks_that_take_a_time_are_refused_in_words():
    net = odenet_torch.ResidualStack([TakesTime(), TakesTime()])
    with pytest.raises(odenet.InputError, match=re.escape("a block is a TakesTime, which takes (t, x)")):
        net(torch.ones(2))


def test_modules_whose_hooks_change_the_arguments_are_called_as_they_are():
    module = nn.Linear(2, 2).double()
    module.register_forward_pre_hook(lambda module, arguments: arguments[-1:])
    y = odenet.solve(module, ONES["torch"](), steps=4).y1
    assert y.isfinite().all()


def test_a_type_error_of_the_field_itself_comes_out_as_it_is():
    for one in ONES.values():
        with pytest.raises(TypeError, match="of its own"):
            odenet.solve(passed_on(_raising), one(), steps=4)


def _raising(y):
    raise TypeError("of its own")
