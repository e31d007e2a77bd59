"""What a named test problem is. The problems themselves are in `_problems.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


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
