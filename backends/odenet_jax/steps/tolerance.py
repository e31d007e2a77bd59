"""How large the error of a step is, beside what is allowed: `|error| / (atol + rtol max(|y|, |y'|))`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from odenet import InputError, PIDController
from odenet.kit import shown, takes, tree_leaves
from odenet_jax.field.state import Layout, Leaves, flattened, promoted

Norm = Callable[[Leaves], Array]


@dataclass(frozen=True)
class Tolerance:
    """Tolerances by leaf, and the norm.

    Args:
        rtol, atol: one a leaf, numbers or arrays that broadcast to it.
        norm: of the leaves of a scaled error, to a scalar.
        time: number type of the ratio.
    """

    rtol: tuple[Any, ...]
    atol: tuple[Any, ...]
    norm: Norm
    time: Any

    def ratio(self, error: Leaves, y: Leaves, y1: Leaves) -> Array:
        """The norm of the error over what is allowed; NaN or infinite where a state is not finite."""
        # y1 - y1 is zero, or NaN where a step overflowed: beside an infinite state every finite error would vanish
        error = tuple(e + (b - b) for e, b in zip(error, y1, strict=True))
        return self._size(error, tuple(jnp.maximum(jnp.abs(a), jnp.abs(b)) for a, b in zip(y, y1, strict=True)))

    def size(self, value: Leaves, y: Leaves) -> Array:
        """The norm of a value over what is allowed at y."""
        return self._size(value, tuple(jnp.abs(leaf) for leaf in y), least=True)

    def _size(self, value: Leaves, sizes: Leaves, *, least: bool = False) -> Array:
        return jnp.asarray(self.norm(scaled(value, sizes, self.rtol, self.atol, least)), self.time)


def scaled(value: Leaves, sizes: Leaves, rtol: Any, atol: Any, least: bool) -> Leaves:
    """Entries over what is allowed. With atol=0 none is allowed of an entry that is zero: no error is none too many,
    and with `least`, for the first step, such an entry says nothing."""

    def of(leaf: Array, size: Array, rtol: Any, atol: Any) -> Array:
        allowed = atol + rtol * size
        magnitude = jnp.abs(leaf)
        if isinstance(atol, float) and atol > 0:
            return magnitude / allowed
        none = (allowed == 0) & (least | (leaf == 0))
        return jnp.where(none, 0, magnitude / jnp.where(none, 1, allowed))

    return tuple(of(*row) for row in zip(value, sizes, rtol, atol, strict=True))


def tolerance(control: PIDController, layout: Layout, like: Leaves) -> Tolerance:
    """That of a controller, for a state.

    Raises:
        InputError: a tree of tolerances that is not like the state, or arrays that do not broadcast to its leaves.
    """
    rtol, atol = (_each(name, getattr(control, name), layout, like) for name in ("rtol", "atol"))
    norm = control.norm
    if callable(norm):
        of = norm
        takes(of, 1, "norm", "a function that can be called as norm(tree of the scaled error)")
        return Tolerance(rtol, atol, lambda leaves: _scalar(of(layout.unflatten(leaves))), layout.time)
    return Tolerance(rtol, atol, NORMS[norm], layout.time)


def _scalar(size: Any) -> Any:
    """Raises InputError unless a norm of the user returned a real number."""
    kind = getattr(size, "dtype", None)
    real = isinstance(size, (int, float)) if kind is None else jnp.issubdtype(kind, jnp.number) and kind.kind != "c"
    if not real or getattr(size, "shape", ()) != ():
        what = shown(size) if kind is None else f"{kind}{list(size.shape)}"
        raise InputError(f"norm of a PIDController returned {what}", "a real number, of shape ()")
    return size


def _each(name: str, value: Any, layout: Layout, like: Leaves) -> tuple[Any, ...]:
    """The tolerances, one a leaf of the state."""
    if not _is_array(value) and isinstance(value, (int, float)):
        return (float(value),) * len(like)
    if _is_array(value) and value.ndim == 0:
        leaves = [value] * len(like)
    elif flattened(value, name)[1] != layout.structure:
        raise InputError(
            f"{name} is a tree of {len(tree_leaves(value))} leaves, and the state one of {len(like)}",
            "a number, or a tree like the state",
        )
    else:
        leaves = jax.tree.leaves(value)
    bounds: list[Any] = []
    for bound, leaf in zip(leaves, like, strict=True):
        if not _is_array(bound):
            try:
                bounds.append(float(bound))
            except TypeError:  # a shape without numbers
                raise InputError(f"{name} holds a {type(bound).__name__}", "real numbers of at least 0") from None
            continue
        if not any(jnp.issubdtype(bound.dtype, kind) for kind in (jnp.floating, jnp.integer)):
            raise InputError(f"{name} holds an array of {bound.dtype}", "real numbers of at least 0")
        array = jnp.asarray(bound, leaf.real.dtype)
        try:
            fits = jnp.broadcast_shapes(array.shape, leaf.shape) == leaf.shape
        except ValueError:
            fits = False
        if not fits:
            raise InputError(
                f"{name} holds an array of shape {array.shape} for a leaf of shape {leaf.shape}",
                "numbers of at least 0 that broadcast to the leaf",
            )
        if not isinstance(bound, Tracer) and not (np.asarray(bound) >= 0).all():  # of NumPy: jnp's is traced in jax.jit
            raise InputError(f"{name} holds an entry that is negative or NaN", "numbers of at least 0")
        bounds.append(jnp.where(array >= 0, array, jnp.nan) if isinstance(array, Tracer) else array)
    return tuple(bounds)


def _is_array(value: Any) -> bool:
    return isinstance(value, (jax.Array, np.ndarray, np.generic))


def _widened(parts: Iterable[Array]) -> list[Array]:
    """Numbers of the leaves in the widest of their number types."""
    numbers = list(parts)
    kind = promoted(*(number.dtype for number in numbers))
    return [number.astype(kind) for number in numbers]


def _rms(leaves: Leaves) -> Array:
    entries = sum(leaf.size for leaf in leaves)
    return jnp.sqrt(functools.reduce(jnp.add, _widened(jnp.sum(leaf * leaf) for leaf in leaves)) / entries)


def _mixed(leaves: Leaves) -> Array:
    return functools.reduce(jnp.maximum, _widened(_rms((leaf,)) for leaf in leaves))


def _max(leaves: Leaves) -> Array:
    return functools.reduce(jnp.maximum, _widened(jnp.max(leaf) for leaf in leaves))


NORMS: dict[str, Norm] = {"rms": _rms, "mixed": _mixed, "max": _max}
