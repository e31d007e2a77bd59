"""Dicts whose keys JAX cannot sort are an error of ours, wherever a user hands one over."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import odenet
import odenet_jax

MIXED = {1: 1.0, "a": 2.0}


def slope(t, y, *weights):
    return jax.tree.map(lambda leaf: -leaf, y)


CALLS = {
    "y0": lambda: odenet_jax.solve(slope, MIXED, steps=2),
    "y0, adaptive": lambda: odenet_jax.solve(slope, MIXED, rtol=1e-3),
    "weights": lambda: odenet_jax.solve(slope, 1.0, MIXED, steps=2),
    "slope": lambda: odenet_jax.solve(lambda t, y: {1: y["a"], "a": y["b"]}, {"a": 1.0, "b": 2.0}, steps=2),
    "rtol": lambda: odenet_jax.solve(slope, {"a": 1.0, "b": 2.0}, rtol=MIXED, atol=1e-3),
    "drop-in, y0": lambda: odenet_jax.odeint(lambda y, t: y, MIXED, jnp.array([0.0, 1.0])),
    "drop-in, args": lambda: odenet_jax.odeint(lambda y, t, w: y, 1.0, jnp.array([0.0, 1.0]), MIXED),
}


@pytest.mark.parametrize("place", CALLS)
def test_keys_that_cannot_be_sorted_are_refused(place):
    with pytest.raises(odenet.OdenetError, match="keys"):
        CALLS[place]()
