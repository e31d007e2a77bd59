"""Programs that `jax.export` made: any batch size, several platforms, and NaN for an error that no host can raise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import odenet
from odenet_jax import odeint, solve

ADAPTIVE = {"rtol": 1e-4, "atol": 1e-5}
USES = {
    "sketched": {"steps": 4, "solver": "heun", "gradient": "discrete-adjoint"},
    "to a tolerance": {"steps": 4, "solver": "heun", "gradient": "discrete-adjoint:tolerance=1e-4"},
    "reversible": {"steps": 4, "solver": "reversible-heun", "gradient": "reversible"},
    "continuous": {**ADAPTIVE, "gradient": "continuous-adjoint"},
    "drop-in": pytest.param(None, marks=pytest.mark.slow),
}
Y0 = jnp.asarray(np.linspace(-1, 1, 6).reshape(3, 2), jnp.float32)
W = jnp.array([[0.3, -0.4], [0.5, 0.2]])


def turning(t, y, w):
    return jnp.tanh(y @ w)


def gradient_of(choices):
    def loss(y, w):
        if choices is None:
            return jnp.sum(odeint(lambda y, t, w: turning(t, y, w), y, jnp.array([0.0, 1.0]), w, **ADAPTIVE)[-1] ** 2)
        return jnp.sum(solve(turning, y, w, **choices).y1 ** 2)

    return jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize("choices", USES.values(), ids=USES)
def test_a_gradient_is_exported_for_any_batch_and_platform(choices):
    gradient = gradient_of(choices)
    rows = export.symbolic_shape("rows")[0]
    like = jax.ShapeDtypeStruct((rows, 2), jnp.float32), jax.ShapeDtypeStruct((2, 2), jnp.float32)
    exported = export.export(gradient, platforms=("cpu", "cuda"))(*like)
    assert "callback" not in exported.mlir_module()
    for found, expected in zip(exported.call(Y0, W), gradient(Y0, W), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


FAILING = {
    "to a tolerance": (USES["to a tolerance"], lambda t, y, w: 30 * jnp.tanh(y @ w)),
    # the forward steps are as few as they are, those of the way back more than 30
    "continuous": (
        {
            "control": odenet.PIDController(1e-5, 1e-6, max_steps=30),
            "gradient": odenet.ContinuousAdjoint(rtol=1e-11, atol=1e-11),
        },
        lambda t, y, w: -3 * y,
    ),
}


@pytest.mark.parametrize("use", FAILING)
def test_a_gradient_that_could_not_be_given_is_nan_in_an_exported_program(use):
    choices, field = FAILING[use]
    gradient = jax.jit(jax.grad(lambda y, w: jnp.sum(solve(field, y, w, **choices).y1)))
    with pytest.raises(Exception, match="What to do: "):
        jax.block_until_ready(gradient(Y0, W))
    assert np.isnan(export.export(gradient)(Y0, W).call(Y0, W)).all()
