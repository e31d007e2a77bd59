"""Steps are counted in integers: N steps are N steps, and their times are exact at both ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from odenet import GridError
from odenet._problem.grid import grid

times = st.floats(-1e3, 1e3, allow_subnormal=False)
counts = st.integers(1, 300)


@pytest.mark.parametrize("end", [1.0, -1.0, 0.3])
def test_n_steps_are_n_steps_and_every_one_can_be_kept(end):
    """Where floats are added up, `step_size=1/N` takes N + 1 steps for 6 of N = 1 to 200."""
    for n in range(1, 301):
        made = grid(0.0, end, n, "all")
        assert made.saved == tuple(range(n + 1))
        assert (made.time(0), made.time(n)) == (0.0, end)
        assert grid(0.0, end, n, [end * k / n for k in range(n + 1)]).saved == made.saved
        added = np.cumsum([0.0] + [end / n] * n)
        assert grid(0.0, end, n, added).saved == made.saved


@given(times, times, counts)
def test_the_ends_are_exact_and_times_run_one_way(t0, t1, steps):
    made = grid(t0, t1, steps)
    every = [made.time(n) for n in range(steps + 1)]
    assert every[0] == t0
    assert every[-1] == pytest.approx(t1, rel=1e-15, abs=1e-12)
    assert every == sorted(every, reverse=t1 < t0)
    assert made.h * steps == pytest.approx(t1 - t0, rel=1e-12)
    assert made.saved == (steps,)
    assert made.final_only


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), counts)
def test_the_ends_are_exact_to_the_last_bit_for_whole_times(t0, t1, steps):
    made = grid(t0, t1, steps)
    assert (made.time(0), made.time(steps)) == (t0, t1)


@given(times, times, counts, st.data())
def test_any_times_of_the_grid_are_found_in_it(t0, t1, steps, data):
    assume(abs(t1 - t0) > 1e-3 * max(abs(t0), abs(t1)))
    whole = grid(t0, t1, steps)
    picks = sorted(data.draw(st.lists(st.integers(0, steps), min_size=1, max_size=8)))
    made = grid(t0, t1, steps, [whole.time(n) for n in picks])
    assert made.saved == tuple(picks)
    assert made.kept == tuple(sorted(set(picks)))
    spread = made.spread or range(len(picks))
    assert [made.kept[k] for k in spread] == picks
    assert made.times == tuple(whole.time(n) for n in picks)


@given(counts, st.data())
def test_times_in_float32_are_close_enough(steps, data):
    n = data.draw(st.integers(0, steps))
    assert grid(0, 1, steps, np.array([n / steps], np.float32)).saved == (n,)


@given(counts, st.integers(0, 299), st.floats(0.01, 0.99))
def test_a_time_between_steps_is_refused(steps, n, part):
    assume(n < steps)
    with pytest.raises(GridError, match=f"no step of a fixed grid of {steps} steps ends at"):
        grid(0, 1, steps, [(n + part) / steps])


def test_times_are_within_a_step_where_stages_read_them():
    made = grid(2.0, 1.0, 4)
    assert made.time(1, 0.5) == 2.0 - 0.375
    assert made.h == -0.25


def test_one_time_repeated_times_and_no_time_at_all():
    assert grid(0, 1, 4, 0.5).saved == (2,)
    assert grid(0, 1, 4, np.float64(0.5)).saved == (2,)
    assert grid(0, 1, 4, iter([0, 0.5, 0.5, 1])).saved == (0, 2, 2, 4)
    assert grid(0, 1, 4, [0, 0.5, 0.5, 1]).spread == (0, 1, 1, 2)
    assert grid(0, 1, 4, [0, 0.5, 1]).spread is None
    assert grid(0, 1, 4, [1]).final_only


def test_a_grid_of_no_length_keeps_its_one_time():
    made = grid(1.5, 1.5, 3, [1.5, 1.5])
    assert made.h == 0
    assert made.times == (1.5, 1.5)
    with pytest.raises(GridError, match=r"t0 == t1 == 1\.5"):
        grid(1.5, 1.5, 3, [1.0])


def test_numbers_of_numpy_are_numbers():
    made = grid(np.float32(0), np.int64(1), np.int32(3), np.linspace(0, 1, 4))
    assert (made.t0, made.t1, made.steps) == (0.0, 1.0, 3)
    assert all(type(number) in (int, float) for number in (made.t0, made.t1, made.steps))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, 1, 0), "steps=0.*at least 1"),
        ((0, 1, -4), "steps=-4.*t1 < t0"),
        ((0, 1, 4.0), "steps=4.0 is a float"),
        ((0, 1, True), "steps=True is a bool"),
        ((0, 1, None), "steps=None"),
        ((0, 1, "4"), "steps='4' is a str"),
        ((math.nan, 1, 4), "t0=nan.*finite"),
        ((0, math.inf, 4), "t1=inf"),
        ((0, "one", 4), "t1='one' is no number"),
        ((0, [1], 4), r"t1=\[1\] is no number"),
        ((0, 1j, 4), "t1=1j is no number"),
        ((0, 1, 4, []), "ts is empty.*leave ts out"),
        ((0, 1, 4, "final"), "ts='final'.*'all'"),
        ((0, 1, 4, [2]), r"ts holds 2.0, outside \[0.0, 1.0\]"),
        ((0, 1, 4, [-0.25]), "outside"),
        ((1, 0, 4, [0.25, 0.5]), "does not run from t0=1.0 to t1=0.0"),
        ((0, 1, 4, [0.5, 0.25]), "order of the solve"),
        ((0, 1, 4, [0.3]), r"0.3.*0.0, 0.25.*multiple"),
        ((0, 1, 4, [math.nan]), "ts=nan"),
        ((0, 1, 4, ["a"]), "ts='a' is no number"),
        ((0, 1, 4, [None]), "ts=None is no number"),
        ((0, 1, 4, [[0.5, 1.0]]), "no number"),
    ],
)
def test_what_makes_no_grid(arguments, match):
    with pytest.raises(GridError, match=match):
        grid(*arguments)
