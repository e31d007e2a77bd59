"""Derivatives of dense output by its times, at the ends of the solve, too; times of equal steps are refused by name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import odenet


def field(t, y):
    return -y * jnp.cos(t)


def test_dense_output_by_its_times():
    found = odenet.solve(field, jnp.array([2.0]), t1=0.8, dense=True, rtol=1e-5, atol=1e-7)
    dense = jax.jit(jax.value_and_grad(lambda t: found.at(t)[0]))
    for t in (0.0, 0.4, 0.8):
        y, slope = dense(t)
        assert slope == pytest.approx(float(field(t, y)), rel=1e-3)


def test_times_of_equal_steps_need_no_gradient():
    def last(t1, **more):
        return odenet.solve(field, jnp.array([2.0]), steps=4, **{"t1": t1, **more}).y1[0]

    with pytest.raises(odenet.GridError, match=r"known before the solve.*rtol and atol.*t1 f\(t1 s, y\)"):
        jax.grad(last)(0.8)
    with pytest.raises(odenet.GridError, match="rtol and atol"):
        jax.grad(lambda ts: last(1.0, ts=ts))(jnp.array([0.5, 1.0]))
