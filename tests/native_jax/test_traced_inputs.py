"""Large times, times that are known when a compiled program runs, rows that read each other, and solutions as trees."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import odenet
import odenet_jax
from odenet import GridError, PIDController, UnsupportedError

HALF = odenet.Event(lambda t, y: y - 0.5, direction=-1)


def decay(t, y):
    return -y


@pytest.mark.parametrize("t0", quick([1.7e9, 2460000.5, 131072.01], [2460000.5]))
def test_large_times_are_counted_from_t0(t0):
    one = jnp.ones((), jnp.float32)
    ts = [t0, t0 + 0.25, t0 + 1.5]
    found = odenet.solve(decay, one, t0=t0, t1=t0 + 2, ts=ts, rtol=1e-6, dense=True)
    np.testing.assert_allclose(found.ys, np.exp([0, -0.25, -1.5]), rtol=1e-5)
    np.testing.assert_allclose(found.at(t0 + 0.75), np.exp(-0.75), rtol=1e-5)
    with pytest.raises(GridError):  # by far less than float32 can tell
        odenet.solve(decay, one, t0=t0, t1=t0 + 2, ts=[t0 + 2.1], rtol=1e-6)
    np.testing.assert_allclose(odenet.solve(decay, one, t0=t0, t1=t0 - 1, rtol=1e-6).y1, np.e, rtol=1e-5)
    event = odenet.solve(decay, one, t0=t0, t1=t0 + 2, rtol=1e-6, event=HALF)
    np.testing.assert_allclose(event.y1, 0.5, rtol=1e-5)
    np.testing.assert_allclose(event.event_t, t0 + np.log(2), rtol=2e-7)
    np.testing.assert_allclose(
        odenet.solve(decay, one, t0=t0, t1=t0 + 0.2, steps=20, solver="rk4").y1, np.exp(-0.2), rtol=1e-5
    )
    np.testing.assert_allclose(
        odenet_jax.odeint(lambda y, t: -y, one, np.array(ts)), np.exp([0, -0.25, -1.5]), rtol=1e-5
    )


@pytest.mark.parametrize("choices", [{"rtol": 1e-5}, {"steps": 8}], ids=["adaptive", "fixed"])
def test_a_field_that_reads_times_which_coincide_is_refused(choices):
    with pytest.raises(GridError, match="reads the time"):
        odenet.solve(lambda t, y: -y * jnp.cos(t), jnp.ones(()), t0=1.7e9, t1=1.7e9 + 10, **choices)
    with pytest.raises(GridError, match="no two times"):
        odenet.solve(decay, jnp.ones(()), t1=1e-42, **choices)


def test_traced_times_out_of_order_or_outside_are_nan_and_the_others_right():
    solve = jax.jit(lambda ts, t1: odenet.solve(decay, jnp.ones(()), t1=t1, ts=ts, rtol=1e-6).ys)
    for ts in ([1.5, 0.5, 2.0, 1.0], [-1.0, 0.5, 2.0, 3.0], [0.5, 1.5, 0.0, 0.0], [0.5, np.nan, 1.9, 2.0]):
        good = np.array([t == t and 0 <= t <= 2 and t >= max([0, *ts[:n]]) for n, t in enumerate(ts)])
        right = np.where(good, np.exp(-np.array(ts)), np.nan)
        if ts[-1] != 3.0 and ts[1] == ts[1]:
            np.testing.assert_allclose(solve(jnp.array(ts), 2.0), right, rtol=1e-5)
        found = solve(jnp.array(ts), 2.0)
        assert (np.isnan(found) | (abs(found - np.exp(-np.array(ts))) < 1e-5)).all()
    assert np.isnan(solve(jnp.array([0.5, 1.0]), jnp.nan)).all()
    with pytest.raises(GridError, match="ts is empty"):
        solve(jnp.zeros(0), 2.0)


def test_rows_that_read_each_other_are_refused_unless_one_norm_makes_their_steps_the_same():
    def solve(y, w, **choices):
        return odenet.solve(lambda t, y: -w * (y - jax.lax.pmean(y, "i")), y, **choices).y1

    rows = jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 5.0, 30.0])
    exact = jax.jit(jax.vmap(lambda *row: solve(*row, steps=200, solver="rk4"), axis_name="i"))(*rows)
    with pytest.raises(UnsupportedError, match="axis i"):
        jax.vmap(lambda *row: solve(*row, rtol=1e-6), axis_name="i")(*rows)
    control = PIDController(1e-6, 1e-7, norm=lambda e: jax.lax.pmax(jnp.abs(e), "i"))
    alike = jax.jit(jax.vmap(lambda *row: solve(*row, control=control), axis_name="i"))
    np.testing.assert_allclose(alike(*rows), exact, rtol=1e-4)


@jax.custom_batching.custom_vmap
def centred(y):
    return y


centred.def_vmap(lambda count, batched, y: (y - y.mean(0), True))


def swapped(y):
    return jax.lax.ppermute(y, "i", [(0, 1), (1, 0)])


@pytest.mark.parametrize(("mixing", "message"), [(swapped, "axis i"), (centred, "a rule for rows of its own")])
def test_rows_that_read_each_other_without_an_effect_that_says_so(mixing, message):
    """Adaptive steps were 0.02 to 0.03 off in silence; equal ones are right, with the gradient that JAX has."""
    rows = jnp.array([[1.0, 2.0], [3.0, 1.0]])

    def loss(solve):
        return lambda rows: jnp.sum(jax.vmap(solve, axis_name="i")(rows) ** 2)

    def heun(y):
        for _ in range(2):
            k = -mixing(y)
            y = y + (k - mixing(y + k / 2)) / 4
        return y

    def field(t, y):
        return -mixing(y)

    for choices in ({"rtol": 1e-4}, {"rtol": 1e-4, "event": HALF}):
        with pytest.raises(UnsupportedError, match=message):
            jax.jit(jax.vmap(lambda y: odenet.solve(field, y, **choices).y1, axis_name="i"))(rows)  # noqa: B023
    with pytest.raises(UnsupportedError, match=message):
        jax.vmap(lambda y: odenet.solve(decay, y, rtol=1e-4, event=lambda t, y: mixing(y)).y1, axis_name="i")(rows)
    by_steps = loss(lambda y: odenet.solve(field, y, steps=2, solver="heun", gradient="checkpoint").y1)
    np.testing.assert_allclose(by_steps(rows), loss(heun)(rows), rtol=1e-6)
    if mixing is swapped:  # JAX has no reverse mode for the other
        np.testing.assert_allclose(jax.grad(by_steps)(rows), jax.grad(loss(heun))(rows), rtol=1e-5)


@pytest.mark.parametrize(
    "choices", [{"rtol": 1e-4, "event": HALF, "dense": True}, {"steps": 4}], ids=["adaptive", "fixed"]
)
def test_a_solution_is_a_lawful_tree(choices):
    def solve(y):
        return odenet.solve(decay, y, **choices)

    found = solve(jnp.ones(()))
    leaves, structure = jax.tree.flatten(found)
    for new in ([object()] * len(leaves), [0] * len(leaves), leaves):
        assert jax.tree.structure(jax.tree.unflatten(structure, new)) == structure
    jitted = eqx.filter_jit(solve)(jnp.ones(()))
    np.testing.assert_allclose(jitted.y1, found.y1)
    assert int(jitted.stats.steps) == found.stats.steps


def test_debug_nans_and_checking_leaks():
    def solve(y, **choices):
        return odenet.solve(decay, y, rtol=1e-4, **choices).y1

    with jax.debug_nans(True), jax.debug_infs(True):
        solve(jnp.ones(()), ts=[0.0, 0.5], event=HALF)
        solve(jnp.ones(()), event=odenet.Event(lambda t, y: y + 1))
        solve(jnp.ones(()), control=PIDController(jump_t=[0.5]))
        odenet_jax.odeint(lambda y, t: -y, jnp.ones(()), jnp.array([0.0, 1.0]))
    with jax.checking_leaks():
        jax.jit(lambda y, w: odenet.solve(lambda t, y, w: -w * y, y, w, rtol=1e-4, gradient="continuous-adjoint").y1)(
            jnp.ones(()), 1.0
        )


@pytest.mark.parametrize("name", ["t0", "t1", "ts"])
@pytest.mark.parametrize("transform", [jax.grad, lambda f: jax.jit(jax.grad(f)), jax.jit, jax.jacfwd, jax.hessian])
def test_a_time_of_equal_steps_that_is_traced_is_refused_and_never_read(name, transform):
    """A tracer of `jax.grad` outside of jit has a number to read; what is worked out from that has no gradient."""

    def scalar(time):
        times = {"t0": 0.0, "t1": 1.0} | {name: [time] if name == "ts" else time}
        return odenet.solve(decay, jnp.ones(2), steps=4, **times).ys.sum()

    with pytest.raises(GridError, match="no number that is known"):
        transform(scalar)(0.5)
