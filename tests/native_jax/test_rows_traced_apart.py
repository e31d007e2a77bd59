"""Rows of a `jax.vmap` under `jax.checkpoint` and `jax.lax.cond`, where JAX traces values and their tangents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet_jax import odeint, solve

ROWS = (0.0, 0.1, 0.2)
STATE, WEIGHTS = (1.0, 0.5), ((-0.5, 1.0), (-1.0, -0.3))
GRADIENTS = [
    "backprop",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("checkpoint", "discrete-adjoint", "continuous-adjoint")),
]


def of_weights(t, y, w):
    return jnp.tanh(w @ y)


def of_none(t, y, w):
    return -y


def under_checkpoint(loss):
    return jax.checkpoint(loss)


def under_cond(loss):
    return lambda row, w: jax.lax.cond(row < 0.15, loss, lambda row, w: 2 * loss(row, w), row, w)


def the_sum_of_rows(loss, transform, factors):
    """The gradient taken outside of the rows, and that of each by itself, added up."""
    weights, rows = jnp.asarray(WEIGHTS), jnp.asarray(ROWS)
    found = jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(transform(loss), (0, None))(rows, w))))(weights)
    one = jax.jit(jax.grad(loss, 1))
    return found, sum(factor * one(row, weights) for factor, row in zip(factors, rows, strict=True))


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("field", "transform", "factors"),
    [
        pytest.param(of_weights, under_checkpoint, (1, 1, 1), marks=pytest.mark.slow),
        (of_weights, under_cond, (1, 1, 2)),
        (of_none, under_checkpoint, (1, 1, 1)),
    ],
)
def test_a_gradient_outside_of_the_rows_is_the_sum_of_theirs(field, transform, factors, gradient):
    def loss(row, w):
        start = jnp.asarray(STATE) * w[0, 0]
        return jnp.sum(solve(field, start, w * (1 + row), rtol=1e-4, atol=1e-6, gradient=gradient).y1 ** 2)

    found, right = the_sum_of_rows(loss, transform, factors)
    accuracy = 1e-3 if gradient == "continuous-adjoint" else 1e-6  # whose steps follow the size of the cotangent
    np.testing.assert_allclose(found, right, rtol=accuracy, atol=accuracy)


def of_equal_steps(row, w):
    return solve(of_none, jnp.asarray(STATE) * w[0, 0], w * (1 + row), steps=4, gradient="discrete-adjoint").y1


def of_the_drop_in(row, w):
    return odeint(lambda y, t, w: -y, jnp.asarray(STATE) * w[0, 0], jnp.asarray([0.0, 1.0]), w * (1 + row))[-1]


@pytest.mark.parametrize("last", [of_equal_steps, of_the_drop_in])
def test_equal_steps_and_the_drop_in_have_their_rows_too(last):
    found, right = the_sum_of_rows(lambda row, w: jnp.sum(last(row, w) ** 2), under_checkpoint, (1, 1, 1))
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-9)
