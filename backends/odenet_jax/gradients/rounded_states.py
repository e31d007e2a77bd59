"""Checkpointing with states in few bits: each increment is kept as whole numbers times a scale a row.

Over 250 lines: what is kept, how it is decoded, and what it does to gradients are of one form.

The code is that of differential quantisation (Cutler 1952, US patent 2605361): the forward pass keeps the rounded chain
`z[n+1] = z[n] + Q(y[n+1] - z[n])`, z[0] = y[0], and the backward pass takes the same increments off z[N]. What one
increment loses is in the next one, so that z[n] is off by the rounding of one increment, however many steps follow.

Where a step makes a row less than half as large as its increment, which would be rounded too coarsely for it, the chain
of that row restarts: the row itself is kept in the increment's place, z[n+1] = Q(y[n+1]), and its scale is negative.
Going back, z[n] is then made from y[0] on by what is kept, without f: sums of n increments.

Where f jumps, an error of the states tells little of that of the gradient (`odenet_jax.field.jumps`): each VJP is taken
again, where the state is moved by as much as rounding may have moved it, and the certificate is what that changes.

Where f sees y rounded to 16 bits and nothing but y (a state of half precision, and one stage), that is kept instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from equinox.internal import unvmap_any
from jax import Array, lax
from jax.core import Tracer

from odenet import Checkpoint, Problem, Stats
from odenet.kit import add, alarm
from odenet_jax.field.state import HALF, Leaves
from odenet_jax.field.varying import alike
from odenet_jax.gradients import checkpoint
from odenet_jax.gradients.adjoint import OutputCotangents, SavedStates, Sums, collect, descend, none_unread, vjp
from odenet_jax.gradients.certificate import certify, sized_rows
from odenet_jax.gradients.runtime_errors import raised
from odenet_jax.steps.fixed import Carried, Run, Solve, read

Link = tuple[Array, Array, Array]
"""Where the chain of a leaf is: z, the largest error of a state before it, and its own error."""


@dataclass(frozen=True)
class Chains:
    """The leaves of the state as chains of rounded increments (`odenet_jax.steps.fixed.LoopObserver`).

    Args:
        method: one with bits.
        rounded_kinds: for each leaf, the number type of 16 bits that f sees, if it is kept as f sees it; or None.
    """

    method: Checkpoint
    rounded_kinds: tuple[Any, ...]
    from_end: ClassVar[bool] = False

    def start(self, y0: Leaves) -> list[Link]:
        """The first links, of which nothing is rounded."""
        parts = [_real(leaf) for leaf in y0]
        return [(part, jnp.zeros((), part.dtype), jnp.zeros((), part.dtype)) for part in parts]

    def step(self, along: list[Link], before: Carried, after: Carried) -> tuple[list[Link], list[tuple[Array, Array]]]:
        """The next links, and the codes of what they add."""
        taken = [
            self.take(link, leaf) if kind is None else ((leaf, *link[1:]), (link[0].astype(kind), jnp.zeros(0, kind)))
            for link, leaf, kind in zip(along, after[0], self.rounded_kinds, strict=True)
        ]
        return [link for link, _ in taken], [code for _, code in taken]

    def take(self, link: Link, leaf: Array) -> tuple[Link, tuple[Array, Array]]:
        """A link on, and the code of the increment: whole numbers and their scales."""
        z, error, known = link
        y, axes, most = _real(leaf), rows(self.method, leaf), 2 ** ((self.method.bits or 0) - 1) - 1
        lost = y - z
        of_lost, of_y = (jnp.max(jnp.abs(x), axes, keepdims=True) for x in (lost, y))
        restart = 2 * of_y < of_lost
        scale = jnp.maximum(jnp.where(restart, of_y, of_lost) / most, jnp.finfo(y.dtype).tiny)
        # of a scale in 8 bits no more than a part in 500 is lost, and the rounded chain is made with what is left
        # (XLA takes out a conversion to a narrower type and back)
        short = self.method.bits == 8 and scale.dtype == jnp.float32
        unit = lax.reduce_precision(scale, 8, 7) if short else scale
        # NaN and infinity stay in the scale
        code = jnp.clip(jnp.round(jnp.where(restart, y, lost) / unit), -most, most)
        z = jnp.where(restart, 0, z) + code * unit
        unit = jnp.where(restart, -unit, unit)
        saved = code.astype(f"int{self.method.bits}"), unit.astype(jnp.bfloat16) if short else unit
        # no VJP is taken at the last state
        return (z, jnp.maximum(error, known), relative(y - z, y, axes)), saved


class RoundedStates(checkpoint.Recomputation):
    """Back from the rounded state at the end, an increment at a time."""

    from_end = True

    def keeps(self, run: Run) -> Sequence[int]:
        return (0,)

    def beside(self, run: Run) -> Chains:
        halves = self.method.bits == 16 and run.solver.stages == 1
        return Chains(self.method, tuple(kind if halves and kind in HALF else None for kind in run.layout.dtypes))

    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        assert saved.end is not None
        end: Any = saved.end
        steps, (_, links, codes) = run.grid.steps, end
        y0 = tuple(leaf[0] for leaf in saved.states)
        starts = [_real(leaf) for leaf in y0]
        jumping = run.field.jumps(y0)

        def step(n: Any, carry: Any) -> Any:
            z, g, sums, change = carry
            z = [_before(leaf, start, code, n) for leaf, start, code in zip(z, starts, codes, strict=True)]
            y = tuple(_like(leaf, first) for leaf, first in zip(z, y0, strict=True))
            here = run.at(n)
            part, *by_reads = _pulled(here, n, y, g)
            if jumping:
                moved = tuple(map(_like, _moved(tuple(z), codes, n), y0))
                part_moved, *by_moved = _pulled(here, n, moved, g)
                change = change.with_step((part, by_reads), (part_moved, by_moved))
            return z, gradients.join(n, part), collect(here, n, sums, by_reads), change

        change = _Change(*(jnp.zeros((), run.layout.time),) * 2)
        z, g, sums, change = descend(step, steps, steps, ([z for z, _, _ in links], gradients.end(), sums, change))
        # what the forward pass knows, and how far rounding has carried the backward pass from y0
        every = [rows(self.method, first) for first in y0]
        drifts = [
            relative(leaf - start, sized_rows(start, end, axes), axes)
            for leaf, start, (end, *_), axes in zip(z, starts, links, every, strict=True)
        ]
        errors = [(error + drift).astype(run.layout.time) for (_, error, _), drift in zip(links, drifts, strict=True)]
        certificate = functools.reduce(jnp.maximum, errors)
        if jumping:
            # between two states that are a part e apart lies a part e of all jumps; on which side of these a state is,
            # is a matter of chance, whose error is the root of their part: more than a change that may have met none
            certificate = jnp.maximum(jnp.sqrt(certificate), change.relative(sums))
        last = tuple(map(_like, (z for z, _, _ in links), y0))
        missed = self.missed(run, 0, y0, last) if run.field.calls_host() else None
        return g, sums, certificate, (none_unread(run, certificate), missed)

    def settled(self, gradients: tuple[Leaves, Sums, Array], trouble: Any) -> tuple[Leaves, Sums, Array]:
        """What the backward pass found, if the certificate is within the tolerance.

        Raises:
            GradientError: it is not; a compiled program raises a RuntimeError of this message when it runs.
        """
        tolerance, (certificate, missed) = self.method.tolerance, trouble
        gradients = super().settled(gradients, missed)
        if tolerance is None:
            worst = (certificate, jnp.int32(-1))
            return certify(self.stats, self.alarm, self.stats.steps, worst, gradients, "rounded states")
        if not isinstance(certificate, Tracer):
            if not (reached := float(certificate)) <= tolerance:
                raise self.method.off(reached)
            return gradients
        return raised(gradients, ~(certificate <= tolerance), self.method.off())


class _Change(NamedTuple):
    """How much states that were moved have changed the backward pass: sums of squares over its steps.

    Attributes:
        of_costate: of what a step changed in the costate, relatively.
        of_weights: of what it changed in the gradients of weights.
    """

    of_costate: Array
    of_weights: Array

    def with_step(self, here: tuple[Leaves, Any], moved: tuple[Leaves, Any]) -> _Change:
        """With one step more: its costate and gradients of weights, and those from where the state was moved to."""
        changed = jax.tree.map(jnp.subtract, moved, here)
        (costate, weights), of = map(_square, changed), _square(here[0])
        ratio = jnp.where(of > 0, costate / jnp.where(of > 0, of, 1), 0)
        return _Change(self.of_costate + ratio, self.of_weights + weights)

    def relative(self, sums: Sums) -> Array:
        """The relative error of the gradients that a change of this size is, of y0's or of all weights'."""
        of = _square(sums)
        ratio = jnp.where(of > 0, self.of_weights / jnp.where(of > 0, of, 1), 0)
        return jnp.sqrt(jnp.maximum(self.of_costate, ratio))


def _square(tree: Any) -> Array:
    return sum((jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree)), jnp.zeros(()))


def _pulled(run: Run, n: Any, y: Leaves, g: Leaves) -> Any:
    """The costate before step n, at y, and the gradients of what the step reads."""
    return vjp(run, lambda run, y: add(y, run.increment(n, y)), y)[1](g)


def _moved(z: Leaves, codes: Any, n: Any) -> Leaves:
    """The rounded leaves before step n, each number moved at random by up to twice what it may have been rounded by:
    at t0, and where leaves are kept whole, by nothing."""

    def moved(i: int, leaf: Array, saved: Leaves) -> Array:
        _, scale = read(saved, jnp.maximum(n - 1, 0))
        if not scale.size:
            return leaf
        by = jnp.where(n > 0, jnp.abs(scale.astype(leaf.dtype)), 0)
        key = jax.random.fold_in(jax.random.key(i), n)
        return leaf + by * alike(jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1), leaf)

    return tuple(moved(i, leaf, saved) for i, (leaf, saved) in enumerate(zip(z, codes, strict=True)))


def rows(method: Checkpoint, leaf: Array) -> tuple[int, ...]:
    """The axes of a leaf's rows; real and imaginary part of a number, which make one axis more, are of one row."""
    return tuple(range(-method.row(leaf.shape) - jnp.iscomplexobj(leaf), 0))


