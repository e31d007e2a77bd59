"""Orders of convergence from errors, on errors whose order is known."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odenet._jobs.solve.convergence import EqualStepSolve, as_json, fitted_order, observed_order, series
from odenet._report.rows import as_csv
from odenet._test_problems.named import PROBLEMS
from odenet._test_problems.reference import Reference


def run(steps, error, backend="numpy", solver="rk4", dtype="float64"):
    result = "success" if error == error else "not finite"
    return EqualStepSolve("decay", backend, solver, 4, dtype, "cpu", steps, 4 * steps, error, 0.5, result)


@given(st.floats(0.5, 6), st.floats(1e-3, 1e-1), st.lists(st.integers(4, 60), min_size=2, max_size=6, unique=True))
def test_a_power_law_gives_its_exponent(order, constant, steps):
    runs = [run(n, constant * (n / 4) ** -order) for n in sorted(steps)]
    assert fitted_order(runs) == pytest.approx(order, rel=1e-6)
    assert observed_order(runs[0], runs[1]) == pytest.approx(order, rel=1e-6)


def test_rounding_and_runs_that_found_nothing_do_not_bend_the_fit():
    good = [run(n, 10.0 * n**-4.0) for n in (16, 32, 64)]
    bad = [run(4, 1e30), run(8, float("nan")), run(4096, 1e-13), run(8192, 0.0)]
    assert fitted_order([*bad[:2], *good, *bad[2:]]) == pytest.approx(4)


def test_rounding_is_that_of_the_number_type():
    errors = [(16, 1e-4), (32, 1e-5), (64, 2e-6)]
    double = fitted_order([run(n, error) for n, error in errors])
    single = fitted_order([run(n, error, dtype="float32") for n, error in errors])
    assert single == pytest.approx(3.3219, abs=1e-3)
    assert double is not None
    assert double < 3


def test_a_reference_cannot_show_an_order_below_its_own_uncertainty():
    runs = [run(16, 1e-4), run(32, 1e-5), run(64, 1e-6)]
    assert fitted_order(runs, uncertainty=2e-6) is None


@pytest.mark.parametrize(("coarse", "fine"), [(0.0, 1e-3), (1e-3, 0.0), (float("nan"), 1e-3), (1e-3, float("inf"))])
def test_no_order_is_made_up(coarse, fine):
    assert observed_order(run(8, coarse), run(16, fine)) is None
    assert fitted_order([run(8, coarse), run(16, fine)]) is None


def test_equal_steps_have_no_order():
    assert observed_order(run(8, 1e-2), run(8, 1e-3)) is None
    assert fitted_order([run(8, 1e-2), run(8, 1e-3)]) is None


def test_series_keep_the_order_asked_for_and_sort_by_steps():
    runs = [run(32, 1e-3, "b"), run(16, 1e-2, "b"), run(16, 1e-2, "a")]
    assert [(key, [each.steps for each in found]) for key, found in series(runs).items()] == [
        (("b", "rk4"), [16, 32]),
        (("a", "rk4"), [16]),
    ]


def test_csv_gives_the_numbers_back_to_the_last_bit():
    runs = [run(16, 1 / 3), run(32, float("nan"))]
    rows = list(csv.DictReader(io.StringIO(as_csv(EqualStepSolve, runs))))
    assert [float(row["relative_error"]) for row in rows] == pytest.approx([1 / 3, float("nan")], rel=0, nan_ok=True)
    assert [row["result"] for row in rows] == ["success", "not finite"]


def test_json_is_strict_even_where_a_run_was_not():
    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    text = as_json(PROBLEMS["decay"], [run(16, float("nan"))], Reference(1.0, 0.0, "closed form"))
    found = json.loads(text, parse_constant=refuse)
    assert found["runs"][0]["relative_error"] is None
    assert found["orders"] == [{"backend": "numpy", "solver": "rk4", "fitted_order": None}]
