"""What is kept between the passes on JAX: the residuals of the VJP, whose shapes are known without running anything."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from keeping_methods import PAIRS
from quick import quick

import odenet
from odenet_jax import solve

STATE = (64, 16)


def kept(solver, gradient, steps=20):
    """Residuals of the size of the state; stacked ones have a leading axis."""

    def final(y0, w):
        return solve(lambda t, y, w: jnp.tanh(y * w), y0, w, steps=steps, solver=solver, gradient=gradient).y1

    shapes = jax.eval_shape(lambda y0, w: jax.vjp(final, y0, w)[1], jnp.ones(STATE), jnp.ones(STATE[1]))
    return sum(math.prod(leaf.shape[:-2]) for leaf in jax.tree.leaves(shapes) if leaf.shape[-2:] == STATE)


# every method with solvers of one stage and of several, and the discrete adjoint with every solver
FEW = [pair for pair in PAIRS if pair[0] in ("euler", "rk4") or pair[1] in ("discrete-adjoint", "reversible")]


@pytest.mark.parametrize(("solver", "gradient"), quick(PAIRS, FEW))
def test_the_states_kept_between_the_passes_are_those_of_the_cost_model(solver, gradient):
    assert kept(solver, gradient) == odenet.gradient(gradient).cost(odenet.solver(solver), 20).states


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_backprop_keeps_every_stage(solver):
    assert kept(solver, "backprop") >= 20 * odenet.SOLVERS[solver].stages
