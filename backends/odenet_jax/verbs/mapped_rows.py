"""Derivatives that are counted, and not summed, over the rows of a `jax.vmap`: the largest of the rows' is taken."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array


def of_rows(tree: Any, *zeros: Array) -> tuple[Array, ...]:
    """Zeros, the derivative with respect to which is the largest over the rows of a `jax.vmap` that maps some array of
    the tree: derivatives with respect to what is not mapped are summed over rows otherwise."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf) and leaf.size]
    return tuple(_row(leaves, zero) for zero in zeros)


@jax.custom_vjp
def _row(leaves: list[Array], zero: Array) -> Array:
    """The zero, for each row where one of the arrays has rows."""
    numbers = (
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in leaves
    )
    for number in numbers:
        first = number.ravel()[0]
        zero = jnp.where(first == first, zero, zero)
    return zero


def _row_back(leaves: list[Array], g: Array) -> tuple[None, Array]:
    return None, _largest(g)


_row.defvjp(lambda leaves, zero: (_row(leaves, zero), leaves), _row_back)


@jax.custom_batching.custom_vmap
def _largest(g: Array) -> Array:
    """Itself; of rows the largest, for all of them."""
    return g


@_largest.def_vmap
def _largest_of_all(count: int, batched: Any, g: Array) -> tuple[Array, bool]:
    return _largest(jnp.max(g, axis=0)), False


@jax.custom_vjp
def tick(x: Array, count: Array) -> Array:
    """x, with the derivative 1 by the count."""
    return x


def _tick_back(count: Array, g: Array) -> tuple[Array, Array]:
    # one for each row of a vmap: a constant would count once for all of them
    return g, jnp.where(jnp.isnan(g).any(), 1.0, 1.0).astype(count.dtype)


tick.defvjp(lambda x, count: (x, count), _tick_back)
