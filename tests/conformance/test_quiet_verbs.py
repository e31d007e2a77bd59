"""Verbs that return the certificate raise no alarm of it: who asks for it tells it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import odenet
from odenet._backend import registry

SPEC = odenet.NetSpec("mlp", depth=3, along="piecewise", horizon=30.0)
BATCH = np.random.default_rng(0).standard_normal((4, 1, 8, 8)), np.arange(4)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("gradient", ["discrete-adjoint", "discrete-adjoint:correct=no"])
def test_evaluating_and_measuring_a_useless_gradient_says_so_in_the_result_alone(backend, gradient):
    loaded = registry.backend(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with loaded.prepare("float64", "cpu"):
            model = loaded.build(
                SPEC,
                SPEC.init(0),
                solver=odenet.solver("euler"),
                gradient=odenet.gradient(gradient),
                dtype="float64",
                device="cpu",
            )
            certificate = loaded.evaluate(model, *BATCH).certificate
            loaded.measure(model, *BATCH, 1)
    assert certificate is not None
    assert certificate > 0.1
