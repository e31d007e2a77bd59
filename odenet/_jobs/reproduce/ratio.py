"""Pairs of numbers of the same depth and seed, and tests of their ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from odenet._jobs.reproduce.controls import Said
from odenet._jobs.reproduce.order import OverSeeds
from odenet._report.interval import Interval, interval

Pairs = Mapping[int, Sequence[tuple[float, float]]]


def paired(small: OverSeeds, large: OverSeeds) -> Pairs:
    """Seed by seed, at the depths that both have."""
    return {n: list(zip(small[n], large[n], strict=True)) for n in small if n in large}


def scaled(pairs: Pairs, ratio: float) -> Pairs | None:
    """The same large numbers with that ratio to each; None without any."""
    return {n: [(ratio * other, other) for _, other in of_depth] for n, of_depth in pairs.items()} or None


def moved(pairs: Pairs, ratio: float) -> Pairs | None:
    """Ratios that scatter as these, with that geometric mean at each depth; None where one is no number above 0."""
    logs = {n: _logs(of_depth) for n, of_depth in pairs.items()}
    if not all(some and all(map(math.isfinite, some)) for some in logs.values()):
        return None
    return {n: [(ratio * math.exp(x - statistics.mean(some)), 1.0) for x in some] for n, some in logs.items()} or None


def middle(pairs: Pairs) -> Pairs | None:
    """The geometric mean of the ratios, in the place of each of two; None where one is no number above 0."""
    logs = {n: _logs(of_depth) for n, of_depth in pairs.items()}
    if not all(some and all(map(math.isfinite, some)) for some in logs.values()):
        return None
    return {n: [(math.exp(statistics.mean(some)), 1.0)] * 2 for n, some in logs.items()} or None


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
