"""Step-size control, dense output and the times of adaptive solves: what the core decides, without a framework."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import odenet
from odenet import (
    SOLVERS,
    Event,
    GridError,
    InputError,
    PIDController,
    Span,
    UnsupportedError,
)
from odenet._problem.problem import problem
from odenet._problem.span import number, span
from odenet._solvers.controller import FLOATS, SAFETY, Arithmetic
from odenet._solvers.interpolant import interpolant
from odenet._solvers.step import slopes, trial, weigh
from odenet._solvers.tableau import order_defect

PAIRS = [name for name, solver in SOLVERS.items() if solver.tableau.b_low is not None]
ARRAYS = Arithmetic(np.minimum, np.maximum, np.where)


def decay(t, y):
    return (-y[0],)


@given(error=st.floats(0, 1e6), before=st.floats(1, 1e4), order=st.integers(1, 8), p=st.floats(0, 1), i=st.floats(0, 1))
def test_a_step_is_accepted_by_its_error_and_the_next_is_within_the_factors(error, before, order, p, i):
    control = PIDController(pcoeff=p, icoeff=i)
    accepted, factor, past = control.judge(order, error, (before, 1.0))
    assert accepted == (error <= 1)
    assert control.factor_min <= factor <= control.factor_max
    assert accepted or factor <= SAFETY
    assert past == ((1 / max(error, 1e-10), before) if accepted else (before, 1.0))


def test_integral_control_aims_at_an_error_of_one_with_a_margin():
    control = PIDController()
    _, factor, _ = control.judge(5, 0.5, (1.0, 1.0))
    assert factor == pytest.approx(0.85 * 0.5 ** (-1 / 5))
    assert control.judge(5, 32.0, (1.0, 1.0))[1] == pytest.approx(0.85 / 2)
    assert control.judge(5, 1.0, (1.0, 1.0))[1] == 0.85  # accepted, and followed by a smaller one


def test_a_step_that_went_astray_is_tried_again_much_smaller():
    for error in (math.nan, math.inf):
        accepted, factor, past = PIDController().judge(5, error, (2.0, 3.0))
        assert (accepted, factor, past) == (False, 0.2, (2.0, 3.0))


def test_floats_and_arrays_are_judged_alike():
    control, errors = PIDController(pcoeff=0.4, icoeff=0.3, dcoeff=0.1), [0.0, 1e-3, 0.7, 1.0, 3.0, math.nan]
    one = [control.judge(4, error, (2.0, 1.5)) for error in errors]
    accepted, factor, past = control.judge(4, np.array(errors), (np.full(6, 2.0), np.full(6, 1.5)), ARRAYS)
    assert [each[0] for each in one] == accepted.tolist()
    np.testing.assert_allclose(factor, [each[1] for each in one], rtol=1e-14)
    np.testing.assert_allclose(past[0], [each[2][0] for each in one], rtol=1e-14)
    sizes = [[control.trial(d0, d1, of) for d0, d1 in ((0.0, 1.0), (2.0, 4.0))] for of in (FLOATS, ARRAYS)]
    assert sizes[0] == pytest.approx([float(x) for x in sizes[1]])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rtol", -1.0),
        ("rtol", "small"),
        ("atol", math.nan),
        ("atol", ()),
        ("norm", "euclidean"),
        ("pcoeff", -0.1),
        ("safety", 0.0),
        ("safety", 1.5),
        ("factor_min", 0.0),
        ("factor_max", 0.5),
        ("first_step", 0.0),
        ("min_step", -1.0),
        ("max_step", math.nan),
        ("max_steps", 0),
        ("max_steps", 2.5),
        ("step_t", 1.0),
        ("jump_t", [math.inf]),
        ("per_sample", 1),
        ("throw", "no"),
    ],
)
def test_a_controller_refuses_what_it_cannot_use(name, value):
    with pytest.raises(InputError, match=name):
        PIDController(**{name: value})


def test_bounds_must_leave_a_step():
    with pytest.raises(InputError, match="min_step"):
        PIDController(min_step=1.0, max_step=0.5)
    control = PIDController(min_step=0.1, max_step=0.5)
    assert [control.bounded(h) for h in (0.01, 0.2, 3.0)] == [0.1, 0.2, 0.5]


@pytest.mark.parametrize("name", PAIRS)
def test_the_error_estimate_has_the_order_that_step_sizes_follow(name):
    """One step of size h from the same state: the estimate falls as h^k."""
    tableau = SOLVERS[name].tableau

    def estimate(h):
        def stage(i, y):
            return (np.sin(2 * y[0]) + tableau.c[i] * h,)

        y = (np.linspace(-1, 1.2, 9),)
        return float(np.linalg.norm(trial(tableau, stage, y, h, stage(0, y)).error[0]))

    large, small = (0.2, 0.1) if tableau.error_order > 6 else (0.025, 0.0125)
    assert math.log2(estimate(large) / estimate(small)) == pytest.approx(tableau.error_order, abs=0.3)


@pytest.mark.parametrize("name", PAIRS)
def test_a_trial_is_the_step(name):
    tableau = SOLVERS[name].tableau
    y = (np.array([1.0, -2.0]),)

    def stage(i, y):
        return (np.array([[0.0, 1.0], [-1.0, -0.1]]) @ y[0],)

    made = trial(tableau, stage, y, 0.1, stage(0, y))
    found = slopes(tableau, stage, y, 0.1, tableau.stages)
    np.testing.assert_allclose(made.y1[0], weigh(y, 0.1, tableau.b, found)[0], rtol=1e-14)
    assert tableau.b_low is not None
    low = weigh(y, 0.1, tableau.b_low, found)[0]
    np.testing.assert_allclose(made.error[0], made.y1[0] - low, atol=1e-15)


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("bosh3", 3), ("dopri5", 4), ("tsit5", 4), ("dopri8", 5)])
def test_dense_output_has_its_order_everywhere_and_joins_the_steps_with_their_slopes(name, order):
    tableau = SOLVERS[name].tableau
    made = interpolant(tableau)
    assert made.order == order
    start, end = ([w or 0.0 for w in made.weights(p)] for p in (0.0, 1.0))
    b = [*tableau.b, 0.0][: len(end)]
    assert max(map(abs, start)) == 0
    np.testing.assert_allclose(end, b, atol=1e-11)
    rates = np.array(made.coefficients) @ np.arange(1, len(made.coefficients[0]) + 1)
    np.testing.assert_allclose(rates, np.eye(len(end))[-1], atol=1e-9)  # the slope at the end
    np.testing.assert_allclose([row[0] for row in made.coefficients], np.eye(len(end))[0], atol=1e-9)
    a = tableau.a if tableau.fsal else (*tableau.a, tableau.b)
    for position in (0.21, 0.5, 0.83):
        # b(p) is a quadrature of order `order` for the step of size p h
        scaled = [[entry / position for entry in row] for row in a]
        weights = [(w or 0.0) / position for w in made.weights(position)]
        for p in range(1, order + 1):
            assert abs(order_defect(scaled, weights, p)) < 1e-8
        assert abs(order_defect(scaled, weights, order + 1)) > 1e-7


def test_a_tableau_of_yours_has_dense_output_at_once():
    ralston = SOLVERS["ralston"].tableau
    assert interpolant(ralston).order == 2
    assert interpolant(dataclasses.replace(ralston)) is interpolant(ralston)  # equal tableaus share it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t0": "now"}, "t0"),
        ({"t1": math.inf}, "t1"),
        ({"t1": np.ones(2)}, "t1"),
        ({"ts": "some"}, "ts"),
        ({"ts": []}, "empty"),
        ({"ts": [0.2, 0.1]}, "does not run"),
        ({"ts": [0.5, 1.5]}, "leaves"),
        ({"ts": np.zeros((2, 2))}, "shape"),
    ],
)
def test_times_that_cannot_be_used_are_named(arguments, message):
    given = {"t0": 0.0, "t1": 1.0, "ts": None} | arguments
    with pytest.raises(GridError, match=message):
        span(given["t0"], given["t1"], given["ts"], PIDController())


def test_a_span_knows_what_it_keeps():
    control = PIDController(step_t=[0.5, 0.2], jump_t=(0.7,))
    assert span(0.0, 1.0, None, control) == Span(0.0, 1.0, None, control)
    assert span(0.0, 1.0, None, control).final_only
    assert span(0.0, 1.0, "all", control).every
    assert span(0.0, 1.0, None, control).stops == (0.2, 0.5, 0.7)
    assert span(1.0, 0.0, [0.8, 0.8, 0.0], control).ts == [0.8, 0.8, 0.0]  # backward, with a repeat
    assert number("t", np.float32(0.5)) == 0.5


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"rtol": 1e-3, "steps": 4}, InputError, "together"),
        ({"rtol": 1e-3, "solver": "rk4"}, UnsupportedError, "no error"),
        ({"rtol": 1e-3, "solver": "reversible-heun"}, UnsupportedError, "no error"),
        ({"rtol": 1e-3, "gradient": "continuous-adjoint:steps=4"}, UnsupportedError, "adaptive"),
        ({"rtol": 1e-3, "gradient": "continuous-adjoint:solver=rk4"}, UnsupportedError, "backward solver"),
        ({"rtol": 1e-3, "gradient": "discrete-adjoint:predictor=extrapolate"}, UnsupportedError, "increments"),
        ({"steps": 4, "dense": True}, InputError, "dense"),
        ({"steps": 4, "event": lambda t, y: y}, InputError, "event"),
        ({"steps": 4, "gradient": "continuous-adjoint:rtol=1e-3"}, InputError, "rtol"),
        ({}, InputError, "rtol"),
        ({"control": 1e-3}, InputError, "PIDController"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(choices, error, message):
    with pytest.raises(error, match=message):
        problem(decay, (np.ones(2),), **choices)


def test_tolerances_make_a_problem_adaptive():
    made = problem(decay, (np.ones(2),), atol=1e-4, control=PIDController(rtol=1e-2, max_steps=7))
    assert isinstance(made.grid, Span)
    assert (made.grid.control.rtol, made.grid.control.atol, made.grid.control.max_steps) == (1e-2, 1e-4, 7)
    assert made.solver.label == "dopri5"
    made = problem(decay, (np.ones(2),), rtol=1e-4, event=lambda t, y: t - 0.5)
    assert isinstance(made.grid, Span)
    assert isinstance(made.grid.event, Event)


@pytest.mark.parametrize("bad", [{"condition": 3}, {"direction": 2}, {"direction": True}, {"tolerance": -1.0}])
def test_an_event_refuses_what_it_cannot_use(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        Event(**({"condition": lambda t, y: t} | bad))


def test_every_result_says_what_happened_and_what_to_do():
    for result in odenet.Result:
        happened, _, remedy = result.value.partition(": ")
        assert happened
        assert remedy or result is odenet.Result.SUCCESS


@pytest.mark.parametrize("name", PAIRS)
def test_dense_output_of_a_step_is_off_by_its_order_and_one_more(name):
    """y' = (y - t)^2 + 1 has the solution t + 1 / (c - t): the error within one step, by regression over its size."""
    tableau, c = SOLVERS[name].tableau, 2.0
    made = interpolant(tableau)

    def exact(t):
        return t + 1 / (c - t)

    def error(h):
        def slope(t, y):
            return (y[0] - t) ** 2 + 1

        y = (np.array(exact(0.0)),)
        found = slopes(tableau, lambda i, at: (slope(tableau.c[i] * h, at),), y, h, tableau.stages)
        if not tableau.fsal:
            found.append((slope(h, weigh(y, h, tableau.b, found)),))
        places = np.linspace(0.1, 0.9, 9)
        return max(abs(weigh(y, h, made.weights(p), found)[0] - exact(p * h)) for p in places)

    sizes = np.array([0.8, 0.4, 0.2]) if made.order > 4 else np.array([0.1, 0.05, 0.025])
    fitted = np.polyfit(np.log(sizes), np.log([error(h) for h in sizes]), 1)[0]
    assert fitted > made.order + 0.7
