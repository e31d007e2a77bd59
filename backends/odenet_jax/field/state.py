"""The state as a tuple of arrays: what it is carried as, and what it is called with and returned as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from odenet import DtypeError, NonFiniteError, StateError
from odenet.kit import array_of_numbers, require_finite_tree, tree_paths
from odenet_jax.field import trees as trees  # registers

Leaves = tuple[Array, ...]
HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_KINDS = tuple(
    map(jnp.dtype, ("float32", "float64", jnp.bfloat16, "float16", "complex64", "complex128"))
)  # float8 is a format to store
_WIDE = (np.dtype("float64"), np.dtype("complex128"))


def stacked(leaves: Sequence[Any]) -> Array:
    """Arrays along a new first axis. One that has several places gets the sum of their gradients, rounded once."""
    kinds = {leaf.dtype for leaf in leaves}
    if len(kinds) > 1 or not kinds <= set(HALF):
        return jnp.stack(leaves)
    # one conversion an array: its gradient adds those of its places in float32, where half precision loses the small
    wide = {id(leaf): leaf.astype(jnp.float32) for leaf in leaves}
    return jnp.stack([wide[id(leaf)] for leaf in leaves]).astype(kinds.pop())


def repeated(leaf: Array, order: Sequence[int]) -> Array:
    """Rows of an array in an order, repeats allowed, with their gradients as those of `stacked`."""
    rows = jnp.asarray(order)
    return leaf.astype(jnp.float32)[rows].astype(leaf.dtype) if leaf.dtype in HALF else leaf[rows]


@dataclass(frozen=True)
class Layout:
    """How a tree of arrays becomes the tuple that the steps work on, and back.

    Half-precision leaves are carried in float32: increments of size h would be lost in bfloat16, and with them the
    backward pass. The field still sees, and the solution is returned in, the number type of y0.

    Args:
        unflatten: the tree from its leaves.
        structure: JAX's description of the tree.
        dtypes: number types of y0's leaves.
        carried: number types between field evaluations.
        time: number type of times.
    """

    unflatten: Callable[[Sequence[Any]], Any]
    structure: Any
    dtypes: tuple[Any, ...]
    carried: tuple[Any, ...]
    time: Any

    def call(self, leaves: Leaves) -> Any:
        """The tree that the field is called with."""
        return self.unflatten([leaf.astype(kind) for leaf, kind in zip(leaves, self.dtypes, strict=True)])

    def slope(self, value: Any, like: Leaves) -> Leaves:
        """What the field returned as leaves to add to `like`.

        Raises:
            StateError: another tree or other shapes than the state's.
            DtypeError: a number type that would widen the state's.
        """
        require_like(value, self.unflatten(like))
        leaves = jax.tree.leaves(value)
        require_arrays(leaves)
        if any(k.shape != y.shape for k, y in zip(leaves, like, strict=True)):
            raise StateError(
                f"the field returned shapes {[k.shape for k in leaves]} for a state of shapes "
                f"{[y.shape for y in like]}",
                "a slope of the state's own shape",
            )
        return tuple(_narrow(k, kind, dtype) for k, kind, dtype in zip(leaves, self.carried, self.dtypes, strict=True))

    def returned(self, leaf: Array, index: int) -> Array:
        """A carried leaf in the number type of y0."""
        return leaf.astype(self.dtypes[index])


def flattened(tree: Any, name: str) -> tuple[list[Any], Any]:
    """`jax.tree.flatten` of what a user handed over.

    Raises:
        StateError: a dict whose keys JAX cannot sort, or a container that holds itself.
    """
    require_finite_tree(name, tree)
    try:
        return jax.tree.flatten(tree)
    except ValueError as error:  # keys such as 1 and "a" of one dict
        raise StateError(
            f"{name} is a tree that JAX cannot flatten ({error} {error.__cause__ or ''})",
            "dicts whose keys are all of one kind, such as strings",
        ) from error


def layout(y0: Any) -> tuple[Layout, Leaves]:
    """The layout of a state and its leaves as carried.

    NumPy arrays and numbers become arrays of their own number type (numbers: JAX's default) on JAX's default device.

    Raises:
        DtypeError: integers or booleans, or float64 while JAX has it switched off. NonFiniteError: NaN in NumPy arrays
            or numbers.
    """
    arrays = [_array(path, leaf) for path, leaf in tree_paths(y0)]
    _, structure = flattened(y0, "y0")
    dtypes = tuple(array.dtype for array in arrays)
    carried = tuple(jnp.dtype(jnp.float32) if kind in HALF else kind for kind in dtypes)
    time = jnp.dtype(jnp.float64) if any(kind in _WIDE for kind in carried) else jnp.dtype(jnp.float32)
    result = Layout(lambda leaves: jax.tree.unflatten(structure, leaves), structure, dtypes, carried, time)
    return result, tuple(array.astype(kind) for array, kind in zip(arrays, carried, strict=True))


def _array(path: str, leaf: Any) -> Array:
    try:
        array = as_array(f"y0 {path}", float(leaf) if type(leaf) is int else leaf)
    except OverflowError as error:
        raise NonFiniteError(f"y0 {path} is an integer beyond all floats", "finite numbers") from error
    if array.dtype not in _KINDS:
        raise DtypeError(
            f"y0 {path} is {array.dtype}",
            ", ".join(kind.name for kind in _KINDS),
            "convert it, as in y0.astype(jnp.float32)",
        )
    if not isinstance(leaf, jax.Array) and not np.isfinite(np.asarray(leaf)).all():
        raise NonFiniteError(f"y0 {path} holds NaN or infinity", "finite numbers")
    return array


def as_array(name: str, leaf: Any) -> Array:
    """A JAX array of the same number type.

    Raises:
        DtypeError: JAX would make 64-bit numbers 32-bit in silence; or an array of what JAX has no number type for.
        StateError: an array that is deleted.
    """
    require_no_reference(f"{name} is", [leaf])
    if isinstance(leaf, np.ndarray):
        array_of_numbers(name, leaf)
    if isinstance(leaf, np.ndarray) and jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise DtypeError(
            f"{name} is {leaf.dtype} while JAX has 64-bit numbers switched off, so that it would become 32-bit",
            "32-bit numbers, or 64-bit ones with x64 on",
            "jax.config.update('jax_enable_x64', True) before any array is made",
        )
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
        raise StateError(
            f"{name} is an array of shape {leaf.shape} that is deleted",
            "arrays that hold numbers",
            "an argument that jax.jit was given to donate (donate_argnums) is gone: keep a copy",
        )
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DtypeError(f"{name} cannot become an array ({reason})", "numbers, NumPy arrays or JAX arrays") from error


def array_of(value: Any) -> Array:
    """An array of what a function of the user's returned, in which None is no number: JAX 0.5 would make NaN of it.

    Raises:
        TypeError: there is one.
    """
    if any(leaf is None for leaf in jax.tree.leaves(value, is_leaf=lambda leaf: leaf is None)):
        raise TypeError("None is no number")
    return jnp.asarray(value)


def require_no_reference(name: str, values: Sequence[Any]) -> None:
    """Raises StateError for a mutable array among these: steps that run again would read what it holds by then."""
    # by names: the class stands in other places in other versions of JAX, and what it is traced as in no public one
    kinds = {type(leaf).__name__ for leaf in values} | {type(getattr(leaf, "aval", None)).__name__ for leaf in values}
    if not kinds.isdisjoint(("Ref", "ArrayRef", "MutableArray", "AbstractRef")):
        raise StateError(
            f"{name} a jax.Ref (a mutable array)",
            "arrays; references that the function makes itself, at each call",
            "read it before the solve (ref[...]) and give the array in weights; write to it after the solve",
        )


def require_like(value: Any, y: Any) -> None:
    """Raises StateError for a slope that is another tree than the state."""
    if flattened(value, "what the field returned")[1] != jax.tree.structure(y):
        raise StateError(
            f"the field returned {_describe(value)} for a state that is {_describe(y)}", "a tree like the state's"
        )


def require_arrays(value: Any) -> None:
    """Raises StateError for a slope with a leaf that is no array; called before JAX is asked to trace it."""
    for leaf in jax.tree.leaves(value):
        if not isinstance(leaf, (jax.Array, np.ndarray)) or isinstance(leaf, np.ma.MaskedArray):
            # a builtin's name: JAX has a float of its own
            kind = next((kind for kind in type(leaf).__mro__ if kind.__module__ == "builtins"), type(leaf))
            name = type(leaf).__name__ if kind is object else kind.__name__
            raise StateError(f"the field returned a {name}", "arrays", "use jnp.zeros_like for 0")


def promoted(*kinds: Any) -> Any:
    """The number type that holds all of these, also where `jax_numpy_dtype_promotion` is "strict"."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*kinds)


def _narrow(k: Any, kind: Any, dtype: Any) -> Array:
    if promoted(k.dtype, kind) != kind:
        raise DtypeError(
            f"the field returned {k.dtype} for a state of {dtype}, which would be promoted in silence",
            f"{dtype}, or what it holds",
            "give the weights (or y0) the number type you want, as in weights.astype(y0.dtype)",
        )
    return jnp.asarray(k, kind)


def _describe(value: Any) -> str:
    if isinstance(value, jax.Array):
        return "an array"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")
