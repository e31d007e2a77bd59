"""A row of a `jax.vmap` that could not go on, or whose trial overflowed, leaves the gradients of the others alone."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import PIDController

GRADIENTS = ["backprop", "checkpoint:states=3", "discrete-adjoint:anchors=4", "continuous-adjoint"]
ENDS = ["t1", "ts", "dense", "event", "boolean"]
RATES = jnp.array([0.3, 0.5, 5.0])  # of three rows: the last cannot go on

pytestmark = pytest.mark.usefixtures("x64")


def overflows(t, y, w, rate):
    return rate * w * jnp.exp(y)  # infinite after a first step of 1 where the rate is large, and at a time before 1


def starts_at_nan(t, y, w, rate):
    return -w * y * jnp.sqrt(3 - rate)


def vanishes(t, y, w, rate):
    return -w * y + jnp.where((t > 0.5) & (rate > 2), 1e15, 0.0)


def stiff(t, y, w, rate):
    return -w * y * jnp.where(rate > 2, 1e6, rate)


FIELDS = [overflows, starts_at_nan, vanishes, stiff]


def solved(w, rate, field, ends, gradient, t1=1.0):
    events = {"event": odenet.Event(lambda t, y: y[0] - 0.8), "boolean": odenet.Event(lambda t, y: y[0] < -5)}
    return odenet.solve(
        lambda t, y, w: field(t, y, w["w"], w["rate"]), jnp.array([0.5]), {"w": w, "rate": rate}, t1=t1,
        gradient=gradient, ts=jnp.array([0.0, 0.05, 0.4, 1.0]) if ends == "ts" else None, dense=ends == "dense",
        event=events.get(ends),
        control=PIDController(1e-6, 1e-8, max_steps=100, throw=False, first_step=1.0 if field is overflows else None),
    )  # fmt: skip


def loss(w, rate, field, ends, gradient):
    """Of what is there; the square of a NaN has NaN for its derivative."""
    solution = solved(w, rate, field, ends, gradient)
    there = solution.outcome <= 1
    total = jnp.where(there, (solution.y1**2).sum(), 0)
    if ends == "ts":
        total += jnp.where(jnp.isfinite(solution.ys), solution.ys**2, 0).sum()
    if ends == "dense":
        total += jnp.where(there, (solution.at(jnp.array([0.01, 0.3])) ** 2).sum(), 0)
    if ends == "event":
        total += jnp.where(jnp.isfinite(solution.event_t), solution.event_t**2, 0)
    return total, there


def slopes(field, ends, gradient):
    """Together, and those one by one of rows that have some (with `ts` a row that fails late has some, too)."""

    def total(w, rates):
        values, there = jax.vmap(lambda rate: loss(w, rate, field, ends, gradient))(rates)
        return values.sum(), there

    program = jax.jit(jax.grad(total, has_aux=True))
    together, there = program(1.0, RATES)
    rows = [i for i in range(3) if there[i] or (ends == "ts" and field is not starts_at_nan)]
    # three times the same row, which is alone then: the program is compiled once
    return together, sum(program(1.0, jnp.repeat(RATES[i], 3))[0] / 3 for i in rows), there


CASES = list(itertools.product(FIELDS, ENDS, GRADIENTS))
QUICK = [
    (overflows, "t1", "backprop"),
    (starts_at_nan, "event", "backprop"),
    (vanishes, "ts", "continuous-adjoint"),
    (stiff, "t1", "discrete-adjoint:anchors=4"),
]


@pytest.mark.parametrize(
    ("field", "ends", "gradient"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_weights_of_all_rows_have_the_gradients_of_those_that_got_there(field, ends, gradient):
    if ends == "dense" and gradient == "continuous-adjoint":
        pytest.skip("refused")
    together, apart, there = slopes(field, ends, gradient)
    assert bool(there[0])
    assert not (ends != "event" and bool(there[2]))
    np.testing.assert_allclose(together, apart, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("ends", ENDS)
def test_forward_mode_and_second_derivatives_leave_other_rows_alone(field, ends):
    def total(w, rates):
        return jax.vmap(lambda rate: loss(w, rate, field, ends, "backprop")[0])(rates).sum()

    rows = [i for i in range(3) if i < 2 or (ends == "ts" and field is not starts_at_nan)]
    if ends == "event":
        rows = [i for i in range(3) if bool(solved(1.0, RATES[i], field, ends, "backprop").outcome <= 1)]
    for derivative in (jax.jacfwd(total), jax.hessian(total), jax.jacrev(jax.jacrev(total))):
        program = jax.jit(derivative)
        apart = sum(program(1.0, RATES[i : i + 1]) for i in rows)
        np.testing.assert_allclose(program(1.0, RATES), apart, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_end_of_all_rows_has_the_gradient_of_those_that_got_there(gradient):
    def row(rate, t1):
        solution = solved(1.0, rate, overflows, "t1", gradient, t1)
        return jnp.where(solution.outcome <= 1, (solution.y1**2).sum(), 0)

    def total(t1, rates):
        return jax.vmap(row, (0, None))(rates, t1).sum()

    program = jax.jit(jax.grad(total))
    apart = sum(program(1.0, RATES[i : i + 1]) for i in range(2))
    np.testing.assert_allclose(program(1.0, RATES), apart, rtol=1e-8)


def test_a_row_whose_way_back_fails_is_nan_and_the_others_are_not():
    """Its forward steps may be as many as they are, those of its way back 30."""

    def value(rate):
        control = PIDController(1e-6, 1e-8, max_steps=30)
        method = odenet.ContinuousAdjoint(rtol=1e-13, atol=1e-13)
        end = odenet.solve(lambda t, y: -rate * y, jnp.ones(1), gradient=method, control=control).y1
        return end.sum()

    together = jax.jit(jax.vmap(jax.grad(value)))(jnp.array([1e-9, 3.0]))
    np.testing.assert_allclose(together[0], -1, rtol=1e-6)
    assert np.isnan(together[1])
    with pytest.raises(odenet.GradientError, match="stopped before t0"):
        jax.grad(value)(3.0)


def test_a_solve_that_could_not_go_on_has_the_gradient_of_what_it_returns_last():
    def last(y0, gradient):
        control = PIDController(1e-6, 1e-8, max_steps=5, max_step=0.05, throw=False)
        solution = odenet.solve(lambda t, y: -y, y0, gradient=gradient, control=control, ts="all")
        return solution.ys[-1].sum(), solution.ts[-1]

    for gradient in ("backprop", "discrete-adjoint"):
        slope, t = jax.grad(functools.partial(last, gradient=gradient), has_aux=True)(jnp.ones(1))
        np.testing.assert_allclose(slope, np.exp(-t), rtol=1e-5)
