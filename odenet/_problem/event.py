"""Events: a condition on time and state that ends a solve where it changes sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odenet._errors import InputError


@dataclass(frozen=True)
class Event:
    """Ends an adaptive solve at the first time at which `condition(t, y)` changes sign.

    The time is located on the dense output of the step in which the sign changes, without evaluating the field, and
    time and state are differentiable (implicit function theorem; Chen, Amos, Nickel 2021).

    Args:
        condition: `condition(t, y)`, a real number, or an array of them of which any may change its sign.
        direction: 1 for changes from negative to positive alone, -1 for the others, 0 for both.
        tolerance: of the located time, absolute; None is as close as its number type allows.

    Raises:
        InputError: naming what cannot be used.
    """

    condition: Callable[[Any, Any], Any]
    direction: int = 0
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(f"condition is a {type(self.condition).__name__}", "a callable condition(t, y)")
        if isinstance(self.direction, bool) or self.direction not in (-1, 0, 1):
            raise InputError(f"direction={self.direction!r} of an event", "-1, 0 or 1")
        number = isinstance(self.tolerance, (int, float)) and not isinstance(self.tolerance, bool)
        if self.tolerance is not None and not (number and self.tolerance > 0):
            raise InputError(f"tolerance={self.tolerance!r} of an event", "a positive number, or None")
