"""Modules of flax.nnx, which write on themselves, as functions of arrays: running statistics, counts of random numbers.

flax is no dependency: a module of its can only be met where somebody has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx
import jax

from odenet import StateError
from odenet_jax.field.handed_on import changed, same


def flax_nnx() -> Any:
    """The package flax.nnx if it was imported; else None."""
    return sys.modules.get("flax.nnx")


def is_flax(node: Any) -> bool:
    """Whether it is a module of flax.nnx."""
    nnx = flax_nnx()
    return nnx is not None and isinstance(node, nnx.Module)


def of_another_trace(error: Exception) -> bool:
    """Whether it is flax's error for a module that is written to, or handed on, by a transformation that was not handed
    it."""
    # by its name: the class stands in another place in other versions of flax
    named = type(error).__name__ == "TraceContextError"
    return named or (isinstance(error, ValueError) and "graph node from different trace level" in str(error))


class FlaxBlock(eqx.Module):
    """A module of flax.nnx as a block with a state: parameters are leaves, all its other variables are the state.

    Args:
        weights: the values of its parameters, a tree of flax.
        definition: all else of it.
    """

    weights: Any
    definition: Any = eqx.field(static=True)

    def __call__(self, x: Any, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        """Its value, and its other variables after the call; these are the last of the arguments."""
        *others, state = arguments
        leaves, structure = jax.tree.flatten(self.weights)
        read, state_structure = jax.tree.flatten(state)

        def called(leaves: Any) -> tuple[Any, Any, Any, str]:
            parts = jax.tree.unflatten(structure, leaves), jax.tree.unflatten(state_structure, read)
            module = flax_nnx().merge(self.definition, *parts)
            value = module(x, *others, **named)
            definition, weights, after = flax_nnx().split(module, flax_nnx().Param, ...)
            if definition != self.definition:
                raise StateError(
                    f"a {type(module).__name__} sets itself up, or assigns attributes, when it is called: these would "
                    "be lost",
                    "modules whose attributes and variables a call leaves as they are, and their values as it likes",
                    "keep numbers in an nnx.Variable that is there from the start",
                )
            return value, jax.tree.leaves(weights), after, type(module).__name__

        value, weights, after, name = called(leaves)
        # flax's own transformations hand parameters on as other arrays, which the program alone tells from written ones
        if not same(weights, leaves) and changed(lambda leaves: called(leaves)[1], leaves):
            raise StateError(
                f"a {name} writes to its parameters (nnx.Param) when it is called: that would be lost",
                "modules that write to other variables (nnx.BatchStat, nnx.Variable)",
                "of nnx.WeightNorm and nnx.SpectralNorm, compute the weight in the module's own call",
            )
        return value, after


def parted(module: Any) -> tuple[FlaxBlock, Any]:
    """A module of flax.nnx as a block, and its state."""
    nnx = flax_nnx()
    definition, weights, state = nnx.split(module, nnx.Param, ...)
    return FlaxBlock(weights, definition), state
