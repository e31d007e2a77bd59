"""Meshes of devices: a loop's carry must start on the mesh, and as varying over its axes, as it ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")


def alike(tree: Tree, *others: object, axes: Iterable[str] = ()) -> Tree:
    """The tree, each array of it on the mesh, and varying over every axis of it, that some array of it or of the others
    is on, or varies over.

    A constant (zeros to begin a sum with) is the same on all devices, and JAX refuses a loop that makes it differ.
    """
    tree = _on_one_mesh(tree, others)
    axes = frozenset(axes).union(*(axes_of(leaf) for leaf in jax.tree.leaves((tree, others))))
    return jax.tree.map(lambda leaf: _varied(leaf, axes), tree) if axes else tree


def _on_one_mesh(tree: Tree, others: object) -> Tree:
    """The tree, each array of it on the explicit mesh that some array is on: what was on none has a copy everywhere."""
    meshes = [_mesh(leaf) for leaf in jax.tree.leaves((tree, others))]
    mesh = next((mesh for mesh in meshes if mesh is not None), None)
    if mesh is None:
        return tree
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def placed(leaf: object) -> object:
        return jax.sharding.reshard(leaf, whole) if isinstance(leaf, jax.Array) and _mesh(leaf) is None else leaf

    return jax.tree.map(placed, tree)


def _mesh(leaf: object) -> Any:
    """The explicit mesh that an array is on; None for none."""
    if not isinstance(leaf, jax.Array) or not hasattr(jax, "typeof"):
        return None
    mesh = getattr(getattr(jax.typeof(leaf), "sharding", None), "mesh", None)
    return mesh if mesh is not None and not mesh.empty and mesh.are_all_axes_explicit else None


def axes_of(leaf: object) -> frozenset[str]:
    """The mesh axes that an array, or what is known of one, varies over."""
    if not hasattr(jax, "typeof"):
        return frozenset()
    kind = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    manual = getattr(kind, "mat", None)  # JAX 0.10; `vma` before
    return frozenset(getattr(kind, "vma", ()) if manual is None else manual.varying)


def _varied(leaf: jax.Array, axes: frozenset[str]) -> jax.Array:
    missing = tuple(sorted(axes - axes_of(leaf))) if isinstance(leaf, jax.Array) else ()
    if not missing:
        return leaf
    return lax.pcast(leaf, missing, to="varying") if hasattr(lax, "pcast") else lax.pvary(leaf, missing)  # pyright: ignore[reportAttributeAccessIssue]
