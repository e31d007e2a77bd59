"""A loss of what a solve did not get to is NaN, and so is its gradient: never zero, as at a minimum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import PIDController
from odenet_jax.drop_in.odeint import odeint

RATES = np.array([0.3, 0.5, 5.0])  # of three rows: the last ends before t = 0.2
TS = np.array([0.0, 0.1, 1.0])

pytestmark = pytest.mark.usefixtures("x64")


def dropped_in(rate, w):
    return odeint(lambda y, t, w: rate * w * jnp.exp(y), jnp.array([0.5]), TS, w, rtol=1e-6, atol=1e-8, mxstep=50.0)


def solved(rate, w, gradient="backprop", **choices):
    control = PIDController(1e-6, 1e-8, max_steps=50, throw=False)
    choices = {"ts": TS, **choices}
    solution = odenet.solve(
        lambda t, y, w: rate * w * jnp.exp(y), jnp.array([0.5]), w, control=control, gradient=gradient, **choices
    )
    return solution.ys if "event" not in choices else solution.event_t


def never(t, y):
    return y[0] + 5


CASES = {
    "drop-in": dropped_in,
    "backprop": solved,
    "continuous-adjoint": functools.partial(solved, gradient="continuous-adjoint"),
    "end": functools.partial(solved, gradient="discrete-adjoint", ts=None),
    "event": functools.partial(solved, event=odenet.Event(never)),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "drop-in" else pytest.mark.slow) for n in CASES])
def test_the_gradient_is_nan_where_the_loss_is_and_others_are_right(name):
    ys = CASES[name]

    def whole(rates, w):
        found = jax.vmap(ys, (0, None))(rates, w)
        values = jax.vmap(jnp.sum)(found**2 if name == "drop-in" else found)
        return values.sum(), values

    def masked(rates, w):
        found = jax.vmap(ys, (0, None))(rates, w)
        return (jnp.where(jnp.isfinite(found), found, 0) ** 2).sum()

    @jax.jit
    def slopes(rates, w):
        of_rates, values = jax.grad(whole, has_aux=True)(rates, w)
        return values, of_rates, jax.grad(masked, (0, 1))(rates, w)

    values, of_rates, (masked_rates, masked_w) = slopes(RATES, 1.0)
    np.testing.assert_array_equal(np.isnan(of_rates), np.isnan(values))
    assert np.isnan(of_rates[2])
    assert np.isfinite(masked_rates).all()
    assert np.isfinite(masked_w)
    _, alone, (masked_alone, _) = slopes(RATES[[0, 1, 1]], 1.0)  # the same program
    np.testing.assert_allclose(of_rates[:2], alone[:2], rtol=1e-9)
    np.testing.assert_allclose(masked_rates[:2], masked_alone[:2], rtol=1e-9)
    reached = name in ("drop-in", "backprop", "continuous-adjoint")  # the row that ends has a state at t = 0.1
    assert (masked_rates[2] != 0) == reached


@pytest.mark.slow
def test_forward_mode_says_it_too():
    slope = jax.jit(jax.jvp, static_argnums=0)(lambda r: jax.vmap(solved, (0, None))(r, 1.0), (RATES,), (RATES,))[1]
    np.testing.assert_array_equal(np.isnan(slope[:, -1, 0]), [False, False, True])
    assert np.isfinite(slope[:, 1]).all()


def test_without_jit_a_row_that_was_told_to_return_what_there_is():
    value, slope = jax.value_and_grad(lambda w: solved(5.0, w, ts=None).sum())(1.0)
    assert np.isnan(value)
    assert np.isnan(slope)
