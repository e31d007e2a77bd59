"""Layers of flax.nnx as functions: what of their variables they write to is a state, and the rest are weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet import ConversionError
from odenet_jax.conversion.arguments import Arguments, dynamic
from odenet_jax.conversion.attached import name_of, plain_call, plain_copy
from odenet_jax.field.flax_modules import flax_nnx, of_another_trace
from odenet_jax.field.handed_on import changed


@dataclass(frozen=True)
class FlaxLayer:
    """What a call of one of some layers that are alike computes.

    Args:
        definition: of the module, without the values of its variables.
        structure: of these values.
        written: which of them it writes to.
        name: of its class.
    """

    definition: Any
    structure: Any
    written: tuple[int, ...]
    name: str

    def __call__(
        self, weights: Sequence[Any], state: Sequence[Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> tuple[Any, list[Any]]:
        """The layer's value, and the values of the variables that it writes to."""
        first, second = iter(weights), iter(state)
        count = len(weights) + len(state)
        values = [next(second) if i in self.written else next(first) for i in range(count)]
        module = flax_nnx().merge(self.definition, jax.tree.unflatten(self.structure, values))
        value = module(*arguments, **named)
        definition, variables = flax_nnx().split(module)
        after, structure = jax.tree.flatten(variables)
        if structure != self.structure:
            raise ConversionError(
                f"{self.name} makes variables when it is called (an nnx.Intermediate, by sow), a value that leaves it "
                "by another way than the state",
                "layers that write to variables that they have",
                "take gradient='checkpoint'",
            )
        if definition != self.definition:
            raise ConversionError(
                f"{self.name} assigns attributes that are no variables when it is called (a count in Python, say), "
                "which would be lost",
                "layers that leave their attributes as they are, or keep numbers in an nnx.Variable",
                "take gradient='checkpoint'",
            )
        return value, [after[i] for i in self.written]


def flax_layers(layers: Sequence[Any], x: Array, arguments: Arguments) -> tuple[FlaxLayer, list[list[Any]], Any]:
    """Layers of a run as one function, the weights of each, and the state of all, leaves with an axis of layers.

    Args:
        layers: attached ones, which are left as they are.
        x, arguments: what the first one is called with.

    Returns:
        The function, the weights of each layer, and the state: None where they write to nothing.

    Raises:
        ConversionError: layers that are not alike, that share a variable that they write to, or that write to one of
            floating point numbers which is no running statistic.
    """
    parts = [_parts(layer) for layer in layers]
    definition, structure = parts[0][0], parts[0][2]
    name = name_of(layers[0])
    for i, (other, _, others) in enumerate(parts):
        if other != definition or others != structure:
            raise ConversionError(
                f"layer {i} of a run of {name} is not like the first one: its variables or attributes are others",
                "layers that differ in the values of their variables alone, all in training or all in evaluation",
                "take gradient='checkpoint'",
            )
    written = _written(FlaxLayer(definition, structure, (), name), parts[0][1], (x, *arguments[0]), arguments[1])
    variables = [_variables(layer) for layer in layers]
    for i in written:
        kind, shared = type(variables[0][i]), {id(of_layer[i]) for of_layer in variables}
        values = [values[i] for _, values, _ in parts]
        if variables[0][i] is None:
            raise ConversionError(
                f"{name} assigns an array of its own when it is called, which is no variable of flax.nnx",
                "layers that write to variables (nnx.BatchStat, nnx.Variable)",
                "take gradient='checkpoint'",
            )
        if len(shared) != len(layers):
            raise ConversionError(
                f"layers of {name} share a {kind.__name__} that they write to",
                "layers with random numbers and statistics of their own each",
                "make each layer with rngs.fork(), or take gradient='checkpoint'",
            )
        if jnp.issubdtype(values[0].dtype, jnp.inexact) and not issubclass(kind, flax_nnx().BatchStat):
            raise ConversionError(
                f"{name} writes to a {kind.__name__}, whose gradient would be lost: a value that leaves it by another "
                "way than the state",
                "layers that write to running statistics (nnx.BatchStat) and counts of random numbers",
                "take gradient='checkpoint'",
            )
    weights = [[jnp.asarray(leaf) for i, leaf in enumerate(values) if i not in written] for _, values, _ in parts]
    state = [jnp.stack([values[i] for _, values, _ in parts]) for i in written]
    return FlaxLayer(definition, structure, written, name), weights, state or None


def write_back(layers: Sequence[Any], written: Sequence[int], rows: Sequence[Array]) -> None:
    """Write the state after a run to the layers' variables.

    Raises:
        ConversionError: they cannot be written to where they are read (see `recomputed`).
    """
    if _closed_over(layers[0]):
        raise _unwritable(layers[0], written)
    for n, layer in enumerate(layers):
        variables = _variables(layer)
        for i, leaf in zip(written, rows, strict=True):
            variables[i].set_value(leaf[n])


def recomputed(layer: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The value of a layer that is run again in the backward pass; it writes once.

    Raises:
        ConversionError: a layer that writes, of a model that a transformation of JAX reads without being handed it.
    """
    arrays, together = dynamic((arguments, named))

    def call(layer: Any, arrays: Any) -> Any:
        arguments, named = together(arrays)
        return plain_call(layer, *arguments, **named)

    # flax writes all variables after the call, which it must not in a transformation that was not handed the model
    if not _closed_over(layer):
        return flax_nnx().remat(call)(layer, arrays)
    definition, values, structure = _parts(layer)
    function = FlaxLayer(definition, structure, (), name_of(layer))
    if written := _written(function, values, arguments, named):
        raise _unwritable(layer, written)

    def value(values: list[Any], arrays: Any) -> Any:
        arguments, named = together(arrays)
        return function(values, [], arguments, named)[0]

    return jax.checkpoint(value)(values, arrays)


def _closed_over(layer: Any) -> bool:
    """Whether the layer is of a model that a transformation of JAX reads without being handed it."""
    try:
        layer.odenet_place = layer.odenet_place
    except Exception as error:
        if not of_another_trace(error):
            raise
        return True
    return False


def _unwritable(layer: Any, written: Sequence[int]) -> ConversionError:
    variables = _variables(layer)
    kinds = sorted({type(variables[i]).__name__ for i in written})
    return ConversionError(
        f"{name_of(layer)} writes to {', '.join(kinds)} of a model that a transformation of JAX reads from outside of "
        "it",
        "models that are an argument of the transformed function",
        "hand the model to nnx.jit, nnx.grad and the like; or model.eval(), with which it writes nothing",
    )


def _parts(layer: Any) -> tuple[Any, list[Any], Any]:
    """The definition of a layer without its place, and the values of its variables."""
    definition, variables = flax_nnx().split(plain_copy(layer))
    values, structure = jax.tree.flatten(variables)
    return definition, values, structure


def _variables(layer: Any) -> list[Any]:
    """The variables of a layer, as its values are in order; None for an array that is no variable."""
    nnx = flax_nnx()
    by_path = {path: node for path, node in nnx.iter_graph(layer) if isinstance(node, nnx.Variable)}
    return [by_path.get(path) for path, _ in nnx.to_flat_state(nnx.split(layer)[1])]


def _written(
    function: FlaxLayer, values: list[Any], arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[int, ...]:
    """Which of the variables a call writes to."""

    def after(values: Sequence[Any]) -> list[Any]:
        whole = FlaxLayer(function.definition, function.structure, tuple(range(len(values))), function.name)
        return whole([], values, arguments, named)[1]

    return changed(after, values)
