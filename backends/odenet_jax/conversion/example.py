"""A model called on an example: what its layers are called with and return, and what comes out."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odenet import ConversionError, InputError
from odenet_jax.conversion.arguments import Arguments, state_among, state_first
from odenet_jax.conversion.attached import Named, all_detached, name_of, plain_call
from odenet_jax.conversion.containers import with_places
from odenet_jax.conversion.increment import increment, kind_of_state
from odenet_jax.conversion.pending import Refusing
from odenet_jax.field.flax_modules import flax_nnx, is_flax
from odenet_jax.field.module_writes import traced_arrays_forgotten

Caller = Callable[..., Any]


@dataclass(eq=False)
class Seen:
    """What stands for an object that has been seen, which may be traced: it does not keep that alive (a leak to
    `jax.checking_leaks`).

    Args:
        kind: shape and number type of an array; None for anything else.
        object: it, for as long as it lives.
    """

    kind: Any
    object: Callable[[], Any]


@dataclass(eq=False)
class Sight:
    """A call of a layer.

    Args:
        x: the state that it was called with.
        state: what came out in its place; what was returned, or the first of a pair with a state of equinox.
        why: why it cannot be a layer of a run; None where it can.
        residual: why what it returns is not x plus something; None where it is.
    """

    x: Seen | None = None
    state: Seen | None = None
    why: InputError | None = None
    residual: InputError | None = None


@dataclass(eq=False)
class Watch:
    """Where a layer stands while the model runs on the example (`odenet_jax.conversion.attached.Place`).

    Args:
        closely: whether it may become a layer of a run.
    """

    closely: bool
    sights: list[Sight] = field(default_factory=list)
    states: list[Seen] = field(default_factory=list)
    """Those of all layers."""

    def call(self, layer: Any, arguments: tuple[Any, ...], named: Named) -> Any:
        """What the layer's own code returns."""
        sight, x = Sight(), None
        try:
            x, others = state_first(layer, arguments, named)
            if self.closely:
                state = state_among(others)
                sight.residual = _judged(layer, x, others, state is not None)
        except InputError as error:
            sight.why = _alone(error)
        sight.x = self._seen(x)
        value = plain_call(layer, *arguments, **named)
        self.sights.append(sight)
        pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], eqx.nn.State)
        state = value[0] if pair else value
        sight.state = self._seen(state)
        if self.closely and sight.why is None:
            sight.why = _shape_kept(layer, x, state)
        return value

    def _seen(self, value: Any) -> Seen:
        """What stands for an object: the same for the same one."""
        self.states[:] = [state for state in self.states if state.object() is not None]
        known = next((state for state in self.states if state.object() is value), None)
        if known is None:
            array = isinstance(value, jax.Array)
            known = Seen((value.shape, value.dtype) if array else None, weakref.ref(value) if array else _nothing)
            self.states.append(known)
        return known


def watched(model: Any, names: list[str], closely: bool, call: Caller, example: Any) -> tuple[dict[str, Watch], Any]:
    """What layers, by the names of their places, are called with on the example; and what comes out of the model."""
    states: list[Seen] = []
    watches = {name: Watch(closely, states=states) for name in names}
    model = with_places(model, watches)
    try:
        return watches, outputs(model, call, example)
    finally:
        if is_flax(model):
            all_detached(model)


@traced_arrays_forgotten()
def outputs(model: Any, call: Caller, example: Any) -> Any:
    """What comes out of a model on an example; of one of flax.nnx with the values of its variables after it."""
    arguments, named = _split(example)
    if not is_flax(model):
        whole = eqx.filter_jit(lambda model, arguments, named: call(model, *arguments, **named))
        return whole(model, arguments, named)
    nnx = flax_nnx()
    definition, variables = nnx.split(model)

    @eqx.filter_jit
    def run(variables: Any, arguments: Any, named: Any) -> Any:
        module = nnx.merge(definition, variables)
        value = call(module, *arguments, **named)
        return value, nnx.split(module)[1]

    return run(variables, arguments, named)


def check_unchanged(before: Any, after: Any, tolerance: float) -> None:
    """Raises ConversionError where outputs differ by more than the tolerance, relative to their largest entry."""
    for leaf in jax.tree.leaves(after):
        if isinstance(leaf, Refusing):
            leaf.refuse()
    leaves, others = (jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (before, after))
    kinds = [[(leaf.shape, leaf.dtype) for leaf in arrays] for arrays in (leaves, others)]
    if kinds[0] != kinds[1]:
        raise ConversionError(f"the converted model returns {kinds[1]}, and returned {kinds[0]}", "the same outputs")
    for leaf, other in zip(leaves, others, strict=True):
        off = _difference(leaf, other)
        most = max(tolerance, 8 * float(jnp.finfo(leaf.dtype).eps)) if _inexact(leaf) else 0.0
        if not off <= most:
            raise ConversionError(
                f"the converted model is off by {off:.1e} of its largest output",
                f"{most:.1e}",
                "convert a part of the model with where=, or allow more with tolerance= where this is rounding",
            )


def _split(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _judged(layer: Any, x: Any, others: Arguments, pair: bool) -> InputError | None:
    """Why a layer's value is not its input plus something; found without a trace left on layer or state."""
    if not isinstance(x, jax.Array) or not _inexact(x):
        return ConversionError(f"{name_of(layer)} takes a {type(x).__name__}, no state")

    def value(x: Any) -> tuple[Any, Any]:
        # what is written on: a layer of flax.nnx, and a state of equinox, which is void then
        clone, (arguments, named) = jax.tree.map(lambda leaf: leaf, (layer, others))
        returned = plain_call(clone, x, *arguments, **named)
        return returned if pair else (returned, None)

    try:
        increment(value, x, name_of(layer))
    except InputError as error:
        return _alone(error)
    return None


def _alone(error: InputError) -> InputError:
    """The error without its frames, whose variables may be traced."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def _nothing() -> None:
    """Stands for an object that is not looked for again."""


def _shape_kept(layer: Any, x: Any, state: Any) -> InputError | None:
    if isinstance(state, jax.Array) and isinstance(x, jax.Array) and (x.shape, x.dtype) == (state.shape, state.dtype):
        return None
    if isinstance(state, (tuple, list, dict)):
        return ConversionError(
            f"{name_of(layer)} returns more than its state: a value that leaves it by another way", "", ""
        )
    return ConversionError(f"{name_of(layer)} changes the state from {kind_of_state(x)} to {kind_of_state(state)}")


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _difference(leaf: Any, other: Any) -> float:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf, other = jax.random.key_data(leaf), jax.random.key_data(other)
    wide = np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64
    one, two = np.asarray(leaf).astype(wide), np.asarray(other).astype(wide)
    if not one.size:
        return 0.0
    largest = float(np.nanmax(np.abs(one))) if not np.isnan(one).all() else 0.0
    off = np.abs(one - two)
    off = float(np.max(np.where(np.isnan(one) & np.isnan(two), 0.0, off)))
    return off / largest if largest else off


def follows(one: Watch, other: Watch) -> bool:
    """Whether a layer is called with what the one before it returned, each time."""
    pairs = itertools.zip_longest(one.sights, other.sights)
    return all(a is not None and b is not None and b.x is a.state for a, b in pairs)
