"""What a step leaves of a linear equation, by the method's own polynomial: beside steps of the method itself."""

import cmath
import math

import pytest

import odenet
from odenet.kit import CostateError, CostateStep, Tableau, local_error, sum_of_powers, trial

METHODS = [name for name in ("heun", "fehlberg2", "bosh3", "dopri5", "tsit5", "dopri8")]


def left(tableau: Tableau, z: complex) -> tuple[float, float]:
    """The error of a step of `y' = z y` from 1, and its estimate."""
    attempt = trial(tableau, lambda i, y: (z * y[0],), (1.0,), 1.0, (z,))
    return abs(attempt.y1[0] - cmath.exp(z)), abs(attempt.error[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_error_of_a_step_is_that_of_a_linear_equation_of_any_direction(name):
    tableau = odenet.solver(name).tableau
    method = local_error(tableau)
    for size in (0.3, 0.9, 1.5):
        error = sum_of_powers(method.error, size)
        off = [left(tableau, cmath.rect(size, angle))[0] for angle in (0, math.pi / 2, 3, math.pi)]
        assert max(off) < 1.2 * error  # of a series that ends
        assert max(off) > error / 2
        assert left(tableau, size)[1] <= 1.001 * sum_of_powers(method.estimate, size)


def test_an_estimate_that_vanishes_hides_no_error():
    tableau = odenet.solver("bosh3").tableau
    off, estimate = left(tableau, -1.0)
    assert estimate < 1e-15
    assert off / math.exp(-1) > 0.09
    step = CostateStep(h=0.1, before=1.0, after=1 / 3, slope=10.0, last=10 / 3, error=estimate)
    said = CostateError().then(step, local_error(tableau))
    assert off * 3 < said.off < 6 * off


def test_errors_of_steps_add_up_and_are_a_smaller_part_of_what_a_loss_adds_to():
    method = local_error(odenet.solver("dopri5").tableau)
    step = CostateStep(h=0.01, before=1.0, after=1.0, slope=100.0, last=100.0, error=1e-2)
    one = CostateError().then(step, method)
    two = one.then(step, method)
    assert two.off == pytest.approx(2 * one.off)
    assert two.of_weights() == pytest.approx(1.5 * one.off)  # half of a quadrature came before the second step
    added = step._replace(before=4.0, after=4.0, slope=0.0, last=0.0, error=0.0)
    assert one.then(added, method).off == pytest.approx(one.off / 4)
    nothing = CostateStep(0.1, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert CostateError().then(nothing, method).off == 0
