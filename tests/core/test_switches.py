"""Telling a jump from a kink and from a steep slope, by values on a line through the state."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest

from odenet.kit import switches


@dataclass(frozen=True)
class At:
    """An evaluation of one number."""

    sides: tuple[int, ...]
    out: float

    def change(self, other):
        return abs(self.out - other.out) / max(abs(self.out), abs(other.out), 1e-30)


def seen(f, switch=0.0, *, compared=True, **options):
    """Whether f(x) jumps, looked at from x = 1, where it compares x with `switch`; and how often it was evaluated."""
    count = itertools.count()

    def look(place):
        next(count)
        x = 1.0 + place.s * (1.0, -0.7, 0.4)[place.line]
        out = f(x)
        return At((x > switch,) if compared else (), out) if math.isfinite(out) else None

    return switches.jumps(look, 2.0**-26, **options), next(count)


SWITCHES = [0.3, -0.5, -5.0, 30.0]


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("slope", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("size", [0.01, 1.0])
def test_a_jump_is_told_from_a_kink(switch, slope, size):
    kink, jump = (lambda x, by=by: 1.0 + (slope * (x - switch) + by if x > switch else 0.0) for by in (0.0, size))
    assert not seen(kink, switch)[0]
    found, count = seen(jump, switch)
    assert found
    assert count < 60


def test_a_root_is_steeper_than_any_slope_and_no_jump():
    assert not seen(lambda x: 1.0 + abs(x - 0.3) ** 0.5, 0.3)[0]


def test_what_is_not_finite_or_never_met_tells_nothing():
    assert not seen(lambda x: 1.0 if x > 0.3 else math.inf, 0.3)[0]
    assert seen(lambda x: x, -1e3) == (False, 1 + len(switches.REACH))


@pytest.mark.parametrize("hidden", [True, False])
def test_a_comparison_that_is_not_seen_is_looked_for_where_it_may_be(hidden):
    assert seen(lambda x: x if x > 0.3 else -x, compared=False, hidden=hidden)[0] == hidden
    assert not seen(lambda x: max(x, 0.3), compared=False, hidden=hidden)[0]
