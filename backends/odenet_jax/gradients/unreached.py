"""What a solve did not get to: NaN, whose derivative is NaN, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from odenet_jax.field.varying import alike
from odenet_jax.gradients.linear_map import Linear, carry, with_rows

Tree = TypeVar("Tree")


def reached(there: Array, values: Tree, sources: Any, *, strict: bool = False) -> Tree:
    """The values where they are there; else NaN.

    A loss that reads such a NaN, and is NaN by it, has NaN for its gradient by every source, where the derivative of
    `jnp.where` would be zero: a row that failed would look as one that is at a minimum. A loss that leaves it out
    (`jnp.where(jnp.isfinite(y), y, 0)`) has a cotangent of zero for it, and this makes a gradient of zero.

    A cotangent that is NaN itself may be either's: `y**2`, and `jnp.where(jnp.isfinite(y), y**2, 0)`, whose zero JAX
    multiplies by NaN.

    Args:
        there: whose axes are the first of each leaf.
        values: a tree of arrays.
        sources: the arrays of inexact number types that the values are made of.
        strict: whether a cotangent that is NaN is one of a loss that reads it, as for JAX itself; or of one that leaves
            it out.
    """
    if not isinstance(there, Tracer) and bool(there.all()):
        return values
    # one that stands for what there is not is no fault of a computation
    with jax.debug_nans(False):
        return jax.tree.map(
            lambda leaf, none: jnp.where(there.reshape(*there.shape, *[1] * (leaf.ndim - there.ndim)), leaf, none),
            values,
            _nowhere(values, sources, _Lost(strict)),
        )


def _nowhere(values: Tree, sources: Any, rule: Linear) -> Tree:
    """NaN like the values."""

    @jax.custom_jvp
    def nowhere(none: Tree, sources: Any) -> Tree:
        return with_rows(none, sources)

    @nowhere.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        lost = nowhere(*primals)
        return lost, carry(rule, (primals[1], lost), lost, tangents[1])

    return nowhere(jax.tree.map(lambda leaf: alike(jnp.full_like(leaf, jnp.nan), leaf), values), sources)


@dataclass(frozen=True)
class _Lost(Linear):
    """The derivative of NaN that stands for what there is not, by its sources."""

    strict: bool

    def forward(self, residuals: Any, tangents: Any) -> Any:
        return residuals[1]

    def backward(self, residuals: Any, cotangents: Any) -> Any:
        leaves = jax.tree.leaves(cotangents)
        read = [jnp.any((leaf != 0) if self.strict else (leaf != 0) & ~jnp.isnan(leaf)) for leaf in leaves]
        lost = jnp.where(jnp.stack(read).any(), jnp.nan, 0.0)
        return jax.tree.map(lambda leaf: alike(jnp.zeros_like(leaf) + lost.astype(leaf.dtype), leaf), residuals[0])

    def second(self, residuals: Any, cotangents: Any) -> Any:
        return self.backward(residuals, cotangents)
