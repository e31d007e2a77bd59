"""Events: booleans, several changes in one step, a start at zero, times in `ts` beyond them."""

from __future__ import annotations

import contextlib
import inspect
import math

import numpy as np
import pytest
from cases import flat

import odenet


def ended(backend, condition, **choices):
    """y' = 1 from 0, in steps that grow to cross most of [0, 1] at once."""
    return odenet.solve(
        lambda t, y: 0 * y + 1, np.zeros(1), t1=1.0, backend=backend, rtol=1e-6, event=condition, **choices
    )


def test_of_several_changes_in_one_step_the_first_ends_the_solve(thorough):
    solution = ended(thorough, lambda t, y: (t - 0.2) * (t - 0.5) * (t - 0.6))
    assert solution.result is odenet.Result.EVENT
    assert float(solution.event_t) == pytest.approx(0.2, abs=1e-12)


def test_a_boolean_ends_the_solve_where_it_changes(thorough):
    """A cosine is below zero from pi / 2 to 3 pi / 2."""
    for direction, right in ((0, 0.5), (1, 0.5), (-1, 1.5)):
        solution = odenet.solve(
            lambda t, y: (y[1], -y[0]),
            (np.array(1.0), np.array(0.0)),
            t1=6.0,
            backend=thorough,
            rtol=1e-9,
            atol=1e-9,
            event=odenet.Event(lambda t, y: y[0] < 0, direction=direction),
        )
        assert float(solution.event_t) == pytest.approx(right * math.pi, abs=1e-7)


def test_times_after_an_event_are_nan_and_the_others_as_without_it(thorough):
    solution = ended(thorough, lambda t, y: y - 0.4, ts=[0.25, 0.5, 1.0])
    assert solution.result is odenet.Result.EVENT
    assert float(solution.event_t) == pytest.approx(0.4, abs=1e-12)
    np.testing.assert_allclose(flat(thorough, solution.ys), [0.25, np.nan, np.nan], atol=1e-12)


def test_a_condition_that_cannot_be_used_is_refused_by_name(thorough):
    with pytest.raises(odenet.InputError, match="NoneType"):
        ended(thorough, lambda t, y: None)
    with pytest.raises(odenet.InputError, match=r"condition\(t, y\)"):
        ended(thorough, lambda t: t)
    with pytest.raises(odenet.InputError, match="subintervals"):
        odenet.Event(lambda t, y: y, subintervals=0)


def tells_directions(peer):
    """torchdiffeq ends at each zero, and so does diffrax 0.7.0."""
    return peer == "scipy" or (
        peer == "diffrax" and "direction" in inspect.signature(pytest.importorskip(peer).Event).parameters
    )


@pytest.mark.parametrize("peer", ["scipy", "torchdiffeq", "diffrax"])
def test_what_a_condition_returns_is_right_or_refused_on_every_peer(peer):
    """A cosine is below zero from pi / 2 on; a peer looks for the zeros of numbers, and may not take anything else."""
    pytest.importorskip(peer)

    def end(condition, t1=2.0, direction=0):
        y0 = (np.array(1.0), np.array(0.0))
        choices = {"gradient": "backprop", "rtol": 1e-5, "atol": 1e-5, "backend": peer}
        event = odenet.Event(condition, direction=direction)
        return odenet.solve(lambda t, y: (y[1], -y[0]), y0, t1=t1, event=event, **choices)

    right = pytest.approx(math.pi / 2, abs=1e-3)
    with odenet.backend(peer).prepare("float64", "cpu"):
        assert float(end(lambda t, y: y[0]).event_t) == right
        with contextlib.ExitStack() as refused:
            if not tells_directions(peer):
                refused.enter_context(pytest.raises(odenet.UnsupportedError, match="direction"))
            assert float(end(lambda t, y: y[0], 5.0, direction=1).event_t) == pytest.approx(1.5 * math.pi, abs=1e-3)
        for t1 in (1.6, 2.0):  # torchdiffeq missed one near the end, and diffrax was late
            if peer == "scipy":
                assert float(end(lambda t, y: y[0] < 0, t1).event_t) == right
                continue
            with pytest.raises(odenet.UnsupportedError, match="boolean"):
                end(lambda t, y: y[0] < 0, t1)
        for unfit in (lambda t, y: None, lambda t, y: "no", lambda t, y: 1j * y[0], lambda t, y: []):
            with pytest.raises(odenet.InputError, match="an event's condition returned"):
                end(unfit)
        if peer != "diffrax":  # which compiles a solve for it, and gives no reason of its own
            with pytest.raises(odenet.SolveError, match="condition is NaN"):
                end(lambda t, y: y[0] * math.nan)


FLAGS = {
    "of floats": lambda t, y: (y > 0.3) * 1.0,
    "of whole numbers": lambda t, y: (y > 0.3) * 1,
    "downwards": lambda t, y: (y > 0.3) * -1.0,
    "a staircase": lambda t, y: y // 0.3,
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_number_that_is_made_of_a_boolean_ends_the_solve_where_it_changes(thorough, name):
    """It is zero, and then one: it has been neither above nor below zero before."""
    solution = ended(thorough, FLAGS[name])
    assert solution.result is odenet.Result.EVENT
    assert float(solution.event_t) == pytest.approx(0.3, abs=1e-12)


def test_of_a_number_that_is_made_of_a_boolean_the_direction_counts(thorough):
    event = odenet.Event(FLAGS["of floats"], direction=-1)
    assert ended(thorough, event).result is odenet.Result.SUCCESS


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0**10])
def test_a_continuous_condition_that_begins_at_zero_has_no_sign_before(thorough, scale):
    """2^10 y is a whole number at each look."""
    assert ended(thorough, lambda t, y: scale * y).result is odenet.Result.SUCCESS
