"""Manual axes of `jax.shard_map`: a loop's carry must start as varying as it ends."""

from __future__ import annotations

from typing import TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")


def alike(tree: Tree, *others: object) -> Tree:
    """The tree, each array of it varying over every mesh axis that some array of it or of the others varies over.

    A constant (zeros to begin a sum with) is the same on all devices, and JAX refuses a loop that makes it differ.
    """
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves((tree, others))))
    return jax.tree.map(lambda leaf: _varied(leaf, axes), tree) if axes else tree


def _axes(leaf: object) -> frozenset[str]:
    return frozenset(getattr(jax.typeof(leaf), "vma", ())) if isinstance(leaf, jax.Array) else frozenset()


def _varied(leaf: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - _axes(leaf))) if isinstance(leaf, jax.Array) else ()
    return lax.pcast(leaf, missing, to="varying") if missing else leaf
