"""The Butcher tableau of an explicit Runge-Kutta method, which checks itself when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations_with_replacement

from odenet._check import real, whole
from odenet._errors import TableauError, shown

Number = int | float | Fraction
Tree = tuple["Tree", ...]  # a rooted tree is the sorted tuple of its branches
_Memo = dict[Tree, list[Number]]  # of branches, shared by the trees they hang on

_HIGHEST = 16  # whose conditions are 87,811 trees; methods of order 14 are known
_TOLERANCE = 1e-12  # for coefficients that are published as decimals (tsit5) or rounded ratios (dopri8)


@dataclass(frozen=True)
class Tableau:
    """Coefficients of `k[i] = f(t + c[i] h, y + h sum_j a[i][j] k[j])`, `y' = y + h sum_i b[i] k[i]`.

    Give Fractions (or ints) and every check is exact; they are kept as floats, ready to multiply tensors by.

    Args:
        a: strictly lower triangle, one row a stage; row i has i entries (the first row is empty).
        b: weights of the solution, one a stage.
        c: nodes, one a stage, each the sum of its row of `a`.
        order: the claimed order of `b`. All order conditions up to it are checked (Butcher 1963, rooted trees).
        b_low: weights of the embedded solution for error estimates, if there is one.
        order_low: its order.

    Raises:
        InputError: an order that is none. TableauError: numbers, shapes, row sums or order conditions do not hold.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int
    b_low: tuple[float, ...] | None = None
    order_low: int | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        for row, node in zip(self.a, self.c, strict=True):
            if not _close(sum(row), node):
                raise TableauError(f"a row of a sums to {sum(row)} where its node c is {node}", "rows that sum to c")
        _check_order(self.a, self.b, self.order, "b")
        if self.b_low is not None and self.order_low is not None:
            _check_order(self.a, self.b_low, self.order_low, "b_low")
        object.__setattr__(self, "a", tuple(tuple(float(entry) for entry in row) for row in self.a))
        for name in ("b", "c", "b_low"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(float(entry) for entry in values))
        # a compiler that traces a step cannot follow a property into its first evaluation, which takes a lock
        for name, member in vars(Tableau).items():
            if isinstance(member, cached_property):
                getattr(self, name)

    def _check_shapes(self) -> None:
        rows = self.a if isinstance(self.a, Sequence) else (self.a,)
        lists = [("a", self.a), *(("a row of a", row) for row in rows), ("b", self.b), ("c", self.c)]
        for name, values in [*lists, *([] if self.b_low is None else [("b_low", self.b_low)])]:
            listed = isinstance(values, Sequence) and not isinstance(values, str | bytes)
            if not listed or (name != "a" and any(real(entry) is None for entry in values)):
                raise TableauError(f"{name} is {shown(values)}", "tuples of numbers: of a, one a stage")
        whole("order", self.order, 1, _HIGHEST, "a tableau")
        if self.order_low is not None:
            whole("order_low", self.order_low, 1, _HIGHEST, "a tableau")
        stages = len(self.b)
        if stages == 0 or len(self.a) != stages or len(self.c) != stages:
            raise TableauError(
                f"a has {len(self.a)} rows, b {stages} and c {len(self.c)} entries", "one of each a stage, at least one"
            )
        if any(len(row) != i for i, row in enumerate(self.a)):
            raise TableauError(
                f"the rows of a have lengths {[len(row) for row in self.a]}",
                f"{list(range(stages))}: explicit methods only, without the zeros on and above the diagonal",
            )
        if (self.b_low is None) != (self.order_low is None):
            raise TableauError("only one of b_low and order_low was given", "both or neither")
        if self.b_low is not None and len(self.b_low) != stages:
            raise TableauError(f"b_low has {len(self.b_low)} entries", f"{stages}, one a stage")

    @cached_property
    def stages(self) -> int:
        """Stages of the whole tableau, those that only the error estimate reads included."""
        return len(self.b)

    @cached_property
    def step_stages(self) -> int:
        """Field evaluations of one fixed step: trailing stages that `b` does not weigh are never evaluated."""
        return max(i for i, weight in enumerate(self.b) if weight != 0) + 1

    @cached_property
    def error_weights(self) -> tuple[float, ...] | None:
        """Weights of the error estimate, `b - b_low`; None for a method without one."""
        return None if self.b_low is None else tuple(b - low for b, low in zip(self.b, self.b_low, strict=True))

    @cached_property
    def error_order(self) -> int:
        """k with an error estimate of O(h^k) in one step: step sizes follow its k-th root."""
        return min(self.order, self.order_low or 0) + 1

    @cached_property
    def fsal(self) -> bool:
        """First same as last: the last stage is evaluated at the new state, so the next step can reuse it."""
        return self.stages > 1 and self.b[-1] == 0 and self.c[-1] == 1 and self.a[-1] == self.b[:-1]


