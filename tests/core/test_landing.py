"""Where a step lands: as many steps as fit, none of them a sliver, whatever numbers the times are."""

from __future__ import annotations

import numpy as np
import pytest

from odenet._solvers.controller import FLOATS, Arithmetic, landing, resumed

NUMPY = Arithmetic(np.minimum, np.maximum, np.where)


def steps(size, t0, t1, kind, of):
    """Ends of steps that are all of one size."""
    direction, stop, t = kind(1 if t1 > t0 else -1), kind(t1), kind(t0)
    spacing = kind(np.finfo(kind).eps * max(abs(t0), abs(t1)))
    ends = []
    while t != stop:
        t, _ = landing(t, kind(size), stop, direction, spacing, of)
        t = kind(t)
        ends.append(float(t))
        assert len(ends) < 2000
    return ends


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (-3.0, -2.0)])
def test_n_steps_of_an_nth_are_n_steps(kind, t0, t1):
    for n in (1, 2, 3, 7, 10, 49, 64, 99):
        ends = steps(1 / n, t0, t1, kind, FLOATS if kind is float else NUMPY)
        assert len(ends) == n
        assert ends[-1] == t1
        sizes = np.abs(np.diff([t0, *ends]))
        assert sizes.min() > 0.99 / n
        assert sizes.max() < 1.01 / n


def test_a_remainder_that_is_no_rounding_is_a_step_of_its_own():
    assert steps(0.4, 0.0, 1.0, float, FLOATS) == pytest.approx([0.4, 0.8, 1.0])
    assert len(steps(0.332, 0.0, 1.0, np.float32, NUMPY)) == 4


def test_a_clipped_step_says_nothing_against_the_size_that_it_would_have_had():
    assert resumed(0.1, 0.5, True) == 0.5
    assert resumed(0.1, 0.5, False) == 0.1
    assert resumed(0.7, 0.5, True) == 0.7
