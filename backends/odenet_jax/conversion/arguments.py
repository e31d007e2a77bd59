"""What the layers of a run are called with beside the state: the same for all of them, or something for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odenet import ConversionError
from odenet_jax.conversion.attached import name_of, plain_class
from odenet_jax.field.flax_modules import flax_nnx

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
_SHARED, _OWN, _STATE, _FIXED = range(4)


def state_first(layer: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, Arguments]:
    """The state that a layer is called with, its first argument, and its other arguments.

    Raises:
        ConversionError: it is called without one.
    """
    if arguments:
        return arguments[0], (arguments[1:], named)
    _, *parameters = inspect.signature(plain_class(layer).__call__).parameters
    names = [name for name in parameters if name in named]
    if not names:
        raise ConversionError(f"{name_of(layer)} is called without arguments", "a layer of a state")
    return named[names[0]], ((), {name: value for name, value in named.items() if name != names[0]})


def state_among(arguments: Arguments) -> Any:
    """The state of equinox's layers among arguments; None where there is none.

    Raises:
        ConversionError: two of them, or an object of flax.nnx, which the layer may write to.
    """
    leaves = jax.tree.leaves(arguments, is_leaf=_is_whole)
    states = [leaf for leaf in leaves if isinstance(leaf, eqx.nn.State)]
    written = [leaf for leaf in leaves if _is_flax_object(leaf)]
    if len(states) > 1 or written:
        what = f"a {type(written[0]).__name__} of flax.nnx" if written else f"{len(states)} states of equinox"
        raise ConversionError(
            f"layers called with {what}, which they may write to",
            "arrays, numbers, keys of random numbers, and one state of equinox",
            "give each layer its own nnx.Rngs when it is made, or take gradient='checkpoint'",
        )
    return states[0] if states else None


@dataclass(frozen=True)
class Signature:
    """How the arguments of each layer are put together again.

    Args:
        structure: of their tree.
        kinds: for each leaf, where it comes from.
        fixed: leaves that are no arrays.
    """

    structure: Any
    kinds: tuple[int, ...]
    fixed: tuple[Any, ...]

    def filled(self, shared: Sequence[Any], own: Sequence[Any], state: Any) -> Arguments:
        """The arguments of one layer."""
        parts = {_SHARED: iter(shared), _OWN: iter(own), _STATE: iter([state]), _FIXED: iter(self.fixed)}
        return jax.tree.unflatten(self.structure, [next(parts[kind]) for kind in self.kinds])


def parted(calls: Sequence[Arguments]) -> tuple[Signature, list[Any], list[list[Any]]]:
    """The arguments of all layers: how they are put together, what they share, and what each has for itself.

    Raises:
        ConversionError: arguments of different kinds.
    """
    flat = [jax.tree.flatten(arguments, is_leaf=_is_whole) for arguments in calls]
    structure = flat[0][1]
    if any(other != structure for _, other in flat):
        raise ConversionError(
            "layers of a run that are called with different arguments", "arguments of one structure for all of them"
        )
    kinds, shared, fixed = [], [], []
    own: list[list[Any]] = [[] for _ in calls]
    for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
        first = leaves[0]
        same = all(leaf is first for leaf in leaves)
        if isinstance(first, eqx.nn.State):
            kinds.append(_STATE)
        elif all(map(_is_array, leaves)) and same:
            kinds.append(_SHARED)
            shared.append(first)
        elif all(map(_is_array, leaves)) and len({(leaf.shape, leaf.dtype) for leaf in leaves}) == 1:
            kinds.append(_OWN)
            for mine, leaf in zip(own, leaves, strict=True):
                mine.append(jnp.asarray(leaf))
        elif same or all(not _is_array(leaf) and type(leaf) is type(first) and leaf == first for leaf in leaves):
            kinds.append(_FIXED)
            fixed.append(first)
        else:
            raise ConversionError(
                f"layers of a run that are called with {', '.join(map(_shown, leaves[:3]))} at one place",
                "arrays of one shape and number type, or something else that is equal for all of them",
                "take gradient='checkpoint', which takes any",
            )
    return Signature(structure, tuple(kinds), tuple(fixed)), shared, own


def dynamic(arguments: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The arrays, and objects of flax.nnx, among arguments; and what puts the rest beside them again."""
    parts = eqx.partition(arguments, lambda leaf: _is_array(leaf) or _is_flax_object(leaf), is_leaf=_is_whole)
    return parts[0], lambda arrays: eqx.combine(arrays, parts[1], is_leaf=_is_whole)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _is_flax_object(node: Any) -> bool:
    nnx = flax_nnx()
    kinds = () if nnx is None else (getattr(nnx, "Pytree", None) or nnx.Object, nnx.Variable)
    return isinstance(node, kinds)


def _is_whole(node: Any) -> bool:
    return isinstance(node, eqx.nn.State) or _is_flax_object(node)


def _shown(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if _is_array(leaf) else repr(leaf)[:30]
