"""Trees of plain containers: tuples, named tuples, lists and dicts (None is an empty tree); the rest are leaves.

A backend whose framework has trees of its own (JAX's registered classes) adds a rule when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from odenet._errors import StateError, shown

Rebuild = Callable[[Sequence[Any]], Any]
Rule = Callable[[Any], "tuple[list[Any], Rebuild] | None"]

RULES: list[Rule] = []  # asked in turn about a node that is no plain container
CHILDREN: list[Callable[[Any], Sequence[Any] | None]] = []  # asked in turn for what such a node holds one level down


def _open(node: Any) -> tuple[list[Any], Rebuild] | None:
    """One level of a tree: its children and the function that puts them together again; None for a leaf."""
    if node is None:
        return [], lambda children: None
    if isinstance(node, dict):
        keys = _sorted(node)
        return [node[key] for key in keys], lambda children: type(node)(zip(keys, children, strict=True))
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(node), lambda children: type(node)(*children)
    if isinstance(node, (tuple, list)):
        return list(node), lambda children: type(node)(children)
    for rule in RULES:
        opened = rule(node)
        if opened is not None:
            return opened
    return None


def _sorted(tree: dict[Any, Any]) -> list[Any]:
    """Its keys in the order that JAX uses, so that backends agree."""
    try:
        return sorted(tree, key=lambda key: (type(key).__name__, key))
    except TypeError as error:
        raise StateError(
            f"a dict with keys that have no order ({', '.join(shown(key, 40) for key in [*tree][:3])})",
            "keys that can be sorted, as texts and numbers can",
            "take texts for keys",
        ) from error


def flatten(tree: Any) -> tuple[list[Any], Rebuild]:
    """The leaves in order, and the function that builds the same tree from other leaves."""
    opened = _open(tree)
    if opened is None:
        return [tree], lambda leaves: leaves[0]
    children, rebuild = opened
    parts = [flatten(child) for child in children]
    sizes = [len(leaves) for leaves, _ in parts]

    def unflatten(leaves: Sequence[Any]) -> Any:
        out, start = [], 0
        for (_, build), size in zip(parts, sizes, strict=True):
            out.append(build(leaves[start : start + size]))
            start += size
        return rebuild(out)

    return [leaf for leaves, _ in parts for leaf in leaves], unflatten


def require_finite_tree(name: str, tree: Any) -> None:
    """Raises StateError for a container that holds itself: walking it would not end, and in JAX breaks later walks."""

    try:
        _require_no_cycle(name, tree, tree, frozenset())
    except RecursionError:
        raise StateError(f"{name} is nested too deep for Python to follow", "flatter trees") from None


def _require_no_cycle(name: str, tree: Any, node: Any, above: frozenset[int]) -> None:
    # not a function within the other: one that calls itself would hold the tree until it is collected
    if not isinstance(node, (dict, tuple, list)):
        children = ()
        for of in CHILDREN:  # not by `next`, of which dynamo knows the first argument alone in torch 2.6
            if (inner := of(node)) is not None:
                children = inner
                break
    else:
        children = node.values() if isinstance(node, dict) else node
    if not children:
        return
    if id(node) in above:
        where = "is" if node is tree else "has in it"
        raise StateError(f"{name} {where} a {type(node).__name__} that holds itself", "trees, which end in leaves")
    for child in children:
        _require_no_cycle(name, tree, child, above | {id(node)})


def leaf(tree: Any) -> bool:
    """Whether a tree is one leaf."""
    return _open(tree) is None


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, in the order of its flattening."""
    return flatten(tree)[0]


def map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function` of each leaf of `tree` and the leaves at the same place in `others`."""
    first, unflatten = flatten(tree)
    return unflatten([function(*group) for group in zip(first, *(leaves(other) for other in others), strict=True)])


def same_shape(one: Any, other: Any) -> bool:
    """Whether two trees have the same containers and keys (leaves may differ)."""
    first, second = _open(one), _open(other)
    if first is None or second is None:
        return first is second
    if type(one) is not type(other) or len(first[0]) != len(second[0]):
        return False
    if isinstance(one, dict) and one.keys() != other.keys():
        return False
    return all(same_shape(a, b) for a, b in zip(first[0], second[0], strict=True))


def paths(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf with a readable path such as `blocks[0].weight`, for messages and tables."""
    if isinstance(tree, dict):
        for key in _sorted(tree):
            text = key if isinstance(key, str) else shown(key)
            yield from paths(tree[key], f"{prefix}.{text}" if prefix else text)
        return
    opened = _open(tree)
    if opened is None:
        yield prefix or "(leaf)", tree
        return
    for index, child in enumerate(opened[0]):
        yield from paths(child, f"{prefix}[{index}]")
