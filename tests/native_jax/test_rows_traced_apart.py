"""Rows of a `jax.vmap` under `jax.checkpoint` and `jax.lax.cond`, where JAX traces values and their tangents apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet_jax import solve

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


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(
    ("field", "transform", "factors"),
    [
        (of_weights, under_checkpoint, (1, 1, 1)),
        (of_weights, under_cond, (1, 1, 2)),
        (of_none, under_checkpoint, (1, 1, 1)),
    ],
)
def test_a_gradient_outside_of_the_rows_is_the_sum_of_theirs(field, transform, factors, gradient):
    def loss(row, w):
        start = jnp.asarray(STATE) * w[0, 0]
        return jnp.sum(solve(field, start, w * (1 + row), rtol=1e-4, atol=1e-6, gradient=gradient).y1 ** 2)

    weights, rows = jnp.asarray(WEIGHTS), jnp.asarray(ROWS)
    found = jax.grad(lambda w: jnp.sum(jax.vmap(transform(loss), (0, None))(rows, w)))(weights)
    one = jax.jit(jax.grad(loss, 1))
    right = sum(factor * one(row, weights) for factor, row in zip(factors, rows, strict=True))
    accuracy = 1e-3 if gradient == "continuous-adjoint" else 1e-6  # whose steps follow the size of the cotangent
    np.testing.assert_allclose(found, right, rtol=accuracy, atol=accuracy)
