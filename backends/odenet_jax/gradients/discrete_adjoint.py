"""The discrete adjoint: rebuild y[n] from y[n+1], and take step n's exact VJP at the rebuilt point.

Sander, Ablin, Peyre 2022, section 4.1; the correction is this library's (docs/mathematics.md).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet import DiscreteAdjoint
from odenet._step import add, subtract
from odenet_jax._field import Slot, Weights
from odenet_jax._fixed import Run
from odenet_jax._state import Leaves
from odenet_jax.gradients._adjoint import Adjoint, Carry, collect, differentiable


class Reversal(Adjoint):
    """Backward from y[N], a step at a time."""

    def __init__(self, method: DiscreteAdjoint) -> None:
        self.method = method

    def step(self, run: Run, n: Any, carry: Carry, slot: Slot | None, shared: Weights, closed: Any) -> Carry:
        """See `Adjoint.step`."""
        y, g, sums, residual = carry
        z = self.predict(run, n, y, slot, shared, closed)
        weights, read = differentiable(slot, shared)
        d, pull = jax.vjp(lambda z, w, closed: run.increment(n, z, *read(w), closed), z, weights, closed)
        part, found, of_closed = pull(g)
        sums = collect(run, n, sums, found, of_closed)
        before = subtract(y, d)
        residual = jnp.maximum(residual, _relative(subtract(before, z), y).astype(residual.dtype))
        return before if self.method.correct else z, add(g, part), sums, residual

    def predict(self, run: Run, n: Any, y: Leaves, slot: Slot | None, shared: Weights, closed: Any) -> Leaves:
        """z, near the y[n] with `y[n] + D_n(y[n]) = y`."""
        z = add(y, run.increment(n, y, slot, shared, closed, reverse=True))
        for _ in range(self.method.iterations - 1):
            z = subtract(y, run.increment(n, z, slot, shared, closed))
        return z


def _relative(defect: Leaves, y: Leaves) -> Array:
    """|defect| / |y|, Euclidean over all leaves."""
    size = _norm(y)
    return _norm(defect) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


def _norm(leaves: Leaves) -> Array:
    return functools.reduce(jnp.hypot, (jnp.linalg.norm(leaf.ravel()) for leaf in leaves))
