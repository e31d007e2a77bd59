"""Events: a condition on time and state that ends a solve where it changes sign, or becomes true or false."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odenet._check import real, takes, whole, within
from odenet._errors import InputError, shown


@dataclass(frozen=True)
class Event:
    """Ends an adaptive solve at the first time at which `condition(t, y)` changes its sign, or its truth.

    The condition is looked at where the solve begins and at the ends of `subintervals` equal parts of every step, on
    the step's dense output, without evaluating the field. The first part in which an entry has changed is divided once
    more in the same way, and the first part of that is bisected. Two changes of an entry within one part, there and
    back, are not seen: take more subintervals, or bound the steps by `PIDController(max_step=...)`.

    An entry that is zero where the solve begins has no sign until it leaves zero, and NaN has no sign anywhere. A solve
    that goes on from an event (a bounce) starts beside zero, on either side by rounding, and with `direction=0` may end
    at once by the same crossing: name the direction of the crossing that counts, as in `direction=-1` for a height that
    falls to the ground.

    Time and state of an event are differentiable (implicit function theorem; Chen, Amos, Nickel 2021). A boolean says
    nothing of the rate at which it is approached, so that their derivative is refused (torch: GradientError; JAX:
    NaN): for gradients write `y < 0` as the number `y`.

    Args:
        condition: `condition(t, y)`, a real number or a boolean, or an array of them of which any may change.
        direction: 1 for changes from negative to positive alone (of a boolean: from false to true), -1 for the others,
            0 for both.
        tolerance: of the located time, absolute; None is as close as its number type allows.
        subintervals: the parts of a step at whose ends the condition is looked at; 1 looks at the ends of steps alone.

    Raises:
        InputError: naming what cannot be used.
    """

    condition: Callable[[Any, Any], Any]
    direction: int = 0
    tolerance: float | None = None
    subintervals: int = 8

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(f"condition is a {type(self.condition).__name__}", "a callable condition(t, y)")
        takes(self.condition, 2, "an event's condition", "a condition that can be called as condition(t, y)")
        if isinstance(self.direction, bool) or real(self.direction) not in (-1.0, 0.0, 1.0):
            raise InputError(f"direction={shown(self.direction)} of an event", "-1, 0 or 1")
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", within("tolerance", self.tolerance, 0.0, of="an event"))
        whole("subintervals", self.subintervals, most=_PARTS, of="an event")

    def positions(self, *, begun: bool = True) -> tuple[float, ...]:
        """Where in a step, from 0 to 1, the condition is looked at, the step's end left out.

        Args:
            begun: whether all entries have a sign. One that has none gets it soon after the step's start, so that an
                entry that begins at zero and comes back to it within the first part is met there.
        """
        parts = tuple(i / self.subintervals for i in range(1, self.subintervals))
        return parts if begun else (_SOON, *parts)


_SOON = 2.0**-10
_PARTS = 2**16  # of a step, which are looked at one by one
