"""How far the continuous adjoint is off: what it adds over a step, beside the exact VJP of that step.

The first step is compared, where the state that is integrated back has drifted furthest, and of the others the one that
moves the state furthest.
"""

from __future__ import annotations

from dataclasses import dataclass
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
Comparison = tuple[Worst, Array]
"""The worst error so far, with its step, and the size of the costate at the end of the last segment that was seen."""


@dataclass(frozen=True)
class LargestMove:
    """The step of a forward pass that moves the state furthest, beside its size (a `LoopObserver`).

    Blocks of their own, and fields that depend on time, may do most of their work in one step, of which the first ones
    tell nothing.

    Args:
        kind: the number type of moves.
        first: the first step that counts.
    """

    kind: Any
    first: int
    from_end: ClassVar[bool] = True

    def start(self, y0: Leaves) -> tuple[Array, Array, Array]:
        """The next step, how far the furthest went, and which it was."""
        return jnp.int32(0), jnp.zeros((), self.kind), jnp.int32(self.first)

    def step(
        self, along: tuple[Array, Array, Array], before: Carried, after: Carried
    ) -> tuple[tuple[Array, Array, Array], None]:
        """The same after a step; nothing is kept of it. What is nowhere, or not finite, has not moved."""
        n, largest, place = along
        moves = [self._move(*pair) for pair in zip(before[0], after[0], strict=True) if pair[0].size]
        move = jnp.max(jnp.stack(moves)) if moves else largest
        further = (move > largest) & (n >= self.first)
        return (n + 1, jnp.where(further, move, largest), jnp.where(further, n, place)), None

    def _move(self, before: Array, after: Array) -> Array:
        off, size = (jnp.sqrt(jnp.sum(jnp.square(jnp.abs(leaf).astype(self.kind)))) for leaf in (after - before, after))
        return off / jnp.maximum(size, jnp.finfo(self.kind).tiny)


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
        # where rows of a `jax.vmap` read each other, they cannot have a step of their own
        self.several = method.compared(run.grid.steps) > 1 and not run.field.collective

    def observer(self) -> LargestMove | None:
        """What is to be made of the states of the forward pass."""
        return LargestMove(self.run.layout.time, self.steps) if self.several else None

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
            furthest: the step of the largest move, where that is compared.
            seen: what was known before.
            y: the state at its start, as far as the backward pass knows it.
            a: the costate at its end.
            changes: what the backward pass has made of it.
        """
        here = k == 0 if furthest is None else (k == 0) | (k == furthest // self.steps)

        def compared() -> tuple[Array, Array]:
            return alike((self.certificate(k, y, a, changes), self.size(a)), y, a, changes)

        def skipped() -> tuple[Array, Array]:
            return alike((jnp.zeros((), self.run.layout.time),) * 2, y, a, changes)

        # a branch and not a choice of two values under `jax.vmap` as well, whose rows may have other steps
        error, size = lax.cond(_any_row(here), compared, skipped)
        return worse(seen[0], jnp.where(here, error, 0), k * self.steps), size

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
