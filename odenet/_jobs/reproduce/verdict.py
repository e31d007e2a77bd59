"""A claim of the paper held against what was seen, by number: with an interval, and with controls run beside it.

Over 250 lines: the kinds of claim are short functions, which share how they make their controls.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from odenet._jobs.reproduce.controls import Said, Verdict, judged, thresholds
from odenet._jobs.reproduce.order import (
    OverSeeds,
    below_in_the_mean,
    bounded,
    middle,
    moved,
    of_order,
    order,
    paired,
    scaled,
)
from odenet._report.fit import LEVEL, interval

STRAIGHT = thresholds("all")["straightness"]
_ENDS = f"{100 * LEVEL:g} % interval over seeds"


def falls(
    claim: str, over_seeds: OverSeeds, order: float, tolerance: float, least_depth: int = 1, straight: bool = True
) -> Verdict:
    """`value = c N**-order`: the order's whole interval is within the tolerance, and the medians lie on a line.

    Args:
        claim: see `Verdict`.
        over_seeds: values by depth.
        order, tolerance: what is allowed. A negative order is of what grows.
        least_depth: where the line is fitted from, if shallow networks are not near the limit yet.
        straight: False asks for no straight line, of what is drawn anew at each depth and scatters about one.
    """
    return falls_throughout(claim, {0: over_seeds}, order, tolerance, least_depth, straight)


def falls_throughout(
    claim: str,
    moments: Mapping[int, OverSeeds],
    order: float,
    tolerance: float,
    least_depth: int = 1,
    straight: bool = True,
) -> Verdict:
    """`falls`, at each moment."""
    line, on_a_line = (STRAIGHT, f", R² above {STRAIGHT}") if straight else (-math.inf, "")
    several = f", at {len(moments)} moments" if len(moments) != 1 else ""
    return judged(
        claim,
        f"order {order:g} ± {tolerance:g} with its whole {_ENDS}{on_a_line}{several}",
        lambda data: _orders(data, order - tolerance, order + tolerance, line, least_depth),
        moments,
        bad={f"order {order + 2 * tolerance:g}": _like(moments, order + 2 * tolerance, least_depth)},
        good={f"order {order:g}": _like(moments, order, least_depth)},
        centre=_middle(moments),
    )


def stays(claim: str, over_seeds: OverSeeds, tolerance: float, least_depth: int = 1) -> Verdict:
    """No power of N: the fitted order is 0 up to the tolerance with all of its interval (and R² means nothing)."""
    return falls(claim, over_seeds, 0, tolerance, least_depth, straight=False)


def falls_at_least(claim: str, over_seeds: OverSeeds, least: float, least_depth: int = 1) -> Verdict:
    """The order is `least` or more, with the lower end of its interval; nothing is said of a line."""
    moments = {0: over_seeds}
    return judged(
        claim,
        f"order at least {least:g} at the lower end of its {_ENDS}",
        lambda data: _orders(data, least, math.inf, -math.inf, least_depth),
        moments,
        bad={"order 0": _like(moments, 0, least_depth)},
        good={f"order {2 * least:g}": _like(moments, 2 * least, least_depth)},
        centre=_middle(moments),
    )


def below(claim: str, small: OverSeeds, large: OverSeeds, factor: float = 1.0) -> Verdict:
    """`small <= factor * large` for every depth and seed: of what is true of each, as a bound is."""
    pairs = paired(small, large)
    return judged(
        claim,
        f"a ratio of at most {factor:g}, all of them",
        lambda data: bounded(data, factor),
        pairs,
        bad={f"a ratio of {2 * factor:g}": scaled(pairs, 2 * factor)},
        good={f"a ratio of {factor / 2:g}": scaled(pairs, factor / 2)},
    )


def smaller(
    claim: str,
    small: OverSeeds,
    large: OverSeeds,
    factor: float = 1.0,
    bad: Mapping[str, OverSeeds] | None = None,
) -> Verdict:
    """`small < factor * large` in the geometric mean over seeds, at the upper end of its interval, at each depth.

    Args:
        claim: see `Verdict`.
        small, large, factor: by depth, of the same seeds.
        bad: what is known not to be smaller, by what it is: it must not pass in the place of `small`.
    """
    pairs = paired(small, large)
    return judged(
        claim,
        f"a mean ratio below {factor:g} at the upper end of its {_ENDS}, at each N",
        lambda data: below_in_the_mean(data, factor),
        pairs,
        bad={
            f"a ratio of {2 * factor:g} with this scatter": moved(pairs, 2 * factor),
            **{description: paired(some, large) or None for description, some in (bad or {}).items()},
        },
        good={f"a ratio of {factor / 10:g} with this scatter": moved(pairs, factor / 10)},
        centre=middle(pairs),
    )


def near(claim: str, over_seeds: OverSeeds, target: float, tolerance: float) -> Verdict:
    """The mean over seeds is a number, with its whole interval within the tolerance, at each depth."""
    centred = {n: [value - statistics.mean(some) + target for value in some] for n, some in over_seeds.items()}
    away = {n: [value + 2 * tolerance for value in some] for n, some in centred.items()}
    return judged(
        claim,
        f"{target:g} ± {tolerance:g} with its whole {_ENDS}, at each N",
        lambda data: _within(data, target - tolerance, target + tolerance),
        over_seeds,
        bad={f"{target + 2 * tolerance:g} with this scatter": away or None},
        good={f"{target:g} with this scatter": centred or None},
        centre={n: [statistics.mean(some)] * 2 for n, some in over_seeds.items()},
    )


def as_good(
    claim: str,
    errors: OverSeeds,
    reference: OverSeeds,
    points: float,
    least_depth: int = 1,
    bad: Mapping[str, OverSeeds] | None = None,
) -> Verdict:
    """Test errors, as parts of one, are those of a reference: equivalence by two one-sided tests of paired seeds.

    Args:
        claim: see `Verdict`.
        errors, reference: by depth, of the same seeds.
        points: of a hundred: the margin of the equivalence, of the mean over seeds at each depth.
        least_depth: shallower networks are not looked at.
        bad: errors of a gradient that is known to be bad, by what it is: they must not pass.
    """

    expected = f"a mean difference within ± {points:g} points with its whole {_ENDS} (equivalence, two tests at 5 %)"
    return _margin(claim, expected, errors, reference, (-points, points), least_depth, bad or {})


def no_worse(claim: str, errors: OverSeeds, reference: OverSeeds, points: float) -> Verdict:
    """Test errors are at most so many points above those of a reference: one test of paired seeds, at each depth."""
    expected = f"a mean difference of at most {points:g} points at the upper end of its {_ENDS}"
    return _margin(claim, expected, errors, reference, (-math.inf, points), 1, {})


def _margin(
    claim: str,
    expected: str,
    errors: OverSeeds,
    reference: OverSeeds,
    allowed: tuple[float, float],
    least_depth: int,
    bad: Mapping[str, OverSeeds],
) -> Verdict:
    def gaps(some: OverSeeds) -> dict[int, list[float]]:
        return {n: of_seeds for n, of_seeds in points_above(some, reference).items() if n >= least_depth}

    most = allowed[1]
    observed, depths = gaps(errors), from_depth(errors, least_depth).keys()
    centred = {n: [gap - statistics.mean(some) for gap in some] for n, some in observed.items()}
    away = {n: [gap + 2 * most for gap in some] for n, some in centred.items()}
    return judged(
        claim,
        expected,
        lambda data: _within(data, *allowed),
        observed if observed.keys() == depths else {},
        bad={
            f"{2 * most:g} points more with this scatter": away or None,
            **{description: gaps(some) or None for description, some in bad.items()},
        },
        good={"no difference with this scatter": centred or None},
        centre={n: [statistics.mean(some)] * 2 for n, some in observed.items()} if observed.keys() == depths else None,
    )


def points_above(errors: OverSeeds, reference: OverSeeds) -> dict[int, list[float]]:
    """By depth, how many points of a hundred an error is above that of the reference, seed by seed."""
    return {
        n: [100 * (a - b) for a, b in zip(of_seeds, reference[n], strict=True)]
        for n, of_seeds in errors.items()
        if len(reference.get(n, ())) == len(of_seeds)
    }


def from_depth(over_seeds: OverSeeds, least: int) -> dict[int, Sequence[float]]:
    """Without shallower networks."""
    return {depth: of_seeds for depth, of_seeds in over_seeds.items() if depth >= least}


def ones(over_seeds: OverSeeds) -> dict[int, list[float]]:
    """A reference of 1 for each of these numbers, which are ratios."""
    return {n: [1.0] * len(of_seeds) for n, of_seeds in over_seeds.items()}


def medians(over_seeds: OverSeeds) -> dict[int, list[float]]:
    """The median over seeds as the only value of each depth: what single seeds may be an exception to."""
    return {depth: [statistics.median(of_seeds)] for depth, of_seeds in over_seeds.items()}


def _within(gaps: OverSeeds, low: float, high: float) -> Said:
    intervals = {n: interval(some) for n, some in gaps.items()}
    observed = "; ".join(
        f"N={n}: {statistics.mean(gaps[n]):+.2f}"
        + (f" [{spread.low:+.2f}, {spread.high:+.2f}]" if spread else ", one seed")
        for n, spread in intervals.items()
    )
    passed = all(spread is not None and spread.inside(low, high) for spread in intervals.values())
    return bool(intervals) and passed, observed or "nothing to compare"


def _orders(moments: Mapping[int, OverSeeds], low: float, high: float, straight: float, least: int) -> Said:
    orders = [order(by_depth, least) for by_depth in moments.values()]
    known = [fitted for fitted in orders if fitted is not None]
    if not known or len(known) < len(orders):
        return False, f"{len(known)} of {len(orders)} have three depths with a value that is finite and above rounding"
    passed = all(fitted.interval.inside(low, high) and fitted.straightness > straight for fitted in known)
    if len(known) == 1:
        return passed, str(known[0])
    ends = min(fitted.interval.low for fitted in known), max(fitted.interval.high for fitted in known)
    means = min(fitted.interval.mean for fitted in known), max(fitted.interval.mean for fitted in known)
    straightness = min(fitted.straightness for fitted in known)
    return passed, (
        f"orders {means[0]:.3f} to {means[1]:.3f}, intervals in [{ends[0]:.3f}, {ends[1]:.3f}], "
        f"R² at least {straightness:.4f}"
    )


def _middle(moments: Mapping[int, OverSeeds]) -> Mapping[int, OverSeeds] | None:
    """Geometric means over seeds, in the place of each of two."""
    if not all(x > 0 for by_depth in moments.values() for some in by_depth.values() for x in some):
        return None
    return {
        step: {n: [statistics.geometric_mean(some)] * 2 for n, some in by_depth.items()}
        for step, by_depth in moments.items()
    }


def _like(moments: Mapping[int, OverSeeds], slope: float, least: int) -> Mapping[int, OverSeeds] | None:
    """Data of that order at each moment, which scatter as those seen."""
    counterparts = {step: of_order(by_depth, slope, least) for step, by_depth in moments.items()}
    known = {step: by_depth for step, by_depth in counterparts.items() if by_depth is not None}
    return known if known and len(known) == len(counterparts) else None
