"""Derivatives of dense output by its times, at the ends of the solve, too; times of equal steps are refused by name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import odenet
import odenet_jax


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


@pytest.mark.parametrize(
    ("y0", "slope"),
    [
        (jnp.ones(3), lambda y, t: y[:1]),
        (jnp.ones(3), lambda y, t: 0.0),
        (jnp.ones((2, 3)), lambda y, t: y.T),
        ((jnp.ones((2, 3)), jnp.ones(3)), lambda y, t: (y[0].T, y[1])),
        ({"a": jnp.ones(2), "b": jnp.ones(2)}, lambda y, t: {"a": y["a"], "c": y["b"]}),
        ((jnp.ones(2), jnp.ones(2)), lambda y, t: jnp.ones(4)),
        (jnp.ones(2), lambda y, t: None),
    ],
)
def test_a_slope_of_another_shape_in_the_drop_in(y0, slope):
    with pytest.raises(odenet.StateError, match=r"func returned leaves .* for a state of"):
        odenet_jax.odeint(slope, y0, jnp.array([0.0, 1.0]))
