"""Gradients of half-precision weights that every step reads: summed in float32, rounded once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odenet import PIDController
from odenet_jax import solve

FAST = ({"gradient": "backprop"}, {"gradient": "discrete-adjoint"})
SLOW = (
    *({"gradient": gradient} for gradient in ("checkpoint", "checkpoint:states=5", "continuous-adjoint")),
    {"solver": "reversible:heun", "gradient": "reversible"},
    *(
        {"gradient": gradient, "steps": None, "control": PIDController(rtol=1e-3, max_step=1e-3)}
        for gradient in ("backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint")
    ),
)


@pytest.mark.parametrize("choices", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_thousand_steps_lose_no_more_than_one_rounding(choices):
    weight, y0 = jnp.array([0.3, -0.2, 0.5, 0.1], jnp.bfloat16), jnp.array([0.7, 1.2, 0.6, 1.4], jnp.bfloat16)

    def of(kind):
        def loss(w):
            return solve(lambda t, y, w: jnp.sin(w * y), y0.astype(kind), w, **{"steps": 1000, **choices}).y1.sum()

        return np.asarray(jax.jit(jax.grad(loss))(weight.astype(kind)), np.float32)

    np.testing.assert_allclose(of(jnp.bfloat16), of(jnp.float32), rtol=2e-2)
