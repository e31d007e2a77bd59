"""Errors that only a run of a compiled program can find."""

from __future__ import annotations

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from odenet import GradientError

Tree = TypeVar("Tree")


def raised(tree: Tree, wrong: Array, error: GradientError) -> Tree:
    """The tree of inexact arrays; a program that reads any of them raises a RuntimeError of that message where `wrong`.

    The check is on every array: JAX leaves out what nothing reads, and with it a check on the gradient of a y0 whose
    gradient nobody asks for.
    """
    # by way of a number: what passes through error_if itself loses its sharding over devices
    zero = eqx.error_if(jnp.zeros(()), wrong, str(error))
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)
