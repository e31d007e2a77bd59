"""Functions that are another at each call: JAX would run what it read first in all steps, and so they are refused."""

from __future__ import annotations

import itertools
import random

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet import StateError, UnsupportedError
from odenet_jax import NeuralODE, ResidualStack, convert, odeint, solve

Y0 = jnp.asarray([1.0, 0.5])
ADAPTIVE = {"rtol": 1e-3, "atol": 1e-3}


class Changing:
    """A number that is another at each call."""

    def __init__(self, kind):
        self.numbers = itertools.count(1.0) if kind == "counter" else []
        self.kind, self.draws = kind, np.random.default_rng(0)

    def __call__(self):
        if self.kind == "counter":
            return next(self.numbers)
        if self.kind == "list":
            self.numbers.append(1)
            return len(self.numbers)
        if self.kind == "generator":
            return self.draws.standard_normal(2)
        if self.kind == "choice":  # the same in two traces half the time
            return 1.0 if random.random() < 0.5 else 0.5
        return np.random.rand()


KINDS = ("counter", "list", "generator", "choice", "numpy")


class Block(eqx.Module):
    scale: jax.Array
    number: Changing | None = eqx.field(static=True)

    def __call__(self, x):
        return self.scale * x * (1.0 if self.number is None else self.number())


class Layer(eqx.Module):
    block: Block

    def __call__(self, x):
        return x + self.block(x)


def field(**choices):
    return lambda number, y: solve(lambda t, y: -0.1 * y * number(), y, **choices).ys


def blocks(number):
    return [Block(jnp.asarray(0.1 * n), number) for n in range(1, 4)]


WAYS = {
    "backprop": field(steps=2, solver="heun"),
    "checkpoint": field(steps=2, gradient="checkpoint"),
    "discrete adjoint": field(steps=2, gradient="discrete-adjoint"),
    "adaptive": field(**ADAPTIVE),
    "event": lambda number, y: solve(lambda t, y: -y, y, event=lambda t, y: y[0] - 0.5 * number(), **ADAPTIVE).y1,
    "odeint": lambda number, y: odeint(lambda y, t: -0.1 * y * number(), y, jnp.asarray([0.0, 1.0]), **ADAPTIVE),
    "NeuralODE": lambda number, y: NeuralODE(lambda t, y: Block(jnp.asarray(0.1), number)(y), steps=2)(y),
    "stack": lambda number, y: ResidualStack(blocks(number), gradient="checkpoint")(y),
    "convert": lambda number, y: convert(
        eqx.nn.Sequential([eqx.nn.Lambda(Layer(b)) for b in blocks(number)]), gradient="discrete-adjoint", example=y
    )(y),
}


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize(
    ("way", "kind"), [*((way, "counter") for way in WAYS), *(("backprop", kind) for kind in KINDS)]
)
def test_a_function_that_changes_is_refused(way, kind, traced):
    random.seed(0)
    number = Changing(kind)
    run = jax.jit(lambda y: WAYS[way](number, y)) if traced else lambda y: WAYS[way](number, y)
    early = traced and way == "convert"  # which no transformation may go around, whatever the layers do
    with pytest.raises(UnsupportedError if early else StateError, match="inside" if early else "is another at each"):
        run(Y0)


def test_a_choice_is_refused_where_the_program_that_it_drew_is_known():
    solve(lambda t, y: -0.1 * y, Y0, steps=2)
    random.seed(0)
    number = Changing("choice")
    with pytest.raises(StateError, match="is another at each call"):
        solve(lambda t, y: -0.1 * y if number() == 1.0 else jnp.sin(y), Y0, steps=2)


def test_a_field_that_is_the_same_is_solved_as_ever():
    """What is made at each call need not be the same object, and what is only written changes nothing."""
    calls = []

    def f(t, y):
        calls.append(1)

        @jax.custom_jvp
        def doubled(x):
            return 2 * x

        doubled.defjvp(lambda primals, tangents: (doubled(primals[0]), 2 * tangents[0]))
        scale = jnp.asarray([1.0, jnp.nan]) + np.asarray([0.0, -0.0])
        noise = jax.random.normal(jax.random.key(0), (2,))
        return jax.lax.cond(y[0] > 0, lambda: doubled(y), lambda: y) + noise + jnp.nan_to_num(scale)

    for run in (lambda y: solve(f, y, steps=2).y1, jax.jit(lambda y: solve(f, y, steps=2).y1)):
        first, second = run(Y0), run(Y0)
        assert first.tolist() == second.tolist()
    np.testing.assert_allclose(first, _by_hand(f), rtol=1e-6)
    count = len(calls)
    run(Y0)
    assert len(calls) == count  # to look twice costs nothing once it is compiled


def _by_hand(f):
    y = Y0
    for n in range(2):
        y = y + 0.5 * f(n / 2, y)
    return y


def test_what_changes_between_solves_is_read_anew():
    scale = [1.0]
    ends = []
    for _ in range(2):
        ends.append(float(solve(lambda t, y: scale[0] * y, jnp.asarray(1.0), steps=1).y1))
        scale[0] = 2.0
    assert ends == [2.0, 3.0]
