"""Errors that only a run of a compiled program can find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap

from odenet import GradientError

Tree = TypeVar("Tree")


def raised(tree: Tree, wrong: Array, error: GradientError, *, by_row: bool = False) -> Tree:
    """The tree of inexact arrays; a program that reads any of them raises a RuntimeError of that message where `wrong`.

    The check is on every array: JAX leaves out what nothing reads, and with it a check on the gradient of a y0 whose
    gradient nobody asks for.

    Args:
        tree, wrong, error: see above.
        by_row: of rows of a `jax.vmap` those that are wrong are NaN, and the others none the worse for them.
    """
    message = str(error)

    def checked(wrong: Array) -> Array:
        return eqx.error_if(jnp.zeros(()), wrong, message)

    # by way of a number: what passes through error_if itself loses its sharding over devices
    zero = (_by_row(checked) if by_row else checked)(wrong)
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def _by_row(checked: Callable[[Array], Array]) -> Callable[[Array], Array]:
    function = custom_vmap(checked)

    @function.def_vmap
    def _(size: int, batched: Any, wrong: Array) -> tuple[Array, bool]:
        return jnp.where(wrong, jnp.nan, jnp.zeros(())), True

    return function
