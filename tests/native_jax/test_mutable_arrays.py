"""Mutable arrays (`jax.new_ref`): a function may use those that it makes; others would be read as they are by then."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet import Event, StateError
from odenet_jax import NeuralODE, ResidualStack, odeint, solve

pytestmark = [
    pytest.mark.usefixtures("x64"),
    pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="mutable arrays of JAX"),
]
EQUAL = {"solver": "euler", "steps": 3}
ADAPTIVE = {"solver": "dopri5", "rtol": 1e-8, "atol": 1e-8}
Y = np.array([0.3, -0.2])


def decay(t, y, w):
    """-w y, by a reference that it makes."""
    slope = jax.new_ref(jnp.zeros(y.shape, y.dtype))
    slope[...] = -w * y
    slope[...] *= 1.0
    return slope[...]


@pytest.mark.parametrize(
    ("gradient", "choices", "growth"),
    [
        ("discrete-adjoint:iterations=12", EQUAL, lambda w: (1 - w / 3) ** 3),
        ("continuous-adjoint", ADAPTIVE, lambda w: jnp.exp(-w)),
    ],
)
def test_a_field_that_makes_references_is_right(gradient, choices, growth):
    """An adaptive solve took their effects for rows of a `jax.vmap` that read each other."""

    def loss(y0, w):
        return jnp.sum(solve(decay, y0, w, gradient=gradient, **choices).y1)

    expected = jax.grad(lambda y0, w: jnp.sum(growth(w) * y0), argnums=(0, 1))(Y, 0.7)
    for calculated, exact in zip(jax.grad(loss, argnums=(0, 1))(Y, 0.7), expected, strict=True):
        np.testing.assert_allclose(calculated, exact, rtol=1e-6)


class Counting(eqx.Module):
    weight: jax.Array
    calls: jax.Array

    def __call__(self, x):
        self.calls[...] += 1.0
        return self.weight * x


def _ways(ref):
    def reading(t, y):
        return -ref[...] * y

    def writing(t, y):
        ref[...] += 1.0
        return -y

    yield from (lambda f=f, c=c: solve(f, Y, **c) for f in (reading, writing) for c in (EQUAL, ADAPTIVE))
    yield lambda: jax.jit(lambda y: solve(writing, y, gradient="discrete-adjoint", **EQUAL).y1)(Y)
    yield lambda: jax.grad(lambda y: jnp.sum(solve(reading, y, gradient="checkpoint", **EQUAL).y1))(Y)
    yield lambda: solve(lambda t, y, w: -w[...] * y, Y, ref, **EQUAL)
    yield lambda: solve(lambda t, y: -y, jax.new_ref(Y), **EQUAL)
    yield lambda: solve(lambda t, y: -y, Y, event=Event(lambda t, y: y[0] - ref[...]), **ADAPTIVE)
    yield lambda: odeint(lambda y, t: reading(t, y), Y, jnp.array([0.0, 1.0]))
    yield lambda: odeint(lambda y, t, w: -w[...] * y, Y, jnp.array([0.0, 1.0]), ref)
    yield lambda: NeuralODE(reading, steps=2)(Y)
    yield lambda: ResidualStack([Counting(jnp.ones(2), ref)] * 2)(Y)


@pytest.mark.parametrize("way", range(13))
def test_a_reference_from_outside_of_a_function_is_refused(way):
    """They were errors of NumPy or JAX, or ran, in compiled equal steps, where a step may run again."""
    with pytest.raises(StateError, match=r"jax\.Ref \(a mutable array\)"):
        list(_ways(jax.new_ref(jnp.array(2.0))))[way]()
