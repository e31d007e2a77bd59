"""Dense output: the best interpolant that the stages of a step allow, found from the tableau.

`y(t[n] + p h) = y[n] + h sum_i b_i(p) k_i` with polynomials b_i, the slope at the end of the step among the k_i. They
meet the order conditions `sum_i b_i(p) Phi_i(tree) = p^|tree| / gamma(tree)` for all p, as far as that is possible, and
join the steps with their slopes; what freedom remains makes the defect of the next order small. Hairer, Norsett, Wanner
I, section II.6. A method of yours has its interpolant at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from odenet._solvers.tableau import Tableau, density, elementary_weights, trees

if TYPE_CHECKING:
    import numpy as np

_EXACT = 1e-9


@dataclass(frozen=True)
class Interpolant:
    """Dense output of a method.

    Args:
        coefficients: b_i(p) = p (c[i][0] + c[i][1] p + ...), one row a slope: the tableau's stages, then the slope at
            the end of the step unless that is the last stage.
        order: uniform order p: y(t) is off by O(h^p) (locally h^(p+1)) at all times.
    """

    coefficients: tuple[tuple[float, ...], ...]
    order: int

    def weights(self, position: Any) -> list[Any]:
        """b_i at a position in [0, 1] of the step; None for those that are zero everywhere."""
        polynomials = []
        for row in self.coefficients:
            value: Any = 0.0
            for coefficient in reversed(row):
                value = (value + coefficient) * position
            polynomials.append(value if any(row) else None)
        return polynomials


def hermite(p: float, h: Any) -> tuple[Any, Any, Any, Any]:
    """Weights of the cubic Hermite interpolant at position p in [0, 1] of a step of size h: of the states at its start
    and its end, and of the slopes at its start and its end."""
    return (1 + 2 * p) * (1 - p) ** 2, p * p * (3 - 2 * p), h * p * (1 - p) ** 2, h * p * p * (p - 1)


@cache
def interpolant(tableau: Tableau) -> Interpolant:
    """The interpolant of a Runge-Kutta method."""
    import numpy as np

    a, b = _extended(tableau)
    slopes = len(b)
    best: tuple[int, Any, Any, Any] | None = None
    for order in range(1, tableau.order + 1):
        degree = max(order + 1, 3)
        conditions, values = _conditions(a, b, order, degree)
        coefficients = np.linalg.lstsq(conditions, values, rcond=1e-12)[0]
        if np.abs(conditions @ coefficients - values).max() > _EXACT:
            break
        best = order, coefficients, conditions, values
    assert best is not None  # a cubic through two states and two slopes is there for every consistent method
    order, coefficients, conditions, values = best
    free = _free(conditions)
    if free.shape[1]:
        degree = len(coefficients) // slopes
        phis = np.array([phi for phi, _ in elementary_weights(a, order + 1)])
        targets = np.zeros((len(phis), degree))
        if degree > order:
            targets[:, order] = [1 / density(tree) for tree in trees(order + 1)]

        def defects(x: np.ndarray) -> np.ndarray:
            return (phis @ x.reshape(slopes, degree)).ravel()

        change = np.array([defects(direction) for direction in free.T]).T
        residual = targets.ravel() - defects(coefficients)
        coefficients = coefficients + free @ np.linalg.lstsq(change, residual, rcond=1e-8)[0]
    rows = coefficients.reshape(slopes, -1)
    rows[np.abs(rows).max(axis=1) < 1e-9 * np.abs(rows).max()] = 0  # slopes that are not read
    # last, and of those that are read alone: what setting others to zero and rounding lose would be an error of 1e-12
    # in the simplest of solutions, y' = 1, where the methods themselves have none
    read = np.repeat(rows.any(axis=1), rows.shape[1])
    exact = conditions.astype(np.longdouble)
    for _ in range(2):
        lost = (exact @ rows.ravel().astype(np.longdouble) - values).astype(float)
        rows.reshape(-1)[read] -= np.linalg.lstsq(conditions[:, read], lost, rcond=1e-12)[0]
    return Interpolant(tuple(tuple(row) for row in rows.tolist()), order)


def _extended(tableau: Tableau) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """The stages with the slope at the end of the step among them."""
    if tableau.fsal:
        return tableau.a, tableau.b
    return (*tableau.a, tableau.b), (*tableau.b, 0.0)


def _conditions(a: Any, b: Any, order: int, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Linear conditions on the coefficients: order, y and y' at both ends of the step."""
    import numpy as np

    slopes, rows, values = len(b), [], []

    def condition(matrix: np.ndarray, value: float) -> None:
        rows.append(matrix.ravel())
        values.append(value)

    for p in range(1, order + 1):
        for phi, gamma in elementary_weights(a, p):
            for power in range(degree):
                matrix = np.zeros((slopes, degree))
                matrix[:, power] = phi
                condition(matrix, 1 / gamma if power + 1 == p else 0.0)
    for i in range(slopes):
        for entries, value in (
            (np.ones(degree), b[i]),
            (np.eye(degree)[0], float(i == 0)),
            (np.arange(1, degree + 1), float(i == slopes - 1)),
        ):
            matrix = np.zeros((slopes, degree))
            matrix[i] = entries
            condition(matrix, value)
    return np.array(rows), np.array(values)


def _free(conditions: np.ndarray) -> np.ndarray:
    """Directions that change no condition, one a column."""
    import numpy as np

    _, sizes, directions = np.linalg.svd(conditions, full_matrices=conditions.shape[0] < conditions.shape[1])
    return directions[int((sizes > 1e-10 * sizes[0]).sum()) :].T
