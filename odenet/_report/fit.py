"""The order of a method, read off its errors by regression."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