def relative(defect: Array, y: Array, axes: tuple[int, ...]) -> Array:
    """The largest |defect| / |y| of a row, Euclidean."""
    wrong, sizes = (jnp.sqrt(jnp.sum(part * part, axes)) for part in (defect, y))
    return jnp.max(wrong / jnp.maximum(sizes, jnp.finfo(sizes.dtype).tiny))


def _before(z: Array, start: Array, saved: Leaves, n: Any) -> Array:
    """The rounded leaf before step n, from that after it."""
    code, scale = read(saved, n)
    if jnp.issubdtype(code.dtype, jnp.floating):
        return code.astype(z.dtype)
    restart = scale < 0

    def on(m: Any, there: Array) -> Array:
        code, scale = read(saved, m)
        scale = scale.astype(z.dtype)
        return jnp.where(scale < 0, 0, there) + code.astype(z.dtype) * jnp.abs(scale)

    # where no chain restarted in step n that is no step
    there = lax.fori_loop(0, jnp.where(unvmap_any(jnp.any(restart)), n, 0), on, alike(start, z, saved))
    return jnp.where(restart, there, z - code.astype(z.dtype) * scale.astype(z.dtype))


def _real(leaf: Array) -> Array:
    return jnp.stack([leaf.real, leaf.imag], -1) if jnp.iscomplexobj(leaf) else leaf


def _like(leaf: Array, first: Array) -> Array:
    return jax.lax.complex(leaf[..., 0], leaf[..., 1]) if jnp.iscomplexobj(first) else leaf


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by checkpointing, of whole states or of rounded ones."""
    method = problem.gradient
    assert isinstance(method, Checkpoint)
    return (
        checkpoint.fixed(problem, stats)
        if method.bits is None
        else RoundedStates(method, stats, alarm(problem.field)).solve
    )
