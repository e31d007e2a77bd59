"""Weighted sums of slopes, each leaf in its own number type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from odenet_jax.field.state import Leaves


def weigh_leaves(y: Leaves | None, h: Any, weights: Sequence[Any], slopes: Sequence[Leaves]) -> Leaves:
    """y + h sum_i weights[i] slopes[i], without y where that is None; see `odenet._solvers.step.Weigh`.

    The factors are traced numbers, which would promote leaves of a narrower type than the times'.
    """
    used = [(h * weight, slope) for weight, slope in zip(weights, slopes, strict=False) if not _zero(weight)]

    def total(i: int) -> Array:
        terms = [jnp.asarray(factor, slope[i].dtype) * slope[i] for factor, slope in used]
        result = terms[0]
        for term in terms[1:]:
            result = result + term
        return result if y is None else y[i] + result  # the sum is rounded onto y once

    return tuple(total(i) for i in range(len(slopes[0])))


def _zero(weight: Any) -> bool:
    return weight is None or (isinstance(weight, (int, float)) and weight == 0)


def only(condition: Array, leaf: Array) -> Array:
    """A leaf where the condition holds, whose axes are its first; else NaN.

    No NaN is made where none is needed, and one that stands for what there is not is no fault of a computation: under
    `jax_debug_nans` an array of them is an error, whatever is made of it.
    """
    if not isinstance(condition, Tracer) and bool(condition.all()):
        return leaf
    with jax.debug_nans(False):
        return jnp.where(condition.reshape(*condition.shape, *[1] * (leaf.ndim - condition.ndim)), leaf, jnp.nan)


def gated(condition: Any, tree: Any) -> Any:
    """A tree, to which no cotangent comes back where the condition does not hold.

    What `choose` takes from elsewhere still has a cotangent, zero, and the derivative of a function at a state where it
    overflows makes NaN of that. So the arguments of such a function are gated by the condition under which it is taken.
    """

    def of(leaf: Any) -> Any:
        return jnp.where(condition, leaf, lax.stop_gradient(leaf)) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf

    return jax.tree.map(of, tree)


def choose(condition: Any, one: Any, other: Any) -> Any:
    """`one` where the condition holds, else `other`: leaf by leaf of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)
