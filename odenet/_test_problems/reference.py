"""A test problem, and what a run of it is held to: its closed form, or SciPy's solution to tight tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from odenet import _tree

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class TestProblem:
    """An initial value problem `y' = field(t, y)`, y(t0) = y0, whose solution is known.

    A state is a tree of tuples and dicts. Its leaves are Python numbers, or lists of numbers where the leaf is an
    array; `_reference.arrays` makes NumPy arrays of them.

    The field uses `+ - * / ** @`, indices, `.real` and `.imag` on the leaves of its state and nothing else, so the same
    lines run on torch tensors, on JAX arrays under `jit(scan)` and on NumPy arrays.

    Args:
        name: what a user calls it.
        summary: one line for `odenet list problems`.
        source: where the problem, with these constants, was published.
        field: `field(t, y)`, a tree like y; `field(t, y, w)` where there are weights.
        y0: the state at t0.
        t0, t1: the times it is solved between.
        steps: equal steps that solve it to six digits with rk4 (to one, for arenstorf); a multiple of 16.
        solution: `solution(t)` for a float t, a tree like y0 in closed form; None where there is none and
            `_reference.reference` has to solve for it.
        autonomous: whether the field does not depend on t.
        period: time after which the state returns to y0, if it does.
        orbit: whether the first component is best drawn against the second, instead of each against time.
        weights: constant arrays that the field needs (a matrix, say), as a tree like a state; None where it needs none.
        stiff: whether it is for implicit solvers: `steps` solve it with none of the explicit ones.
    """

    __test__: ClassVar[bool] = False  # the name does not make it a pytest class

    name: str
    summary: str
    source: str
    field: Callable[..., Any]
    y0: Any
    t1: float
    steps: int
    t0: float = 0.0
    solution: Callable[[float], Any] | None = None
    autonomous: bool = True
    period: float | None = None
    orbit: bool = False
    weights: Any = None
    stiff: bool = False

    @property
    def depths(self) -> tuple[int, ...]:
        """Five step counts, each twice the one before, up to `steps`."""
        return tuple(self.steps // 2**k for k in (4, 3, 2, 1, 0))


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
