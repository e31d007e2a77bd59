"""Modules that write on themselves when they are called, as those of flax.nnx do: each call gets one made anew."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from odenet import StateError

_NUMBERS = (jax.Array, np.ndarray, np.generic, int, float, complex, str)


def modules_in(tree: Any) -> list[tuple[Any, list[Any]]]:
    """The modules in a tree of weights, and the leaves of each."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: not isinstance(node, (dict, list, tuple)))
    pairs = [(node, jax.tree.leaves(node)) for node in nodes if not isinstance(node, _NUMBERS)]
    return [(node, leaves) for node, leaves in pairs if _same(leaves, jax.tree.leaves(node))]


def require_unwritten(before: list[tuple[Any, list[Any]]]) -> None:
    """Raises StateError where a call wrote on a module (of flax.nnx, say): each call gets one that is made anew."""
    for module, leaves in before:
        if not _same(leaves, jax.tree.leaves(module)):
            raise StateError(
                f"a {type(module).__name__} wrote on itself (running statistics, or a count of random numbers), which "
                "would be lost",
                "modules that leave themselves as they are",
                "blocks of flax.nnx: stack, state = ResidualStack.with_state(blocks), or odenet_jax.convert(model, "
                "example=...), or model.eval() where that does it; of equinox: ResidualStack.stateful, and "
                "stack(x, state=, key=)",
            )


def _same(leaves: list[Any], others: list[Any]) -> bool:
    return len(leaves) == len(others) and all(a is b for a, b in zip(leaves, others, strict=True))
