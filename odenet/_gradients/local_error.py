"""How far the steps of a backward solve are off: what their local errors make of the costate on its way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from odenet._solvers.controller import FLOATS, Arithmetic
from odenet._solvers.tableau import Tableau

_BEYOND = 2
"""Powers of the step beyond those of the method's own polynomial that its error is made of."""
_LEAST = 0.1
"""The least z that an error is told from its estimate by: a field may change otherwise than by its derivatives."""


class LocalError(NamedTuple):
    """What a method's step leaves of a solution of `y' = z y`, as a series in z.

    The equation of the costate is linear, and so the method's own polynomial says what a step of it is off by, whatever
    it estimates. The estimate of bosh3 vanishes where a step decays by a factor of e, of which it leaves 9 %: steps
    that follow the estimate grow until they are there. That of fehlberg2 is a hundredth of the error, or less.

    Args:
        error: sizes of the coefficients of z, z^2, and so on.
        estimate: the same of the estimated error.
    """

    error: tuple[float, ...]
    estimate: tuple[float, ...]

    def share(self, z: Any, arithmetic: Arithmetic) -> Any:
        """How large the error is beside the estimate, for this size of z."""
        z = arithmetic.least(arithmetic.most(z, _LEAST), 1.0)
        return sum_of_powers(self.error, z) / sum_of_powers(self.estimate, z)


def sum_of_powers(coefficients: Sequence[float], z: Any) -> Any:
    """`coefficients[0] z + coefficients[1] z^2 + ...`; infinite where it is too large."""
    total: Any = 0.0
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * z
    return total


@cache
def local_error(tableau: Tableau) -> LocalError:
    """That of a method with an error estimate."""
    weights = tableau.error_weights
    assert weights is not None
    solution, estimate = _series(tableau, tableau.b), _series(tableau, weights)
    off = [1 / math.factorial(power) - term for power, term in enumerate(solution, 1)]
    # below its order a published method is off by the rounding of its numbers
    return LocalError(
        tuple(abs(term) if power > tableau.order else 0.0 for power, term in enumerate(off, 1)),
        tuple(abs(term) if power >= tableau.error_order else 0.0 for power, term in enumerate(estimate, 1)),
    )


def _series(tableau: Tableau, weights: Sequence[float]) -> list[float]:
    """`sum_i weights[i] k[i]` of `y' = z y`, y = 1: the coefficients of z, z^2, and so on."""
    stages, terms = [1.0] * tableau.stages, list[float]()
    for _ in range(tableau.stages + _BEYOND):
        terms.append(sum(weight * stage for weight, stage in zip(weights, stages, strict=True)))
        stages = [sum(entry * stage for entry, stage in zip(row, stages, strict=False)) for row in tableau.a]
    return terms


class CostateStep(NamedTuple):
    """Sizes of a costate around a step.

    Args:
        h: of the step.
        before, after: of the costate at its ends.
        slope, last: of its slope there; a method that does not evaluate the latter has that of its last stage.
        error: of the estimated error.
    """

    h: Any
    before: Any
    after: Any
    slope: Any
    last: Any
    error: Any


class CostateError(NamedTuple):
    """How far a costate is off, relatively, by the steps that it has taken.

    What one step leaves is carried on by those that follow it, as the costate itself is; where a loss adds to the
    costate, it is a smaller part from there on.

    Args:
        off: so far.
        size: of the costate that this is of.
        integral, whole: of `off` times its size along the way, and of the size: what it is to a quadrature.
    """

    off: Any = 0.0
    size: Any = 0.0
    integral: Any = 0.0
    whole: Any = 0.0

    def then(self, step: CostateStep, method: LocalError, arithmetic: Arithmetic = FLOATS) -> CostateError:
        """The same after a step."""
        h, before, after, slope, last, error = step
        rates = h * _ratio(slope, before, arithmetic), h * _ratio(last, after, arithmetic)
        # one that begins or ends to change within the step is not like e^z all the way
        left = arithmetic.most(
            method.share(arithmetic.most(*rates), arithmetic) * error,
            sum_of_powers(method.error, arithmetic.least(*rates)) * before,
        )
        off = self.off * _ratio(self.size, before, arithmetic) + _ratio(left, after, arithmetic)
        part = h * after
        return CostateError(off, after, self.integral + part * off, self.whole + part)

    def of_weights(self, arithmetic: Arithmetic = FLOATS) -> Any:
        """What it is of a quadrature along the way."""
        return _ratio(self.integral, self.whole, arithmetic)


def _ratio(off: Any, of: Any, arithmetic: Arithmetic) -> Any:
    """How large a part is; none of nothing: a costate of zero has no error."""
    return arithmetic.where(of > 0, off / arithmetic.where(of > 0, of, 1.0), 0.0)
