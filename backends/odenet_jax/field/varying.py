"""Meshes of devices: a loop's carry must start on the mesh, and as varying over its axes, as it ends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from odenet import InputError, OdenetError, UnsupportedError

Tree = TypeVar("Tree")
LOOPS_OF_DIVIDED_ROWS = jax.__version_info__ >= (0, 10, 2)
"""Whether JAX can make a loop whose end is computed one over rows that an explicit mesh divides."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What JAX says of arrays that it cannot compute with together, in words of a solve.

    JAX is asked, by its errors: where an array lies is not known of those that are being differentiated.

    Raises:
        UnsupportedError: JAX does not know how an explicit mesh divides a result. That is so of an index which
            `jax.vmap` makes an array along a divided axis: rows have steps of their own.
        InputError: arrays on several devices, or one that is no longer there.
    """
    try:
        yield
    except OdenetError:
        raise
    except (ValueError, RuntimeError) as error:
        if "incompatible devices" in str(error):
            raise InputError(
                "y0, weights and what the field reads (or the gradient that came back) lie on several devices",
                "arrays that lie on one device, or are divided over one mesh",
                "move them with jax.device_put; JAX's own words, which name two of them, stand above",
            ) from error
        if "has been deleted" in str(error):
            raise InputError(
                "y0, weights or what the field reads is an array that has been deleted",
                "arrays that are kept until the solve, and its gradient, are done",
                "do not read what was given to a function of jax.jit(..., donate_argnums=...); JAX's own words stand "
                "above",
            ) from error
        raise
    except Exception as error:
        if type(error).__name__ != "ShardingTypeError":  # its class has no public name
            raise
        raise _divided("a divided axis, or the field's own indexing; JAX's own words stand above") from error


def _divided(where: str, what: str = "an adaptive solve") -> UnsupportedError:
    return UnsupportedError(
        f"{what} on an explicit mesh, of which JAX does not know how a result is divided (jax.vmap along {where})",
        "a solve of the divided array as a whole, or on a mesh of AxisType.Auto",
        "for rows with steps of their own call jax.vmap inside of jax.shard_map",
    )


def undivided(tree: Tree, what: str = "an adaptive solve") -> Tree:
    """The tree of arrays, no array of which may be made rows of a `jax.vmap` along a divided axis of an explicit mesh.

    For a solve in a program that is there before `jax.vmap` comes to it (`jax.jit`, `jax.checkpoint`), whose indexing
    JAX refuses in words of its own: those of the operation that reads a row of what was kept. And for a loop of which
    each row has a number of passes of its own.

    Args:
        tree: see above.
        what: is refused, for the message.

    Raises:
        UnsupportedError: one is made so.
    """
    return jax.tree.map(functools.partial(_undivided_p.bind, alone=False, what=what), tree)


def alone(tree: Tree) -> Tree:
    """The tree of arrays, no array of which may be made rows of a `jax.vmap`: for an adaptive solve of a function whose
    rows may read each other by a rule of its own (`jax.custom_batching.custom_vmap`).

    Raises:
        UnsupportedError: one is made so.
    """

    def bound(leaf: Any) -> Any:
        return _undivided_p.bind(leaf, alone=True, what="") if isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(bound, tree)


_undivided_p = Primitive("odenet_undivided")
_undivided_p.def_impl(lambda leaf, **_: leaf)
_undivided_p.def_abstract_eval(lambda leaf, **_: leaf)
mlir.register_lowering(_undivided_p, lambda context, leaf, **_: [leaf])
ad.deflinear2(_undivided_p, lambda cotangent, leaf, **_: [cotangent])


def _rows(arguments: Any, axes: Any, alone: bool, what: str) -> Any:
    ((leaf,), (axis,)) = arguments, axes
    if alone:
        raise UnsupportedError(
            "jax.vmap of an adaptive solve whose field or event has a rule for rows of its own (a function of "
            "jax.custom_batching.custom_vmap): rows may read each other by it, and each row would be at a time of its "
            "own",
            "equal steps; or a field without such a rule",
            "give steps=N; or solve for all rows as one state, without jax.vmap around it",
        )
    if _mesh(leaf) is not None and jax.typeof(leaf).sharding.spec[axis] is not None:
        raise _divided("a divided axis", what)
    return _undivided_p.bind(leaf, alone=False, what=what), axis


batching.primitive_batchers[_undivided_p] = _rows


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
