"""Functions that keep what they met in an earlier call: right, or refused by an error of ours."""

from __future__ import annotations

import functools
from collections import OrderedDict

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from odenet import StateError
from odenet_jax import NeuralODE, ResidualStack, convert, odeint, solve
from odenet_jax.field import repeatable

Y0 = jnp.asarray([1.0, 0.5])
SCALE = jnp.asarray(0.1)
ADAPTIVE = {"rtol": 1e-3, "atol": 1e-3}


class Remembering:
    """-0.7 y, with an array that the first call makes."""

    def __init__(self):
        self.kept = []

    def __call__(self, t, y):
        if not self.kept:
            self.kept.append(jnp.ones_like(y))
        return -0.7 * y * self.kept[0]


class Block(eqx.Module):
    scale: jax.Array
    of: Remembering = eqx.field(static=True)

    def __call__(self, x):
        return self.scale * self.of(0.0, x)


class Layer(eqx.Module):
    block: Block

    def __call__(self, x):
        return x + self.block(x)


def field(**choices):
    def run(of, y):
        return solve(of, y, **choices).ys

    return run


def converted(of, y):
    return convert(eqx.nn.Sequential([eqx.nn.Lambda(Layer(Block(SCALE, of))) for _ in range(3)]), example=y)(y)


def fallen(of, y):
    return solve(lambda t, y: -y, y, event=lambda t, y: of(t, y)[0] + 0.6, **ADAPTIVE).y1


PLACES = {
    "solve": field(steps=3),
    "checkpoint": field(steps=3, gradient="checkpoint"),
    "adaptive": field(**ADAPTIVE),
    "node": lambda of, y: NeuralODE(lambda t, y: of(t, y), steps=2)(y),
    "stack": lambda of, y: ResidualStack([Block(SCALE, of), Block(SCALE, of)], gradient="discrete-adjoint")(y),
    "odeint": lambda of, y: odeint(lambda y, t: of(t, y), y, jnp.asarray([0.0, 1.0])),
    "event": fallen,
    "convert": converted,
}
SLOW = [pytest.param(place, marks=pytest.mark.slow) for place in PLACES if place not in ("solve", "convert")]


@pytest.mark.parametrize("place", ["solve", "convert", *SLOW])
def test_an_array_of_an_earlier_trace_is_refused(place):
    of = Remembering()

    def twice():
        for _ in range(2):
            PLACES[place](of, Y0)

    with pytest.raises(StateError, match="has kept"):
        twice()


def test_counts_and_concrete_arrays_may_be_kept(monkeypatch):
    monkeypatch.setattr(repeatable, "_KNOWN", OrderedDict())  # a field of an earlier test may have the same program
    calls = []

    @functools.cache
    def rates():
        with jax.ensure_compile_time_eval():
            return jnp.asarray([0.7, 0.7])

    def slope(t, y):
        calls.append(t)
        return -rates() * y

    found = [jax.grad(lambda y: solve(slope, y, steps=4, gradient="checkpoint").y1.sum())(Y0) for _ in range(2)]
    assert jnp.allclose(found[0], (1 - 0.7 / 4) ** 4, rtol=1e-5)
    assert (found[0] == found[1]).all()
    assert len(calls) == 3  # the first solve looks twice whether the field is the same (`field.repeatable`)
