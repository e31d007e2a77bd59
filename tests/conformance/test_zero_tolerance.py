"""`atol=0` with an entry that is zero, and empty batches, through `solve` and the drop-ins."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from cases import flat

import odenet
from odenet import PIDController

FIELDS = {
    "stays zero": (lambda t, y: -y, [0.0, math.exp(-1)]),
    "leaves zero": (lambda t, y: 1 + 0 * y, [1.0, 2.0]),
    "zero all along": (lambda t, y: 0 * y, [0.0, 1.0]),
}


@pytest.mark.parametrize("name", FIELDS)
def test_an_entry_of_zero_is_no_hindrance(thorough, name):
    field, right = FIELDS[name]
    for atol in (0.0, np.zeros(2)):
        solution = odenet.solve(field, np.array([0.0, 1.0]), backend=thorough, rtol=1e-8, atol=atol)
        np.testing.assert_allclose(flat(thorough, solution.y1), right, rtol=1e-6)


def test_an_entry_of_zero_is_none_on_the_way_back_and_in_rows():
    torch = importlib.import_module("torch")
    for gradient in ("backprop", "continuous-adjoint", odenet.ContinuousAdjoint(seminorm=False)):
        y = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        odenet.solve(lambda t, y, w: -w * y, y, w, rtol=1e-8, atol=0.0, gradient=gradient).y1.sum().backward()
        np.testing.assert_allclose(y.grad, [math.exp(-1)] * 2, rtol=1e-6)
        np.testing.assert_allclose(w.grad, -math.exp(-1), rtol=1e-6)
    rows = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    control = PIDController(1e-8, 0.0, per_sample=True)
    np.testing.assert_allclose(odenet.solve(lambda t, y: -y, rows, control=control).y1[:, 0], FIELDS["stays zero"][1])


def test_torch_drop_ins_take_both():
    torch, ours = importlib.import_module("torch"), importlib.import_module("odenet_torch")
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    for solve, more in ((ours.odeint, {}), (ours.odeint_adjoint, {"adjoint_params": ()})):
        y = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        found = solve(lambda t, y: -y, y, t, rtol=1e-8, atol=0.0, **more)
        found[-1].sum().backward()
        np.testing.assert_allclose(found[-1].detach(), FIELDS["stays zero"][1], rtol=1e-6)
        np.testing.assert_allclose(y.grad, [math.exp(-1)] * 2, rtol=1e-6)
        empty = torch.zeros(0, 2, dtype=torch.float64, requires_grad=True)
        found = solve(lambda t, y: -y, empty, t, **more)
        found.sum().backward()
        assert found.shape == (3, 0, 2)
        assert empty.grad is not None


@pytest.mark.slow
def test_the_jax_drop_in_takes_both():
    jax, ours = importlib.import_module("jax"), importlib.import_module("odenet_jax")
    jnp = jax.numpy
    with odenet.backend("jax").prepare("float64", "cpu"):
        t = jnp.linspace(0, 1, 3)
        assert ours.odeint(lambda y, t: jax.tree.map(jnp.negative, y), {"a": jnp.zeros((0, 2))}, t)["a"].shape == (
            3,
            0,
            2,
        )

        def last(y):
            return ours.odeint(lambda y, t: -y, y, t, rtol=1e-8, atol=0.0)[-1]

        np.testing.assert_allclose(last(jnp.array([0.0, 1.0])), FIELDS["stays zero"][1], rtol=1e-6)
        slope = jax.grad(lambda y: last(y).sum())(jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(slope, [math.exp(-1)] * 2, rtol=1e-6)
