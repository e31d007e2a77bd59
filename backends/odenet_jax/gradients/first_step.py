"""How far the continuous adjoint is off: what it adds over the first step, beside the exact VJP of that step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import ContinuousAdjoint
from odenet.kit import DRIFT, SHARE, SMALL, add, least_change, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike
from odenet_jax.gradients.adjoint import descend, differentiated, vjp, zeros
from odenet_jax.gradients.certificate import Sketch
from odenet_jax.steps.fixed import Run, read

Changes = tuple[Leaves, Any]
"""How a costate changes over some steps, and the gradients of what they read (see `odenet_jax.gradients.adjoint.vjp`).

Where a step count divides the other, and where layers change with depth, all steps up to the first time after t0 that
both grids have read the same rows of weights.
"""


class FirstStep:
    """The comparison over the steps up to the first time after t0 that the forward and the backward grid have.

    Args:
        run: the forward solve.
        method: the continuous adjoint.
    """

    def __init__(self, run: Run, method: ContinuousAdjoint) -> None:
        self.run = run
        self.steps, self.back = method.segment(run.grid.steps)

    def none(self, y: Leaves) -> Changes:
        """No changes so far."""
        return zeros(y), jax.tree.map(jnp.zeros_like, differentiated(self.run.at(jnp.int32(0))))

    def certificate(self, y: Leaves, a: Leaves, found: Changes) -> Array:
        """The relative error of the gradient over these steps, a scalar.

        Args:
            y: the state at t0, as far as the backward pass knows it.
            a: the costate at the end of these steps.
            found: what the backward pass has made of it.
        """
        exact, exact_by_reads = self._exact(y, a)
        change, by_reads = found
        eps = max([float(jnp.finfo(leaf.dtype).eps) for leaf in a], default=0.0)
        least = least_change(eps, self.steps, self.run.grid.steps) * self._size(a)
        of_state = _ratio(self._size(subtract(exact, change)), self._size(exact), least)
        off = jax.tree.map(jnp.subtract, exact_by_reads, by_reads)
        of_weights = _ratio(self._size(off), self._size(exact_by_reads), SHARE * self._size(by_reads))
        return jnp.maximum(of_state, of_weights)

    def drift(self, start: Sketch, y: Leaves, end: Leaves, a: Leaves) -> Array:
        """What the drift of the state says of the gradient, a scalar.

        From a state that has drifted, the first step has another gradient, which the comparison there does not see.

        Args:
            start: of the state at t0.
            y: the same, integrated back.
            end: the state at t1.
            a: the costate at the end of these steps.
        """
        off = self._size(subtract(Sketch(y).rows, start.rows))
        share = DRIFT * _ratio(off, self._size(start.rows), SMALL * self._size(Sketch(end).rows))
        return jnp.where(self._size(a) == 0, 0.0, share)  # a gradient of zero is right, whatever was rebuilt

    def _exact(self, y: Leaves, a: Leaves) -> Changes:
        """By the VJPs of the network's steps, from y at t0."""
        run, first = self.run, tuple(leaf[None] for leaf in y)

        def on(y: Leaves, n: Any) -> tuple[Leaves, Leaves]:
            y = add(y, run.at(n).increment(n, y))
            return y, y

        if self.steps > 1:
            _, later = lax.scan(on, alike(y, run.weights), jnp.arange(self.steps - 1, dtype=jnp.int32))
            first = tuple(jnp.concatenate(rows) for rows in zip(first, later, strict=True))

        def back(n: Any, carry: Any) -> Any:
            g, change, by_reads = carry
            _, pull = vjp(run.at(n), lambda run, y: run.increment(n, y), read(first, n))
            part, *gradients = pull(g)
            return add(g, part), add(change, part), jax.tree.map(jnp.add, by_reads, gradients)

        return descend(back, self.steps, self.steps, (a, *self.none(y)))[1:]

    def _size(self, tree: Any) -> Array:
        return magnitude(tree, self.run.layout.time)


def magnitude(tree: Any, kind: Any) -> Array:
    """The norm of all leaves together, in units of the largest number: squares of small ones vanish in float32."""
    sizes = [jnp.abs(leaf).astype(kind) for leaf in jax.tree.leaves(tree) if leaf.size]
    if not sizes:
        return jnp.zeros((), kind)
    largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in sizes]))
    unit = jnp.where(largest > 0, largest, jnp.ones((), kind))
    return unit * jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf / unit)) for leaf in sizes])))


def _ratio(off: Array, size: Array, least: Array) -> Array:
    """How large an error is beside what it is of, or beside the least that counts."""
    return off / jnp.maximum(jnp.maximum(size, least), jnp.finfo(off.dtype).tiny)
