"""odenet's records as JAX pytrees, and JAX's registered classes as trees for odenet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np

from odenet import Depth, Gradients, Solution, Stats
from odenet.kit import TREE_CHILDREN, TREE_RULES, shown


def _rule(node: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]] | None:
    """A class that JAX knows (an equinox module, say) opened by JAX."""
    if _of_torch(node):
        return None
    children, structure = jax.tree.flatten(node)
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    return children, lambda leaves: jax.tree.unflatten(structure, leaves)


def _children(node: Any) -> list[Any] | None:
    """What a node of such a class holds, one level down."""
    if isinstance(node, _LEAVES) or _of_torch(node) or hasattr(node, "__next__"):  # JAX warns of iterators
        return None
    inside = False

    def is_leaf(_: Any) -> bool:
        nonlocal inside
        inside, before = True, inside
        return before  # all but the node itself, which is asked about first

    children, structure = jax.tree.flatten(node, is_leaf=is_leaf)
    return None if jax.tree_util.treedef_is_leaf(structure) else children


def _of_torch(node: Any) -> bool:
    """Whether it is torch's, which JAX is not asked about: dynamo, as it traces a solve's checks of trees, fails at
    what is not Python."""
    return type(node).__module__.partition(".")[0] == "torch"


_LEAVES = (jax.Array, np.ndarray, np.generic, int, float, complex, str, type(None))


def difference(one: Any, other: Any) -> str | None:
    """What two modules differ in beside the values of their arrays, in words; None for nothing."""
    if type(one) is not type(other):
        return f"a {type(one).__name__} and a {type(other).__name__}"
    (arrays, static), (others, fixed) = (eqx.partition(module, eqx.is_array) for module in (one, other))
    try:
        if jax.tree.structure(arrays) != jax.tree.structure(others):
            return "in what they hold or in a static field"
        same = bool(eqx.tree_equal(static, fixed))
    except (TypeError, ValueError):
        return "in a static field with values that cannot be compared, as arrays"
    pairs = zip(_with_paths(arrays), jax.tree.leaves(others), strict=True)
    for (path, leaf), beside in pairs:
        if (leaf.shape, leaf.dtype) != (beside.shape, beside.dtype):
            kinds = [f"{array.dtype}{list(array.shape)}" for array in (leaf, beside)]
            return f"{path} is {kinds[0]} and {kinds[1]}"
    if same:
        return None
    pairs = zip(_with_paths(static), jax.tree.leaves(fixed), strict=True)
    unlike = [(path, leaf, beside) for (path, leaf), beside in pairs if not eqx.tree_equal(leaf, beside)]
    return "".join(f"{path} is {shown(leaf)} and {shown(beside)}" for path, leaf, beside in unlike[:1]) or "in a field"


def _with_paths(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _depth(aux: tuple[Any, bool], children: Sequence[Any]) -> Depth:
    depth = object.__new__(Depth)  # no checks: JAX puts objects without a shape where leaves are
    for name, value in zip(("tree", "kind", "stacked"), (children[0], *aux), strict=True):
        object.__setattr__(depth, name, value)
    return depth


TREE_RULES.append(_rule)
TREE_CHILDREN.append(_children)
jax.tree_util.register_dataclass(Gradients, ["y0", "weights"], [])
jax.tree_util.register_pytree_node(Depth, lambda d: ((d.tree,), (d.kind, d.stacked)), _depth)


class Counted(Stats):
    """Statistics of an adaptive solve: its counts are leaves, which a compiled function returns as arrays.

    A class of its own, so that a solution has the same leaves whatever a `jax.tree.map` has put into their places.
    """


_COUNTS = ("steps", "f_evaluations", "rejected")


def _parts(solution: Solution) -> tuple[tuple[Any, ...], Any]:
    """The arrays of a solution, and the rest."""
    stats = solution.stats
    counts = tuple(getattr(stats, name) for name in _COUNTS) if isinstance(stats, Counted) else ()
    data = (solution.ts, solution.ys, solution.outcome, solution.event_t, solution.interpolant, stats.residual, counts)
    # what is a leaf is not kept beside the leaves as well: it may be traced
    rest = dataclasses.replace(stats, residual=None, **dict.fromkeys(_COUNTS)) if counts else stats
    return data, _Static(dataclasses.replace(rest, residual=None))


def _solution(aux: _Static, children: Sequence[Any]) -> Solution:
    ts, ys, outcome, event_t, interpolant, residual, counts = children
    named = dict(zip(_COUNTS, counts, strict=True)) if isinstance(aux.stats, Counted) else {}
    return Solution(ts, ys, dataclasses.replace(aux.stats, residual=residual, **named), outcome, event_t, interpolant)


class _Static:
    """Statistics beside the arrays: equal to any of the same kind, so that nothing is compiled anew for them."""

    def __init__(self, stats: Stats) -> None:
        self.stats = stats

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static) and type(self.stats) is type(other.stats)

    def __hash__(self) -> int:
        return hash(type(self.stats))


jax.tree_util.register_pytree_node(Solution, _parts, _solution)
