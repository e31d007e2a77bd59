"""A claim of the paper held against what was seen, by number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from odenet._report.fit import STRAIGHT, Fit, fit

FLOOR = 1e-12
"""Errors below this are rounding, summed over thousands of steps of float64, and say nothing about an order."""

OverSeeds = Mapping[int, Sequence[float]]
"""By depth, the values of all seeds."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:
        claim: the claim, as a sentence without a full stop.
        expected: the numbers that it allows.
        observed: the numbers that were seen.
        passed: whether these are among those.
    """

    claim: str
    expected: str
    observed: str
    passed: bool


def falls(claim: str, over_seeds: OverSeeds, order: float, tolerance: float, least_depth: int = 1) -> Verdict:
    """`value = c N**-order`, on a straight line: the order is that of the medians over seeds.

    Args:
        claim: see `Verdict`.
        over_seeds: values by depth.
        order, tolerance: what is allowed. A negative order is of what grows.
        least_depth: where the line is fitted from, if shallow networks are not near the limit yet.
    """
    found = _fit(over_seeds, least_depth)
    straight = found is not None and found.straightness > STRAIGHT
    return Verdict(
        claim,
        f"order {order:g} ± {tolerance:g}, R² above {STRAIGHT}",
        _said(found, over_seeds, least_depth),
        found is not None and straight and abs(found.order - order) <= tolerance,
    )


def falls_throughout(claim: str, moments: Mapping[int, OverSeeds], order: float, tolerance: float) -> Verdict:
    """`falls`, at each moment."""
    found = [_fit(over_seeds, 1) for over_seeds in moments.values()]
    fits = [each for each in found if each is not None]
    expected = f"orders {order:g} ± {tolerance:g}, R² above {STRAIGHT}, at {len(moments)} moments"
    if not fits or len(fits) < len(found):
        return Verdict(claim, expected, f"an order at {len(fits)} of {len(found)} moments", False)
    orders, straightness = [each.order for each in fits], min(each.straightness for each in fits)
    observed = f"orders {min(orders):.3f} to {max(orders):.3f}, R² at least {straightness:.4f}"
    near = all(abs(each - order) <= tolerance for each in orders)
    return Verdict(claim, expected, observed, near and straightness > STRAIGHT)


def stays(claim: str, over_seeds: OverSeeds, tolerance: float, least_depth: int = 1) -> Verdict:
    """No power of N: the fitted order is 0 up to the tolerance (and R² means nothing)."""
    found = _fit(over_seeds, least_depth)
    passed = found is not None and abs(found.order) <= tolerance
    return Verdict(claim, f"order 0 ± {tolerance:g}", _said(found, over_seeds, least_depth), passed)


def below(claim: str, small: OverSeeds, large: OverSeeds, factor: float = 1.0) -> Verdict:
    """`small <= factor * large` for every depth and seed."""
    expected = f"a ratio of at most {factor:g}, all of them"
    pairs = [pair for depth in small if depth in large for pair in zip(small[depth], large[depth], strict=True)]
    if not pairs:
        return Verdict(claim, expected, "nothing to compare", False)
    ratios = [one / other for one, other in pairs if other]
    observed = f"ratios {min(ratios):.2g} to {max(ratios):.2g}" if ratios else "zeros"
    return Verdict(claim, expected, observed, all(one <= factor * other for one, other in pairs))


def changes(claim: str, over_seeds: OverSeeds, *, least: float = -math.inf, most: float = math.inf) -> Verdict:
    """The deepest networks' median against the shallowest ones', whatever lies between.

    Args:
        claim: see `Verdict`.
        over_seeds: values by depth.
        least, most: which ratio is allowed; one of them.
    """
    expected = f"a ratio of at least {least:g}" if math.isinf(most) else f"a ratio of at most {most:g}"
    if len(over_seeds) < 2:
        return Verdict(claim, expected, "fewer than two depths", False)
    first, last = min(over_seeds), max(over_seeds)
    ratio = statistics.median(over_seeds[last]) / statistics.median(over_seeds[first])
    observed = f"N={last} has {ratio:.2g} times that of N={first}"
    return Verdict(claim, expected, observed, least <= ratio <= most)


def as_good(claim: str, errors: OverSeeds, reference: OverSeeds, points: float, least_depth: int = 1) -> Verdict:
    """Test errors, as parts of one, are those of a reference: in the mean over seeds, at each depth.

    Args:
        claim: see `Verdict`.
        errors, reference: by depth, of the same seeds.
        points: of a hundred that the means may be apart.
        least_depth: shallower networks are not looked at.
    """
    gaps = from_depth(points_above(errors, reference), least_depth)
    return Verdict(
        claim,
        f"means over seeds within {points:g} points",
        "; ".join(f"N={n}: {spread(each)}" for n, each in gaps.items()) or "nothing to compare",
        bool(gaps)
        and gaps.keys() == from_depth(errors, least_depth).keys()
        and all(abs(statistics.mean(each)) <= points for each in gaps.values()),
    )


def points_above(errors: OverSeeds, reference: OverSeeds) -> dict[int, list[float]]:
    """By depth, how many points of a hundred an error is above that of the reference, seed by seed."""
    return {
        n: [100 * (a - b) for a, b in zip(each, reference[n], strict=True)]
        for n, each in errors.items()
        if len(reference.get(n, ())) == len(each)
    }


def spread(values: Sequence[float]) -> str:
    """Mean and range of signed numbers, for a person."""
    return f"{statistics.mean(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"


def means(over_seeds: OverSeeds) -> dict[int, list[float]]:
    """The mean over seeds as the only value of each depth."""
    return {depth: [statistics.mean(each)] for depth, each in over_seeds.items()}


def from_depth(over_seeds: OverSeeds, least: int) -> dict[int, Sequence[float]]:
    """Without shallower networks."""
    return {depth: each for depth, each in over_seeds.items() if depth >= least}


def medians(over_seeds: OverSeeds) -> dict[int, list[float]]:
    """The median over seeds as the only value of each depth: what single seeds may be an exception to."""
    return {depth: [statistics.median(each)] for depth, each in over_seeds.items()}


def _fit(over_seeds: OverSeeds, least_depth: int) -> Fit | None:
    kept = [depth for depth in over_seeds if depth >= least_depth]
    return fit(kept, [statistics.median(over_seeds[depth]) for depth in kept], FLOOR)


def _said(found: Fit | None, over_seeds: OverSeeds, least_depth: int) -> str:
    if found is None:
        return f"fewer than three depths with a value that is finite and above {FLOOR:g}"
    text = f"order {found.order:.3f}, R² {found.straightness:.4f}, N={found.depths[0]}..{found.depths[-1]}"
    seeds = min(map(len, over_seeds.values()))
    if seeds < 2:
        return text
    singly = [_fit({depth: [each[seed]] for depth, each in over_seeds.items()}, least_depth) for seed in range(seeds)]
    orders = [each.order for each in singly if each is not None]
    low, _, high = statistics.quantiles(orders, n=4, method="inclusive") if len(orders) > 1 else (orders * 3)
    return f"{text}; quartiles over {len(orders)} seeds {low:.3f} to {high:.3f}"
