"""Numbers over depth and seeds: their order with its interval, data of a known order that scatter alike, and ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from odenet._jobs.reproduce.controls import Said, thresholds
from odenet._report.fit import Fit, Interval, around, fit, interval

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


Pairs = Mapping[int, Sequence[tuple[float, float]]]


def paired(small: OverSeeds, large: OverSeeds) -> Pairs:
    """Seed by seed, at the depths that both have."""
    return {n: list(zip(small[n], large[n], strict=True)) for n in small if n in large}


def scaled(pairs: Pairs, ratio: float) -> Pairs | None:
    """The same large numbers with that ratio to each; None without any."""
    return {n: [(ratio * other, other) for _, other in of_depth] for n, of_depth in pairs.items()} or None


def moved(pairs: Pairs, ratio: float) -> Pairs | None:
    """Ratios that scatter as these, with that geometric mean at each depth; None where one is no number above 0."""
    logs = _finite_logs(pairs)
    return {n: [(ratio * math.exp(x - statistics.mean(some)), 1.0) for x in some] for n, some in logs.items()} or None


def middle(pairs: Pairs) -> Pairs | None:
    """The geometric mean of the ratios, in the place of each of two; None where one is no number above 0."""
    logs = _finite_logs(pairs)
    return {n: [(math.exp(statistics.mean(some)), 1.0)] * 2 for n, some in logs.items()} or None


def _finite_logs(pairs: Pairs) -> dict[int, list[float]]:
    """The logarithms of the ratios; none of any depth where one is no number above 0."""
    logs = {n: _logs(of_depth) for n, of_depth in pairs.items()}
    return logs if all(some and all(map(math.isfinite, some)) for some in logs.values()) else {}


def _logs(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [math.log(one / other) if one > 0 and other > 0 else math.nan if one else -math.inf for one, other in pairs]


def bounded(pairs: Pairs, factor: float) -> Said:
    """Whether each small number is at most `factor` times its large one."""
    every = [pair for some in pairs.values() for pair in some]
    if not every:
        return False, "nothing to compare"
    ratios = [one / other for one, other in every if other]
    observed = f"ratios {min(ratios):.3g} to {max(ratios):.3g}, {len(every)} of them" if ratios else "zeros"
    return all(one <= factor * other for one, other in every), observed


def below_in_the_mean(pairs: Pairs, factor: float) -> Said:
    """Whether the geometric mean of the ratios is under `factor` at each depth, at the upper end of its interval."""
    intervals = {n: interval(_logs(some)) for n, some in pairs.items()}
    known = {
        n: log_ratio for n, log_ratio in intervals.items() if log_ratio is not None and math.isfinite(log_ratio.mean)
    }
    if not known or len(known) < len(intervals):
        return False, "fewer than two seeds with a ratio" if intervals else "nothing to compare"
    worst = max(known, key=lambda n: known[n].high)
    low, high = min(log_ratio.mean for log_ratio in known.values()), max(log_ratio.mean for log_ratio in known.values())
    observed = f"mean ratios {math.exp(low):.2g} to {math.exp(high):.2g}; worst at N={worst}: {_of_logs(known[worst])}"
    return known[worst].high < math.log(factor), observed


def _of_logs(logs: Interval) -> str:
    return str(Interval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high), logs.count))
