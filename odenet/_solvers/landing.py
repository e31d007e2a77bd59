"""Where a step lands: on the next time that the solve has to meet, if it reaches it; the same in all adaptive loops.

Only `+ - *`, comparisons and the three operations of an `Arithmetic`, as in the controller.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from odenet._solvers.controller import FLOATS, Arithmetic

_ROUNDINGS = 64
_ALWAYS, _NEVER = 1e-10, 1e-3  # of a step: it may always be stretched by the one, and never by more than the other


class Landing(NamedTuple):
    """The end of a step that is to be tried, and whether that is the stop."""

    t1: Any
    lands: Any


def landing(t: Any, size: Any, stop: Any, direction: Any, spacing: Any, of: Arithmetic = FLOATS) -> Landing:
    """The step from t, clipped to the stop.

    A step that ends short of the stop by no more than the roundings of a few dozen steps is stretched to it:
    `max_step=1/49` is 49 steps in every number type, and none of them is a sliver.

    Args:
        t: where the step begins.
        size: that the controller wants, positive.
        stop: the next time that a step ends at.
        direction: of time, 1 or -1.
        spacing: that of the number type of the times at the largest of them, t0 and t1 included.
        of: operations on numbers of this kind.
    """
    t1 = t + direction * size
    slack = of.least(_NEVER * size, of.most(_ALWAYS * size, _ROUNDINGS * spacing))
    lands = direction * (stop - t1) <= slack
    return Landing(of.where(lands, stop, t1), lands)


def resumed(size: Any, before: Any, lands: Any, of: Arithmetic = FLOATS) -> Any:
    """The size of the step after an accepted one: one that was clipped says nothing against the size that it would have
    had.

    Args:
        size: that follows from the step's error.
        before: that the controller had wanted of the step.
        lands: whether it ended at a stop.
        of: operations on numbers of this kind.
    """
    return of.where(lands, of.most(size, before), size)
