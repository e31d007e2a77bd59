"""Modules of flax.nnx, which write on themselves, as functions of arrays: running statistics, counts of random numbers.

flax is no dependency: a module of its can only be met where somebody has imported it.
"""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx


def flax_nnx() -> Any:
    """The package flax.nnx if it was imported; else None."""
    return sys.modules.get("flax.nnx")


def is_flax(node: Any) -> bool:
    """Whether it is a module of flax.nnx."""
    nnx = flax_nnx()
    return nnx is not None and isinstance(node, nnx.Module)


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
        module = flax_nnx().merge(self.definition, self.weights, state)
        value = module(x, *others, **named)
        return value, flax_nnx().split(module, flax_nnx().Param, ...)[2]


def parted(module: Any) -> tuple[FlaxBlock, Any]:
    """A module of flax.nnx as a block, and its state."""
    nnx = flax_nnx()
    definition, weights, state = nnx.split(module, nnx.Param, ...)
    return FlaxBlock(weights, definition), state
