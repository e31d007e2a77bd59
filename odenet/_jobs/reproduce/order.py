"""The order of errors over N with its interval, and data of a known order that scatter as these do."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from odenet._jobs.reproduce.thresholds import thresholds
from odenet._report.fit import Fit, fit
from odenet._report.interval import Interval, around, interval

FLOOR = thresholds("all")["floor"]
"""Errors below this are rounding, summed over thousands of steps of float64, and say nothing about an order."""

OverSeeds = Mapping[int, Sequence[float]]
"""By depth, the values of all seeds."""


@dataclass(frozen=True)
class Order:
    """`value = c N**-order`, a slope a seed.

    Args:
        interval: of the mean slope over seeds; of one seed alone, that of its regression.
        straightness: R squared of the line through the medians.
        depths: that the line was fitted over.
        seeds: how many.
    """

    interval: Interval
    straightness: float
    depths: tuple[int, ...]
    seeds: int

    def __str__(self) -> str:
        span = f"N={self.depths[0]}..{self.depths[-1]}, {self.seeds} seed{'s' if self.seeds != 1 else ''}"
        return f"order {self.interval}, R² {self.straightness:.4f}, {span}"


def order(over_seeds: OverSeeds, least_depth: int = 1) -> Order | None:
    """The order of what is seen; None with less than three depths that have a value.

    Args:
        over_seeds: by depth.
        least_depth: shallower networks are not looked at.
    """
    by_depth = {n: list(of_seeds) for n, of_seeds in sorted(over_seeds.items()) if n >= least_depth}
    middle = _fit(by_depth, statistics.median)
    if middle is None:
        return None
    seeds = min(len(by_depth[n]) for n in middle.depths)
    singly = [_fit(by_depth, itemgetter(seed)) for seed in range(seeds)]
    orders = [line.order for line in singly if line is not None]
    if len(orders) < seeds:
        return None
    spread = interval(orders) or _of_regression(middle, [by_depth[n][0] for n in middle.depths])
    return Order(spread, middle.straightness, middle.depths, seeds)


def of_order(over_seeds: OverSeeds, slope: float, least_depth: int = 1) -> dict[int, list[float]] | None:
    """Data that fall as `N**-slope` and scatter as these do: over seeds, or of one seed about its line.

    Returns:
        by depth; None where the data have no order.
    """
    observed = order(over_seeds, least_depth)
    if observed is None:
        return None
    logs = {n: np.log(list(over_seeds[n])[: observed.seeds]) for n in observed.depths}
    middle = {n: float(of_depth.mean()) for n, of_depth in logs.items()}
    first = observed.depths[0]
    level = middle[first]
    if observed.seeds == 1:  # what is left of the seed's own line
        line = np.polynomial.Polynomial.fit(np.log(observed.depths), list(middle.values()), 1)
        middle = {n: float(line(math.log(n))) for n in middle}
    return {n: [*np.exp(level - slope * math.log(n / first) + logs[n] - middle[n])] for n in observed.depths}


def _fit(by_depth: Mapping[int, Sequence[float]], value: Callable[[Sequence[float]], float]) -> Fit | None:
    return fit(list(by_depth), [value(of_seeds) for of_seeds in by_depth.values()], FLOOR)


def _of_regression(line: Fit, values: Sequence[float]) -> Interval:
    """The slope's interval from what the line leaves."""
    x, y = np.log(line.depths), np.log(values)
    left = y - (math.log(line.constant) - line.order * x)
    freedom = len(x) - 2
    error = math.sqrt(float(left @ left) / freedom / float(((x - x.mean()) ** 2).sum()))
    return around(line.order, error, freedom, len(x))
