"""The cheapest gradient method that meets a tolerance."""

from __future__ import annotations

import math

from odenet._gradients.adjoints import DiscreteAdjoint
from odenet.doctor.diagnosis import Diagnosis, Examination

SMOOTH = 0.25
"""Of |w[n+1] - w[n]| / |w|: weights that change by more from layer to layer are not called smooth in depth."""
FALLS = 0.9
"""What a second iteration may leave of the gradient's error, to be said to lower it."""
LOST = 0.3
"""A relative error of the gradient above which a fall of it says nothing."""


def recommended(found: Diagnosis) -> Examination | None:
    """The cheapest method that meets the tolerance on the model's own solver; None if none does.

    Memory comes first: methods whose states do not grow with depth, then those that keep more states, then backprop,
    which keeps every stage. Among equals, those that meet it for a reason that lasts (see `lasting`) come first. Then
    evaluations of f, then the error.
    """
    return min(within(found), key=lambda each: _price(found, each), default=None)


def within(found: Diagnosis) -> list[Examination]:
    """The methods that meet the tolerance on the model's own solver."""
    return [each for each in found.examinations if not each.another and each.meets(found.tolerance)]


def missed(found: Diagnosis) -> list[Examination]:
    """The methods of memory that does not grow which do not meet it, the most accurate first."""
    others = [
        each
        for each in found.examinations
        if not each.another and each.offered and each.memory == 0 and not each.meets(found.tolerance)
    ]
    return sorted(others, key=lambda each: _number(each.gradient_error))


def watched(each: Examination) -> bool:
    """Whether the method says itself how far it is off, so that training cannot carry it away unseen."""
    return each.gradient.estimate(0.0, 1) is not None


def extrapolates(each: Examination) -> bool:
    """Whether the method continues increments in depth."""
    return isinstance(each.gradient, DiscreteAdjoint) and each.gradient.extrapolates


def smooth(found: Diagnosis) -> bool:
    """Whether the weights are smooth in depth; where that cannot be said, they are not taken to be."""
    return found.smoothness is not None and found.smoothness <= SMOOTH * found.steps


def lasting(found: Diagnosis, each: Examination) -> bool:
    """Whether the error is small for a reason, and will be seen when it no longer is.

    That is: the method has a certificate, or is exact; and one that continues increments in depth has weights that
    are smooth there.
    """
    return watched(each) and (smooth(found) or not extrapolates(each))


def contractive(found: Diagnosis) -> bool | None:
    """Whether repeating the prediction converges; None where that was not examined.

    A factor of 1 or more between the certificates of two iterations says no. Where a step is far from contractive the
    residual may fall once and stay large, so the error must fall as well, to one that is no longer of the gradient's
    own size.
    """
    once, twice = (found.of(DiscreteAdjoint(iterations=m).label) for m in (1, 2))
    if found.contraction is None or once is None or twice is None:
        return None
    falls = _number(twice.gradient_error) <= min(LOST, FALLS * _number(once.gradient_error))
    return found.contraction < 1 and (falls or twice.meets(found.tolerance))


def iterations(found: Diagnosis) -> int | None:
    """How many iterations of the discrete adjoint should meet the tolerance, at the contraction seen; None: none."""
    factor, twice = found.contraction, found.of(DiscreteAdjoint(iterations=2).label)
    if not contractive(found) or not factor or twice is None or not twice.gradient_error:
        return None
    more = math.log(found.tolerance / twice.gradient_error) / math.log(factor)
    return 2 + max(1, math.ceil(more)) if math.isfinite(more) else None


def evaluations(each: Examination) -> float:
    """Of f on the way back; infinite where the cost model does not tell."""
    return math.inf if each.cost is None else each.cost.f_backward


def _price(found: Diagnosis, each: Examination) -> tuple[int, bool, float, float]:
    return each.memory, not lasting(found, each), evaluations(each), _number(each.gradient_error)


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
