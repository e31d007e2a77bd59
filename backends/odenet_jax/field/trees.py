"""odenet's records as JAX pytrees, and JAX's registered classes as trees for odenet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from odenet import Depth, Solution, _tree


def _rule(node: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]] | None:
    """A class that JAX knows (an equinox module, say) opened by JAX."""
    children, structure = jax.tree.flatten(node)
    if jax.tree_util.treedef_is_leaf(structure):
        return None
    return children, lambda leaves: jax.tree.unflatten(structure, leaves)


def _depth(aux: tuple[Any, bool], children: Sequence[Any]) -> Depth:
    depth = object.__new__(Depth)  # no checks: JAX puts objects without a shape where leaves are
    for name, value in zip(("tree", "kind", "stacked"), (children[0], *aux), strict=True):
        object.__setattr__(depth, name, value)
    return depth


_tree.RULES.append(_rule)
jax.tree_util.register_pytree_node(Depth, lambda d: ((d.tree,), (d.kind, d.stacked)), _depth)


_COUNTS = ("steps", "f_evaluations", "rejected")


def _parts(solution: Solution) -> tuple[tuple[Any, ...], Any]:
    """The arrays of a solution, and the rest; counts of an adaptive solve inside of a compiled function are arrays."""
    counts = {name: getattr(solution.stats, name) for name in _COUNTS}
    arrays = {name: count for name, count in counts.items() if isinstance(count, jax.Array)}
    data = (solution.ts, solution.ys, solution.outcome, solution.event_t, solution.interpolant, arrays)
    return data, _Static(solution.stats)


def _solution(aux: _Static, children: Sequence[Any]) -> Solution:
    *data, counts = children
    stats = aux.stats
    if isinstance(counts, dict) and counts:
        stats = dataclasses.replace(stats, **counts)
    return Solution(data[0], data[1], stats, *data[2:])


class _Static:
    """Statistics beside the arrays: equal to any other, so that a jitted function is not compiled anew for them."""

    def __init__(self, stats: Any) -> None:
        self.stats = stats

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Static)

    def __hash__(self) -> int:
        return hash(_Static)


jax.tree_util.register_pytree_node(Solution, _parts, _solution)
