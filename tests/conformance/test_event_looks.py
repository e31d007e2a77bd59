"""Where within a step an event is looked for is the same on every backend: one after another, the same answers."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import odenet
from odenet import Event, PIDController

ONE_STEP = PIDController(1e-6, 1e-6, first_step=1.0)
NAN = np.nan
# a condition, further choices, the time of the event, and the kept states (which are the times)
LOOKS = {
    "two roots in a step": (lambda t, y: (t - 0.3) * (t - 0.5), {}, 0.3, None),
    "the second direction of two": (Event(lambda t, y: (t - 0.3) * (t - 0.5), direction=1), {}, 0.5, None),
    "zero at t0, then a root": (lambda t, y: t * (t - 0.05), {}, 0.05, None),
    "zero at t0, and two roots": (lambda t, y: t * (t - 0.4) * (t - 0.6), {}, 0.4, None),
    "a boolean there and back": (lambda t, y: (y[0] > 0.3) & (y[0] < 0.6), {}, 0.3, None),
    "entries of an array": (lambda t, y: y - 0.4, {}, 0.4, None),
    "of those, one falls": (Event(lambda t, y: (y - 0.5) * (y - 0.6), direction=-1), {}, 0.5, None),
    "ends of steps alone": (Event(lambda t, y: (t - 0.3) * (t - 0.5), subintervals=1), {}, NAN, None),
    "no root": (lambda t, y: y[0] + 1, {}, NAN, None),
    "a kept time at the event": (lambda t, y: y[0] - 0.4, {"ts": [0.1, 0.4, 0.7]}, 0.4, [0.1, 0.4, NAN]),
    "only times at and after it": (lambda t, y: y[0] - 0.3, {"ts": [0.3, 0.3 + 1e-9]}, 0.3, [0.3, NAN]),
    "kept, two roots": (lambda t, y: (y[0] - 0.3) * (y[0] - 0.5), {"ts": [0.2, 0.3, 0.4]}, 0.3, [0.2, 0.3, NAN]),
    "kept, of a third": (lambda t, y: 3 * y[0] - 2, {"ts": [1 / 3, 2 / 3, 1.0]}, 2 / 3, [1 / 3, 2 / 3, NAN]),
    "backward": (lambda t, y: (y[0] + 0.3) * (y[0] + 0.5), {"ts": [-0.3, -0.4], "t1": -1.0}, -0.3, [-0.3, NAN]),
}


def ended(backend, condition, choices, solver):
    event = condition if isinstance(condition, Event) else Event(condition)
    choices = {"control": ONE_STEP, **choices}
    return odenet.solve(
        lambda t, y: 0 * y + 1, np.array([0.0, -0.2]), backend=backend, event=event, solver=solver, **choices
    )


@pytest.mark.parametrize("solver", ["dopri5", pytest.param("fehlberg2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LOOKS)
def test_the_first_change_in_a_step_ends_the_solve(thorough, name, solver):
    condition, choices, right, kept = LOOKS[name]
    solution = ended(thorough, condition, choices, solver)
    assert solution.result is (odenet.Result.SUCCESS if np.isnan(right) else odenet.Result.EVENT)
    np.testing.assert_allclose(float(solution.event_t), right, rtol=1e-12)
    if kept is not None:
        np.testing.assert_allclose(np.asarray(solution.ys)[:, 0], kept, rtol=1e-11)
    assert int(solution.stats.steps) == 1


# in steps of a quarter: a condition of the time, by the functions of torch or of jax.numpy, and where the solve stops
UNDEFINED = {
    "everywhere": (lambda t, xp: t * NAN, 0.0),
    "at t0 alone": (lambda t, xp: xp.where(t == 0, NAN, t - 0.4), 0.0),
    "beyond its root": (lambda t, xp: xp.sqrt(0.55 - t) - 0.01, 0.5),
    "an entry, within a step": (lambda t, xp: xp.stack([t + 1, xp.where(abs(t - 0.35) < 0.05, NAN, 1), t + 1]), 0.25),
    "before the root, in the same step": (lambda t, xp: xp.where(abs(t - 0.3) < 0.03, NAN, t - 0.45), 0.25),
}


def undefined(backend, of, **choices):
    xp = importlib.import_module("torch" if backend == "torch" else "jax.numpy")
    control = PIDController(1e-6, 1e-6, first_step=0.25, max_step=0.25, throw=choices.pop("throw", True))
    return ended(backend, lambda t, y: of(t, xp), {"control": control, **choices}, "dopri5")


@pytest.mark.parametrize("name", UNDEFINED)
def test_a_condition_that_is_nan_before_it_has_changed_ends_the_solve_there(thorough, name):
    of, stops = UNDEFINED[name]
    with pytest.raises(odenet.SolveError, match=f"stopped at t={stops:g} .*condition is NaN"):
        undefined(thorough, of)
    solution = undefined(thorough, of, throw=False, ts=[0.0, 0.2, 0.45, 0.6])
    assert solution.result is odenet.Result.EVENT_NAN
    assert np.isnan(float(solution.event_t))
    right = [t if t <= stops else NAN for t in (0.0, 0.2, 0.45, 0.6)]
    np.testing.assert_allclose(np.asarray(solution.ys)[:, 0], right, atol=1e-12)
    assert int(solution.stats.steps) == stops / 0.25


def test_a_condition_that_is_nan_after_it_has_changed_does_not_matter(thorough):
    solution = undefined(thorough, lambda t, xp: xp.sqrt(0.45 - t) - 0.05**0.5)
    assert solution.result is odenet.Result.EVENT
    assert float(solution.event_t) == pytest.approx(0.4, abs=1e-12)
    begun = undefined(thorough, lambda t, xp: t * NAN, t1=0.0)
    assert begun.result is odenet.Result.SUCCESS


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dopri5", "fehlberg2", "dopri8"])
def test_backends_look_as_often_at_the_field(solver):
    condition, choices, *_ = LOOKS["two roots in a step"]
    counts = {}
    for name in ("torch", "jax"):
        with odenet.backend(name).prepare("float64", "cpu"):
            stats = ended(name, condition, choices | {"control": PIDController(1e-6, 1e-6)}, solver).stats
            counts[name] = int(stats.steps), int(stats.f_evaluations), int(stats.rejected)
    assert counts["torch"] == counts["jax"]