def order_defect(a: Sequence[Sequence[Number]], b: Sequence[Number], order: int) -> Number:
    """Largest `|sum_i b[i] Phi_i(tree) - 1 / gamma(tree)|` over all rooted trees of exactly `order` nodes.

    It is zero for every order up to that of the method (Hairer, Norsett, Wanner I, theorem II.2.13).
    """
    return _order_defect(a, b, order, {})


def _order_defect(a: Sequence[Sequence[Number]], b: Sequence[Number], order: int, memo: _Memo) -> Number:
    weights = elementary_weights(a, order, memo)
    return max(abs(sum(map(_times, b, phi)) - Fraction(1, gamma)) for phi, gamma in weights)


def elementary_weights(
    a: Sequence[Sequence[Number]], order: int, memo: _Memo | None = None
) -> list[tuple[list[Number], int]]:
    """`Phi_i(tree)` of each stage i, and gamma(tree), for each of `trees(order)`.

    Args:
        a: the triangle of a tableau.
        order: nodes of the trees.
        memo: of branches, for calls with the same `a`.
    """
    known: _Memo = {} if memo is None else memo

    def inner(branch: Tree) -> list[Number]:
        """sum_j a[i][j] Phi_j(branch), for each stage i."""
        if branch not in known:
            phi = stage_values(branch)
            known[branch] = [sum(map(_times, row, phi)) for row in a]
        return known[branch]

    def stage_values(node: Tree) -> list[Number]:
        values: list[Number] = [1] * len(a)
        for branch in node:
            values = list(map(_times, values, inner(branch)))
        return values

    return [(stage_values(tree), density(tree)) for tree in trees(order)]


def _times(one: Number, other: Number) -> Number:
    return one * other


def _check_order(a: Sequence[Sequence[Number]], b: Sequence[Number], order: int, name: str) -> None:
    memo: _Memo = {}
    for p in range(1, order + 1):
        defect = _order_defect(a, b, p, memo)
        exact = isinstance(defect, (int, Fraction))
        if defect != 0 if exact else not defect <= _TOLERANCE:
            raise TableauError(
                f"{name} claims order {order} but misses an order condition of order {p} by {float(defect):.3g}",
                f"order {p - 1} is what these coefficients reach",
                "look for a typing error in a or b, or claim the lower order",
            )


@cache
def trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with that many nodes: 1, 1, 2, 4, 9, 20, 48, 115 for 1 to 8."""

    def forests(total: int, largest: int) -> set[Tree]:
        if total == 0:
            return {()}
        multisets: set[Tree] = set()
        for size in range(1, min(total, largest) + 1):
            for count in range(1, total // size + 1):
                for rest in forests(total - size * count, size - 1):
                    multisets |= {
                        tuple(sorted((*some, *rest))) for some in combinations_with_replacement(trees(size), count)
                    }
        return multisets

    return tuple(sorted(forests(nodes - 1, nodes - 1)))


def _size(tree: Tree) -> int:
    return 1 + sum(_size(branch) for branch in tree)


def density(tree: Tree) -> int:
    """gamma(tree) = nodes of the tree times the densities of its branches."""
    product = _size(tree)
    for branch in tree:
        product *= density(branch)
    return product


def _close(one: Number, other: Number) -> bool:
    difference = abs(one - other)
    return difference == 0 if isinstance(difference, (int, Fraction)) else difference <= _TOLERANCE
