"""What a run of a test problem is held to: its closed form, or SciPy's solution to tight tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from odenet import _tree
from odenet._test_problems.record import TestProblem

if TYPE_CHECKING:
    import numpy as np

RTOL, ATOL = 1e-13, 1e-14  # SciPy's DOP853 takes no rtol under 2.3e-14
STIFF_RTOL, STIFF_ATOL = 1e-9, 1e-13  # Radau has order 5: two more digits would take ten seconds


@dataclass(frozen=True)
class Reference:
    """The solution of a test problem at one time.

    Args:
        state: a tree like y0 with float64 or complex128 arrays.
        uncertainty: how far it may be off, relative as in `relative_error`; 0 where it is a closed form.
        method: where it comes from, for captions.
    """

    state: Any
    uncertainty: float
    method: str


def arrays(tree: Any, dtype: str = "float64") -> Any:
    """A problem's state (`TestProblem.y0`, or its `solution(t)`) with NumPy arrays for leaves.

    Args:
        tree: tuples and dicts of numbers and of lists of numbers; None is an empty tree.
        dtype: "float32" or "float64"; a complex leaf gets the complex type with this real part.
    """
    import numpy as np

    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(arrays(child, dtype) for child in tree)
    if isinstance(tree, dict):
        return {key: arrays(child, dtype) for key, child in tree.items()}
    leaf = np.asarray(tree)
    return leaf.astype(np.result_type(dtype, np.complex64) if np.iscomplexobj(leaf) else dtype)


def field_of(problem: TestProblem, dtype: str = "float64") -> Callable[[Any, Any], Any]:
    """`field(t, y)` on NumPy arrays of a number type, whether or not the problem has weights."""
    if problem.weights is None:
        return problem.field
    weights = arrays(problem.weights, dtype)
    return lambda t, y: problem.field(t, y, weights)


@cache
def reference(problem: TestProblem, t: float | None = None) -> Reference:
    """The solution at time t (t1 if left out): the closed form if there is one, else `numerical`.

    The uncertainty of the latter is the distance to a solution with ten times the tolerances, which is mostly the error
    of that one and so no less than the error of this.
    """
    last = problem.t1 if t is None else t
    if problem.solution is not None:
        return Reference(arrays(problem.solution(last)), 0.0, "closed form")
    method, rtol, atol = _integrator(problem)
    (state,) = numerical(problem, [last])
    (coarse,) = numerical(problem, [last], 10 * rtol, 10 * atol)
    return Reference(state, relative_error(coarse, state), f"SciPy's {method}, rtol {rtol:g}, atol {atol:g}")


def _integrator(problem: TestProblem) -> tuple[str, float, float]:
    return ("Radau", STIFF_RTOL, STIFF_ATOL) if problem.stiff else ("DOP853", RTOL, ATOL)


def numerical(
    problem: TestProblem, ts: Sequence[float], rtol: float | None = None, atol: float | None = None
) -> list[Any]:
    """The states at the times ts by SciPy's codes with adaptive steps, which share nothing with ours: DOP853 by Hairer,
    or Radau where the problem is stiff.

    Args:
        problem: any test problem.
        ts: times between t0 and t1, going from t0 towards t1.
        rtol, atol: tolerances of a step; left out, those of `reference`.
    """
    from scipy.integrate import solve_ivp

    method, tight_rtol, tight_atol = _integrator(problem)
    field, start, tree = flattened(problem)
    solution = solve_ivp(
        field,
        (problem.t0, ts[-1]),
        start,
        method=method,
        t_eval=ts,
        rtol=tight_rtol if rtol is None else rtol,
        atol=tight_atol if atol is None else atol,
    )
    return [tree(column) for column in solution.y.T]


def flattened(
    problem: TestProblem,
) -> tuple[Callable[[float, np.ndarray], np.ndarray], np.ndarray, Callable[[np.ndarray], Any]]:
    """A problem as SciPy wants it.

    Returns:
        the field on vectors (d,), the vector y0, and the function that makes a vector a tree like y0 again.
    """
    import numpy as np

    first, unflatten = _tree.flatten(arrays(problem.y0))
    cuts = np.cumsum([leaf.size for leaf in first])[:-1]
    field = field_of(problem)

    def vector(tree: Any) -> np.ndarray:
        return np.concatenate([np.ravel(leaf) for leaf in _tree.leaves(tree)])

    def tree(flat: np.ndarray) -> Any:
        parts = np.split(flat, cuts)
        return unflatten([part.reshape(leaf.shape) for part, leaf in zip(parts, first, strict=True)])

    return lambda t, flat: vector(field(t, tree(flat))), vector(unflatten(first)), tree


def relative_error(state: Any, truth: Any) -> float:
    """`max |state - truth| / max |truth|`, both over all entries of all leaves; NaN where the state is not finite.

    One scale serves the whole state, so that a component that passes through zero does not count as wrong.
    """
    import numpy as np

    pairs = list(zip(_tree.leaves(state), _tree.leaves(truth), strict=True))
    if not all(np.isfinite(leaf).all() for leaf, _ in pairs):
        return float("nan")
    scale = max(float(np.max(np.abs(leaf))) for _, leaf in pairs)
    wide = np.result_type(np.float64, *(leaf for _, leaf in pairs))
    distance = max(float(np.max(np.abs(np.asarray(one, wide) - other))) for one, other in pairs)
    return distance / scale


def mixed_error(state: Any, truth: Any) -> float:
    """`max |state - truth| / (1 + |truth|)` over all entries, which is what rtol = atol is meant to bound.

    NaN where the state is not finite.
    """
    import numpy as np

    pairs = list(zip(_tree.leaves(state), _tree.leaves(truth), strict=True))
    if not all(np.isfinite(leaf).all() for leaf, _ in pairs):
        return float("nan")
    return max(float(np.max(np.abs(one - other) / (1 + np.abs(other)))) for one, other in pairs)
