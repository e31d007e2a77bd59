"""What a few numbers say: the order of a method by regression, and the interval of a mean by Student's t."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ROUNDING = {"float32": 100 * 2.0**-23, "float64": 100 * 2.0**-52}
"""Errors below this are rounding and say nothing about a method's order."""

STRAIGHT = 0.98
"""R squared above which a slope is called an order."""


@dataclass(frozen=True)
class Fit:
    """`error = c N**-order`, by least squares of the logarithms.

    Args:
        order: the slope, positive where errors fall.
        constant: c.
        depths: the N that it was fitted over: those whose error is above rounding.
        straightness: the share of the variance of log error that the line explains (R squared).
    """

    order: float
    constant: float
    depths: tuple[int, ...]
    straightness: float

    def __str__(self) -> str:
        return f"{self.order:.2f}" if self.straightness > STRAIGHT else f"~{self.order:.1f}"


def fit(depths: Sequence[int], errors: Iterable[float], rounding: float) -> Fit | None:
    """The fitted order, or None where less than three depths have an error that is finite and above `rounding`."""
    pairs = [(n, e) for n, e in zip(depths, errors, strict=True) if np.isfinite(e) and e > rounding]
    if len({n for n, _ in pairs}) < 3:
        return None
    x, y = (np.log([pair[i] for pair in pairs]) for i in (0, 1))
    across, up = x - x.mean(), y - y.mean()
    slope = float(across @ up) / float(across @ across)
    offset = y.mean() - slope * x.mean()
    spread = float(up @ up)
    left = float(((up - slope * across) ** 2).sum())
    straight = 1 - left / spread if spread > 0 else 1.0
    return Fit(-slope, float(np.exp(offset)), tuple(n for n, _ in pairs), straight)


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
