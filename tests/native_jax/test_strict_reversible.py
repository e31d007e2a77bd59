"""Reversible solvers where JAX mixes no number types by itself: their signs of steps are whole numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from odenet_jax import solve

SOLVERS = ("bdia", "bdia:seed=3", "bdia:bits=no", "two-step-midpoint", "momentum", "hamiltonian", "leapfrog")


@pytest.mark.parametrize("gradient", ["reversible", "checkpoint", "backprop"])
def test_nothing_is_promoted_in_silence(gradient):
    y0, w = jnp.asarray([[1.0, 0.5, 0.2, 0.1]], jnp.float32), jnp.asarray(0.7, jnp.float32)

    def loss(y, w, solver):
        return jnp.sum(solve(lambda t, y, w: -w * y * jnp.cos(t), y, w, steps=3, solver=solver, gradient=gradient).ys)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for solver in SOLVERS:
            jax.make_jaxpr(jax.grad(lambda y, w, solver=solver: loss(y, w, solver), (0, 1)))(y0, w)
