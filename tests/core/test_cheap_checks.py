"""Checks that are made once, or without a call: they still tell what they told."""

import math

import pytest

import odenet
from odenet._problem.problem import problem
from odenet.kit import combine, gradient, number, solver


def _solved_by(**tolerances: object) -> odenet.PIDController:
    grid = problem(lambda t, y: y, 1.0, **tolerances).grid  # pyright: ignore[reportArgumentType]
    assert isinstance(grid, odenet.Span)
    return grid.control


def test_tolerances_are_checked_each_by_its_own_type() -> None:
    assert _solved_by(rtol=1.0, atol=0.5) == odenet.PIDController(rtol=1.0, atol=0.5)
    assert _solved_by(rtol=1.0).atol == odenet.PIDController().atol
    for wrong in (True, -1.0, math.nan, math.inf, "1.0"):
        for _ in range(2):  # what was refused is not known
            with pytest.raises(odenet.InputError, match="rtol"):
                _solved_by(rtol=wrong)
    kept = odenet.PIDController(rtol=1e-3, max_steps=7)
    assert _solved_by(control=kept, rtol=1e-4) == odenet.PIDController(rtol=1e-4, max_steps=7)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, "1", None, [1.0]])
def test_a_time_is_a_finite_number(wrong: object) -> None:
    assert number("t0", 0.5) == 0.5
    assert number("t0", 2) == 2.0
    with pytest.raises(odenet.GridError, match="t0"):
        number("t0", wrong)


def test_names_are_the_same_however_they_are_spelled() -> None:
    assert solver("dopri5") is solver("DOPRI5")
    assert gradient("discrete-adjoint") == gradient(" Discrete_Adjoint")
    for wrong in ("dopri", "", "euler:x"):
        with pytest.raises(odenet.InputError):
            solver(wrong)


class _Traced:
    """A factor whose value is not known: comparing it would end a trace."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __mul__(self, other: float) -> float:
        return 3.0 * other


def test_sums_with_factors_that_are_numbers_nothing_and_traced() -> None:
    a, b = (2.0, 5.0), (7.0, 11.0)
    assert combine((1, a)) is a
    assert combine((2.0, a), (1.0, b), (-1, b), (0, b), (None, b)) == (4.0, 10.0)
    assert combine((_Traced(), a), (_Traced(), b)) == (27.0, 48.0)
    with pytest.raises(ValueError, match="zip"):
        combine((1.0, a), (1.0, (1.0,)))
