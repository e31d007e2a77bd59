"""Leaves of the state and rows of them that are zero at t0, as the log-density of a flow is: they have no size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from quick import quick

import odenet

EQUAL = {"steps": 16}
TOLERANCES = {"rtol": 1e-6, "atol": 1e-8}
CASES = {
    "discrete-adjoint": ("heun", EQUAL),
    "discrete-adjoint:anchors=4": ("heun", EQUAL),
    "discrete-adjoint, adaptive": ("dopri5", TOLERANCES),
    "discrete-adjoint:anchors=2, adaptive": ("dopri5", TOLERANCES),
    "reversible": ("reversible-heun", EQUAL),
    "continuous-adjoint": ("rk4", EQUAL),
    "continuous-adjoint, adaptive": ("dopri5", TOLERANCES),
    "checkpoint:bits=8": ("heun", EQUAL),
    "checkpoint:bits=16": ("heun", EQUAL),
}


def arrays(backend):
    if backend == "torch":
        torch = pytest.importorskip("torch")
        return torch, lambda x: torch.tensor(x, dtype=torch.float64)
    jnp = pytest.importorskip("jax.numpy")
    return jnp, lambda x: jnp.asarray(x, dtype="float64")


ALL = list(itertools.product(("torch", "jax"), CASES, ("density", "all", "a row")))
ON_JAX = [  # two programs each: one of each kind of gradient and of steps, and each start
    ("discrete-adjoint", "all"),
    ("discrete-adjoint, adaptive", "density"),
    ("discrete-adjoint:anchors=2, adaptive", "a row"),
    ("reversible", "density"),
    ("continuous-adjoint, adaptive", "density"),
    ("checkpoint:bits=8", "a row"),
]
QUICK = [case for case in ALL if case[0] == "torch" or case[1:] in ON_JAX]


@pytest.mark.parametrize(("backend", "case", "start"), quick(ALL, QUICK))
def test_the_certificate_is_small_where_the_gradient_is_right(backend, case, start):
    """It was 1e+300, and said that the gradient is useless."""
    solver, steps = CASES[case]
    gradient = case.partition(",")[0]
    with odenet.backend(backend).prepare("float64", "cpu"):
        library, array = arrays(backend)
        rng = np.random.default_rng(1)
        w = array(rng.standard_normal((2, 2)) / 2)
        zero = {"density": [0, 0, 0], "all": [1, 1, 1], "a row": [0, 1, 0]}[start]
        x = array(rng.standard_normal((3, 2)) * (1 - np.array(zero)[:, None]))
        y0 = x, array(np.zeros((3, 1)))

        def field(t, y, w):
            activation = library.tanh(y[0] @ w + 0.3)
            return activation, (1 - activation * activation) @ w[:, :1]

        def loss(solution):
            x, density = solution.y1
            return (x * x).sum() + density.sum()

        def answer(gradient):
            _, gradients, solution = odenet.value_and_grad(
                loss, field, y0, w, solver=solver, gradient=gradient, **steps
            )
            return np.asarray(gradients.weights), solution.stats.certificate

        exact, _ = answer("backprop")
        found, certificate = answer(gradient)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < 0.01
    assert certificate is not None
    assert error / 3 < certificate + 1e-6
    assert certificate < 0.05
