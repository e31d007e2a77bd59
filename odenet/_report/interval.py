"""The interval of a mean of few numbers, by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

LEVEL = 0.90
"""Of both ends together: each is the end of a one-sided test at 5 %, and the two are the two one-sided tests (TOST) of
an equivalence (Schuirmann 1987)."""


@dataclass(frozen=True)
class Interval:
    """Where the mean lies, at `LEVEL`.

    Args:
        mean: of the numbers.
        low, high: ends of the interval.
        count: how many numbers it is from.
    """

    mean: float
    low: float
    high: float
    count: int

    def inside(self, low: float, high: float) -> bool:
        """Whether all of it lies between these; no number lies nowhere."""
        return low <= self.low and self.high <= high

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interval(values: Sequence[float]) -> Interval | None:
    """The interval of the mean of independent numbers, normal about it; None for fewer than two."""
    if len(values) < 2:
        return None
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return around(mean, math.sqrt(spread / count), count - 1, count)


@cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # a tenth of a second, which only what has an interval should take

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def around(mean: float, error: float, freedom: int, count: int) -> Interval:
    """The interval of an estimate.

    Args:
        mean: the estimate.
        error: its standard error.
        freedom: degrees of freedom of that, at least 1.
        count: how many numbers both are from.
    """
    half = _quantile(freedom) * error
    return Interval(mean, mean - half, mean + half, count)
