"""How far the continuous adjoint is off: what it adds over a step, beside the exact VJP of that step.

The first step is compared, where the state that is integrated back has drifted furthest, and of the others the one that
moves the state furthest.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from odenet import ContinuousAdjoint
from odenet.kit import DRIFT, SHARE, SMALL, add, least_change, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike
from odenet_jax.gradients.adjoint import descend, differentiated, vjp, zeros
from odenet_jax.gradients.certificate import Sketch, Worst, worse
from odenet_jax.steps.fixed import Carried, Run, read

Changes = tuple[Leaves, Any]
"""How a costate changes over some steps, and the gradients of what they read (see `odenet_jax.gradients.adjoint.vjp`).

Where a step count divides the other, and where layers change with depth, all steps between two neighbouring times that
both grids have read the same rows of weights.
"""
Along = tuple[Array, Array, Array]
"""What is carried along the forward pass: the next step, how far the furthest went, and which it was."""
Comparison = tuple[Worst, Array]
"""The worst error so far, with its step, and the size of the costate at the end of the last segment that was seen."""


class LargestMove:
    """The step of a forward pass that moves the state furthest, beside its size (a `LoopObserver`).

    Blocks of their own, and fields that depend on time, may do most of their work in one step, of which the first ones
    tell nothing.

    Args:
        run: the forward solve.
        first: the first step that counts.
    """

    from_end: ClassVar[bool] = True

    def __init__(self, run: Run, first: int) -> None:
        self.kind, self.first = run.layout.time, first
        self.weights = lax.stop_gradient(jax.tree.leaves(run.weights))

    def start(self, y0: Leaves) -> Along:
        """The next step, how far the furthest went, and which it was."""
        return jnp.int32(0), jnp.zeros((), self.kind), jnp.int32(self.first)

    def step(self, along: Along, before: Carried, after: Carried) -> tuple[Along, None]:
        """The same after a step, of which nothing is kept. What is nowhere, or not finite, has not moved."""
        n, largest, place = along
        leaves = zip(before[0], after[0], strict=True)
        pairs = [(self._square(end - start), self._square(end)) for start, end in leaves if end.size]
        if not pairs:
            return (n + 1, largest, place), None
        off, size = (lax.stop_gradient(jnp.stack(column)) for column in zip(*pairs, strict=True))
        move = _ratio_of_rows(off, size, self.weights)
        further = (move > largest) & (n >= self.first)
        place = place + further.astype(place.dtype) * (n - place)  # by arithmetic, as in `worse`
        return (n + 1, jnp.where(further, move, largest), place), None

    def _square(self, leaf: Array) -> Array:
        return jnp.sum(jnp.square(jnp.abs(leaf).astype(self.kind)))


@custom_vmap
def _ratio_of_rows(off: Array, size: Array, weights: Any) -> Array:
    """The largest of some changes, beside the sizes of what they are of, all squared.

    Rows of a `jax.vmap` that read the same weights have one in common, as rows of one state do: as many steps are
    compared as there are different ones. Those with weights of their own, an ensemble's, have one each.
    """
    return jnp.max(off / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


@_ratio_of_rows.def_vmap
def _ratios_of_rows(rows: int, mapped: Any, off: Array, size: Array, weights: Any) -> tuple[Array, bool]:
    *ours, of_weights = mapped
    if any(jax.tree.leaves(of_weights)):
        return jnp.max(off / jnp.maximum(size, jnp.finfo(size.dtype).tiny), -1), True
    off, size = (jnp.sum(leaf, 0) if batched else leaf * rows for leaf, batched in zip((off, size), ours, strict=True))
    return _ratio_of_rows(off, size, weights), False


class ComparedSteps:
    """The comparison over segments: the steps between two neighbouring times that both the forward and the backward
    grid have.

    Args:
        run: the forward solve.
        method: the continuous adjoint.
    """

    def __init__(self, run: Run, method: ContinuousAdjoint) -> None:
        self.run = run
        self.steps, self.back = method.segment(run.grid.steps)
        # where rows read each other, on one device or on several, all of them have to take the same branch at the same
        # step: the last one is compared in the place of the one that moves the state furthest
        several, collective = method.compared(run.grid.steps) > 1, run.field.collective
        self.several = several and not collective
        self.last = run.grid.steps // self.steps - 1 if several and collective else 0

    def observer(self) -> LargestMove | None:
        """What is to be made of the states of the forward pass."""
        return LargestMove(self.run, self.steps) if self.several else None

    def nothing(self) -> Comparison:
        """Nothing compared so far."""
        zero = jnp.zeros((), self.run.layout.time)
        return (zero, jnp.int32(0)), zero

    def look(
        self, k: Any, furthest: Array | None, seen: Comparison, y: Leaves, a: Leaves, changes: Changes
    ) -> Comparison:
        """What is known once the backward pass has gone over segment k.

        Args:
            k: which; 0 is that at t0.
            furthest: the segment of the largest move, where that is compared.
            seen: what was known before.
            y: the state at its start, as far as the backward pass knows it.
            a: the costate at its end.
            changes: what the backward pass has made of it.
        """
        here = (k == 0) | (k == (self.last if furthest is None else furthest))

        def compared() -> Comparison:
            error = jnp.where(here, self.certificate(k, y, a, changes), 0)
            return alike((worse(seen[0], error, k * self.steps), self.size(a)), seen, y, a, changes)

        def skipped() -> Comparison:
            return alike(seen, y, a, changes)

        # a branch and not a choice of two values under `jax.vmap` as well, whose rows may have other steps
        return lax.cond(_any_row(here), compared, skipped)

    def none(self, y: Leaves) -> Changes:
        """No changes so far."""
        return zeros(y), jax.tree.map(jnp.zeros_like, differentiated(self.run.at(jnp.int32(0))))

    def certificate(self, k: Any, y: Leaves, a: Leaves, changes: Changes) -> Array:
        """The relative error of the gradient over segment k, a scalar; for the arguments see `look`."""
        exact, exact_by_reads = self._exact(k, y, a)
        change, by_reads = changes
        eps = max([float(jnp.finfo(leaf.dtype).eps) for leaf in a], default=0.0)
        least = least_change(eps, self.steps, self.run.grid.steps) * self.size(a)
        of_state = _ratio(self.size(subtract(exact, change)), self.size(exact), least)
        off = jax.tree.map(jnp.subtract, exact_by_reads, by_reads)
        of_weights = _ratio(self.size(off), self.size(exact_by_reads), SHARE * self.size(by_reads))
        return jnp.maximum(of_state, of_weights)

    def drift(self, start: Sketch, y: Leaves, end: Leaves, size: Array) -> Array:
        """What the drift of the state says of the gradient, a scalar.

        From a state that has drifted, the first step has another gradient, which the comparison there does not see.

        Args:
            start: of the state at t0.
            y: the same, integrated back.
            end: the state at t1.
            size: of the costate at the end of the first segment.
        """
        off = self.size(subtract(Sketch(y).rows, start.rows))
        share = DRIFT * _ratio(off, self.size(start.rows), SMALL * self.size(Sketch(end).rows))
        return jnp.where(size == 0, 0.0, share)  # a gradient of zero is right, whatever was rebuilt

    def _exact(self, k: Any, y: Leaves, a: Leaves) -> Changes:
        """By the VJPs of the network's steps, from y at the start of segment k."""
        run, start = self.run, k * self.steps

        def pulled(n: Any, y: Leaves, g: Leaves) -> Changes:
            _, pull = vjp(run.at(n), lambda run, y: run.increment(n, y), y)
            part, *gradients = pull(g)
            return part, gradients

        if self.steps == 1:
            return pulled(start, y, a)

        def on(y: Leaves, n: Any) -> tuple[Leaves, Leaves]:
            y = add(y, run.at(n).increment(n, y))
            return y, y

        within = start + jnp.arange(self.steps - 1, dtype=jnp.int32)
        _, later = lax.scan(on, alike(y, run.weights), within)
        states = tuple(jnp.concatenate([leaf[None], rows]) for leaf, rows in zip(y, later, strict=True))

        def back(i: Any, carry: Any) -> Any:
            g, changes = carry
            part, gradients = pulled(start + i, read(states, i), g)
            return add(g, part), jax.tree.map(jnp.add, changes, (part, gradients))

        return descend(back, self.steps, self.steps, (a, self.none(y)))[1]

    def size(self, tree: Any) -> Array:
        """The norm of all leaves together, in the times' number type."""
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


@custom_vmap
def _any_row(flag: Array) -> Array:
    """Whether the flag is set in any row of the `jax.vmap`s that this is in: the same for all rows."""
    return flag


@_any_row.def_vmap
def _any_of_rows(size: int, mapped: Any, flags: Array) -> tuple[Array, bool]:
    return _any_row(jnp.any(flags)), False
