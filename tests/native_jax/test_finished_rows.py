"""A row of a `jax.vmap` that has ended keeps what it ended with, however long the others go on."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import PIDController, Result

GRADIENTS = ["backprop", "checkpoint:states=3", "discrete-adjoint:anchors=4", "continuous-adjoint"]
OK = ("event", "event later", "event last", "success", "rest")

pytestmark = pytest.mark.usefixtures("x64")

# one row each: lands after 0.3, 0.9 and 1.7 of the time; never lands; a stiff row that runs out of steps; a slope that
# is not finite at t0; a cliff, before which the step vanishes; one that is at rest
ROWS = {
    "event": (-1.0, 0.3, 0.0),
    "event later": (-1.0, 0.9, 0.0),
    "event last": (-1.0, 1.7, 0.0),
    "success": (-0.2, 5.0, 0.0),
    "max_steps": (-1e5, 1.0, 0.0),
    "not finite": (jnp.nan, 1.0, 0.0),
    "cliff": (-1.0, 4.0, 1.0),
    "rest": (0.0, 1.0, 0.0),
}
OUTCOMES = [Result.EVENT] * 3 + [
    Result.SUCCESS, Result.MAX_STEPS, Result.NONFINITE, Result.STEP_TOO_SMALL, Result.SUCCESS,
]  # fmt: skip
TS = jnp.array([0.0, 0.25, 0.3, 0.31, 0.95, 1.6, 1.69, 2.0])


def field(t, y, w):
    # the first entry falls; the second oscillates, is drawn to a slow curve, or meets a cliff at t = 1
    rate, _, height = w
    stiff = jnp.where(rate < -10, rate, 0.0)
    fall = jnp.where(rate < -10, -0.1, rate)
    cliff = jnp.where(t > 1, 1e15 * height, 0.0)
    return jnp.stack([fall, stiff * (y[1] - jnp.cos(t)) + jnp.sin(3 * t) * y[1] * (height == 0) + cliff])


def solve(w, *, gradient="backprop", dense=False, ts=True, solver="dopri5"):
    return odenet.solve(
        field, jnp.stack([w[1], 1.0 + 0 * w[1]]), w, t1=2.0, ts=TS if ts else None, solver=solver, gradient=gradient,
        control=PIDController(1e-6, 1e-8, max_steps=300, throw=False), dense=dense,
        event=odenet.Event(lambda t, y: y[0], direction=-1),
    )  # fmt: skip


def results(w, **choices):
    solution = solve(w, **choices)
    stats = solution.stats
    found = {
        "ts": solution.ts, "ys": solution.ys, "y1": solution.y1, "event_t": solution.event_t,
        "outcome": solution.outcome, "steps": stats.steps, "rejected": stats.rejected,
        "evaluations": stats.f_evaluations,
    }  # fmt: skip
    if choices.get("dense"):
        found["at"] = solution.at(jnp.array([0.0, 0.1, 0.29]))
    return jax.tree.map(jnp.asarray, found)


def loss(w, **choices):
    solution = solve(w, **choices)
    kept = jnp.where(jnp.isfinite(solution.ys), solution.ys, 0)
    late = jnp.where(jnp.isfinite(solution.event_t), solution.event_t, 0)
    more = solution.at(jnp.array([0.1, 0.29])).sum() if choices.get("dense") else 0
    return (kept * jnp.arange(1.0, 3.0)).sum() + 3 * late + more


def alike(together, apart, names):
    for i, name in enumerate(names):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        for key in apart[i]:
            np.testing.assert_allclose(row[key], apart[i][key], rtol=1e-9, atol=1e-9, err_msg=f"{name}: {key}")


@functools.cache
def one_by_one(dense=False, solver="dopri5", ts=True):
    program = jax.jit(functools.partial(results, dense=dense, solver=solver, ts=ts))
    return [program(jnp.array(w)) for w in ROWS.values()]


@pytest.mark.parametrize(
    "choices",
    [
        dict(),
        pytest.param(dict(dense=True), marks=pytest.mark.slow),
        pytest.param(dict(solver="bosh3", ts=False), marks=pytest.mark.slow),
        pytest.param(dict(solver="dopri8", dense=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_vmap_gives_what_rows_give_one_by_one(choices):
    apart = one_by_one(**choices)
    assert [list(Result)[int(row["outcome"])] for row in apart] == OUTCOMES
    np.testing.assert_allclose([row["event_t"] for row in apart[:3]], [0.3, 0.9, 1.7], rtol=1e-12)
    together = jax.jit(jax.vmap(functools.partial(results, **choices)))(jnp.array(list(ROWS.values())))
    alike(together, apart, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["discrete-adjoint", *GRADIENTS])
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_under_vmap_are_those_of_rows_one_by_one(gradient, dense):
    if dense and gradient == "continuous-adjoint":
        pytest.skip("refused")
    # a way back from where a row could not go on is an error for all rows of the continuous adjoint
    names = [name for name in ROWS if gradient != "continuous-adjoint" or name in OK]
    rows = jnp.array([ROWS[name] for name in names])
    slope = jax.grad(functools.partial(loss, gradient=gradient, dense=dense))
    one = jax.jit(slope)
    apart = [{"gradient": one(w)} for w in rows]
    alike({"gradient": jax.jit(jax.vmap(slope))(rows)}, apart, names)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_times_of_events_under_vmap_have_their_gradients(gradient):
    rows = jnp.array([ROWS[name] for name in ROWS if name.startswith("event")])
    late = jax.jit(jax.vmap(jax.grad(lambda w: solve(w, gradient=gradient).event_t)))(rows)
    np.testing.assert_allclose(late[:, 0], rows[:, 1] / rows[:, 0] ** 2, rtol=1e-6)  # of w[1] / -w[0]
    np.testing.assert_allclose(late[:, 1], -1 / rows[:, 0], rtol=1e-6)
