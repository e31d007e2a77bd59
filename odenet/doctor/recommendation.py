"""The cheapest gradient method that meets a tolerance."""

from __future__ import annotations

import math

from odenet._gradients.adjoints import ContinuousAdjoint, DiscreteAdjoint
from odenet._gradients.exact import Backprop, Checkpoint
from odenet.doctor.examination import Examination, Examinations

SMOOTH = 0.25
"""Largest |w[n+1] - w[n]| / |w| of weights that are called smooth in depth."""
FALLS = 0.9
"""Largest ratio of the gradient's errors with two iterations and with one at which iterations are said to help."""
LOST = 0.3
"""A relative error of the gradient above which a fall of it says nothing."""


def recommended(record: Examinations) -> Examination | None:
    """The cheapest method that meets the tolerance on the model's own solver; None if none does.

    Memory comes first: methods whose states do not grow with depth, then those that keep more states, then backprop,
    which keeps every stage. Among equals, those that meet it for a reason that lasts (see `lasting`) come first. Then
    evaluations of f, then the error.
    """
    return min(within(record), key=lambda examination: _price(record, examination), default=None)


def within(record: Examinations) -> list[Examination]:
    """The methods that meet the tolerance on the model's own solver."""
    own = (examination for examination in record.examinations if not examination.another)
    if record.silent:  # an error of zero says nothing there
        own = (examination for examination in own if isinstance(examination.gradient, Backprop | Checkpoint))
    return [examination for examination in own if examination.meets(record.tolerance)]


def missed(record: Examinations) -> list[Examination]:
    """The methods of memory that does not grow which do not meet it, the most accurate first."""
    offered = (e for e in record.examinations if e.offered and not e.another and e.memory == 0)
    too_far = [examination for examination in offered if not examination.meets(record.tolerance)]
    return sorted(too_far, key=lambda examination: _number(examination.gradient_error))


def watched(examination: Examination) -> bool:
    """Whether the method says itself how far it is off, so that training cannot carry it away unseen."""
    return examination.gradient.estimate(0.0, 1) is not None


def of_ode(examination: Examination) -> bool:
    """Whether the method is the gradient of another function: of the ODE, in the place of the network."""
    return isinstance(examination.gradient, ContinuousAdjoint)


def extrapolates(examination: Examination) -> bool:
    """Whether the method continues increments in depth."""
    return isinstance(examination.gradient, DiscreteAdjoint) and examination.gradient.extrapolates


def smooth(record: Examinations) -> bool:
    """Whether the weights are smooth in depth; where that cannot be said, they are not taken to be."""
    return record.smoothness is not None and record.smoothness <= SMOOTH * record.steps


def lasting(record: Examinations, examination: Examination) -> bool:
    """Whether the error is small for a reason, and will be seen when it no longer is.

    That is: the method is exact, or has a certificate of the network's own gradient in all steps, where that of the
    continuous adjoint looks at two; and one that continues increments in depth has weights that are smooth there.
    """
    lasts = watched(examination) and not of_ode(examination)
    return lasts and (smooth(record) or not extrapolates(examination))


def contractive(record: Examinations) -> bool | None:
    """Whether repeating the prediction converges; None where that was not examined.

    A factor of 1 or more between the certificates of two iterations says no. Where a step is far from contractive the
    residual may fall once and stay large, so the error must fall as well, to one that is no longer of the gradient's
    own size.
    """
    once, twice = (record.of(DiscreteAdjoint(iterations=m).label) for m in (1, 2))
    if record.contraction is None or once is None or twice is None:
        return None
    falls = _number(twice.gradient_error) <= min(LOST, FALLS * _number(once.gradient_error))
    return record.contraction < 1 and (falls or twice.meets(record.tolerance))


def iterations(record: Examinations) -> int | None:
    """How many iterations of the discrete adjoint should meet the tolerance, at the contraction seen; None: none."""
    factor, twice = record.contraction, record.of(DiscreteAdjoint(iterations=2).label)
    if not contractive(record) or not factor or twice is None or not twice.gradient_error:
        return None
    more = math.log(record.tolerance / twice.gradient_error) / math.log(factor)
    return 2 + max(1, math.ceil(more)) if math.isfinite(more) else None


def evaluations(examination: Examination) -> float:
    """Evaluations of f in the backward pass; infinite where the cost model does not tell."""
    return math.inf if examination.cost is None else examination.cost.f_backward


def _price(record: Examinations, examination: Examination) -> tuple[int, bool, float, float]:
    return (
        examination.memory,
        not lasting(record, examination),
        evaluations(examination),
        _number(examination.gradient_error),
    )


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
