"""The backward pass over the steps that an adaptive solve accepted, their sizes taken as given.

Over 250 lines: a backward pass, its stretches and the pieces between kept states are one recursion.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet.kit import add, interpolant
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.adjoint import Sums, vjp, zeros
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.fixed import read, write
from odenet_jax.steps.record import AdaptiveResult, Keep
from odenet_jax.steps.size_control import repeat
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import choose, weigh_leaves

ROWS = 64
"""States kept at once, where nothing else is said: those of the forward pass, and those computed again between two."""


@dataclass(frozen=True)
class Cotangents:
    """Gradients of the loss with respect to what a solve returned.

    Args:
        y1: with respect to the state where the solve ended.
        ts: the kept times; None where that is its end alone.
        ys: with respect to the states at these.
        y, slopes: with respect to what dense output reads, stacked; empty where nothing is.
        by_y0: whether the gradient of y0 is asked for.
    """

    y1: Leaves
    ts: Array | None
    ys: Leaves
    y: Leaves
    slopes: tuple[Leaves, ...]
    by_y0: bool = True


class BackwardPass(ABC):
    """A gradient method of adaptive solves."""

    again = False
    """Whether it has forward mode and can be differentiated again, as the steps themselves can."""
    resolve: Callable[..., Any] | None = None
    """How it can be differentiated again by solves, see `odenet_jax.gradients.adjoint_again`; None for not at all."""

    @property
    def choices(self) -> dict[str, Any]:
        """What its programs depend on."""
        return vars(self)

    @abstractmethod
    def keep(self, run: AcceptedRun, y0: Leaves, max_steps: int) -> Keep:
        """What the forward pass is to keep."""

    @abstractmethod
    def back(
        self,
        run: AcceptedRun,
        result: AdaptiveResult,
        gradients: Cotangents,
        sums: Sums,
        y0: Leaves,
        allowed: Tolerance,
    ) -> tuple[Leaves, Sums, Array, Any]:
        """Gradients with respect to y0 and to weights, the reconstruction residual, and what `settled` looks at.

        Args:
            run: along the accepted steps.
            result: the forward solve.
            gradients: of the loss.
            sums: zeros like the gradients of weights.
            y0, allowed: of the forward solve.
        """

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """The gradients, if nothing speaks against them; after those of weights come those of times."""
        return gradients


class AcceptedStepVJP:
    """The exact backward pass through one accepted step, and the outputs in it.

    Args:
        run: along the accepted steps.
        result: the forward solve.
        gradients: of the loss.
    """

    def __init__(self, run: AcceptedRun, result: AdaptiveResult, gradients: Cotangents) -> None:
        self.run = run
        self.result = result
        self.gradients = gradients
        self.event = result.position
        self.inside = gradients.ts is not None or self.event is not None or bool(gradients.slopes)
        """Whether the loss may read a state within a step."""

    def start(self) -> tuple[Leaves, Array]:
        """The gradient at the end of the last step, and the last of the outputs that were reached."""
        g = self.gradients.y1
        if self.event is not None:
            g = choose(self.event < 1, zeros(g), g)
        return g, self.result.outputs - 1

    def step(self, n: Any, go: Array, z: Leaves, g: Leaves, output: Array, sums: Sums) -> tuple[Any, ...]:
        """From the end of step n to its start.

        Args:
            n: the step.
            go: whether this row of a `jax.vmap` is to be changed.
            z: the state at its start.
            g, output, sums: gradient at its end, the last of the outputs before that, and the gradients of weights.

        Returns:
            The increment at z, and g, output and sums at its start.
        """
        here = self.run.at(n)
        if not self.inside:
            d, pull = vjp(here, lambda run, y: run.increment(0, y), z)
            part, *by_reads = pull(g)
            return d, choose(go, add(g, part), g), output, self.collect(here, go, sums, by_reads)
        (d, slopes), pull = vjp(here, piece, z)
        met = self._outputs(here, n, go, g, output, slopes)
        output, end, direct, of_slopes = met
        part, *by_reads = pull((end, of_slopes))
        g = choose(go, add(add(end, direct), part), g)
        return d, g, output, self.collect(here, go, sums, by_reads)

    def finish(self, g: Leaves, output: Array) -> Leaves:
        """The gradient at t0 with those of the outputs there."""
        if self.gradients.ts is None:
            return g
        rows = jnp.arange(self.gradients.ts.shape[0], dtype=jnp.int32) <= output

        def early(leaf: Array) -> Array:
            return jnp.where(rows.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0).sum(0)

        return add(g, tuple(early(leaf) for leaf in self.gradients.ys))

    @staticmethod
    def collect(run: AcceptedRun, go: Array, sums: Sums, gradients: Any) -> Sums:
        """The sums with the gradients of what a step reads."""
        inexact, closed = sums
        reads, of_closed = jax.tree.map(lambda leaf: jnp.where(go, leaf, 0), tuple(gradients))
        inexact = run.field.add(inexact, run.layer, run.field.intervals, reads)
        return inexact, jax.tree.map(jnp.add, closed, of_closed)

    def _outputs(self, run: AcceptedRun, n: Any, go: Array, g: Leaves, output: Array, slopes: Any) -> tuple[Any, ...]:
        """Gradients at the end of the step, at its start and of its slopes, of the outputs in it."""
        assert run.ends is not None
        of, tableau, (a, b) = self.gradients, run.solver.increments, run.ends
        direct, of_slopes = zeros(g), tuple(zeros(g) for _ in slopes)
        if of.slopes:
            met = go & (n < of.y[0].shape[0])
            direct, of_slopes = choose(met, (read(of.y, n), tuple(read(k, n) for k in of.slopes)), (direct, of_slopes))

        def join(sums: tuple[Leaves, Any], position: Array, gradient: Leaves) -> tuple[Leaves, Any]:
            weights = interpolant(tableau).weights(position)
            pairs = zip(sums[1], weights, strict=True)
            return add(sums[0], gradient), tuple(
                k if w is None else weigh_leaves(k, b - a, (w,), (gradient,)) for k, w in pairs
            )

        if self.event is not None:
            met = go & (n == self.result.pace.accepted - 1) & (self.event < 1)
            direct, of_slopes = join((direct, of_slopes), self.event, choose(met, of.y1, zeros(g)))
        if of.ts is None:
            return output, g, direct, of_slopes
        ts, sign = of.ts, run.line.sign

        def more(state: Any) -> Array:
            return go & (state[0] >= 0) & (sign * (ts[jnp.maximum(state[0], 0)] - a) > 0)

        def meet(state: Any) -> Any:
            output, end, direct, of_slopes = state
            met, row = more(state), jnp.maximum(output, 0)
            gradient, at_end = read(of.ys, row), ts[row] == b
            end = choose(met & at_end, add(end, gradient), end)
            within = choose(met & ~at_end, gradient, zeros(gradient))
            return jnp.where(met, output - 1, output), end, *join((direct, of_slopes), (ts[row] - a) / (b - a), within)

        return repeat(more, meet, (output, g, direct, of_slopes))


def piece(run: AcceptedRun, y: Leaves) -> tuple[Leaves, tuple[Leaves, ...]]:
    """The increment of a step, and the slopes that dense output reads."""
    tableau = run.solver.increments
    slopes = run.slopes(tableau, tableau.stages, y)
    d = weigh_leaves(None, run.size, tableau.b, slopes)
    if not tableau.fsal:
        slopes.append(run.slope(0, 1.0, add(y, d)))
    return d, tuple(slopes)


class RecomputedStates(BackwardPass):
    """States that the forward pass did not keep are computed again: backprop and checkpoint.

    Args:
        rows: how many the forward pass keeps, given the run and y0.
        room: how many are computed again at once, between two of these.
        again: see `BackwardPass`.
    """

    def __init__(
        self, rows: int | Callable[[AcceptedRun, Leaves], int] = ROWS, room: int = ROWS, *, again: bool = False
    ) -> None:
        self.rows, self.room = rows, room
        self.again = again

    def keep(self, run: AcceptedRun, y0: Leaves, max_steps: int) -> Keep:
        rows = self.rows if isinstance(self.rows, int) else self.rows(run, y0)
        return Keep(nodes=True, rows=min(rows, max_steps))

    def back(
        self,
        run: AcceptedRun,
        result: AdaptiveResult,
        gradients: Cotangents,
        sums: Sums,
        y0: Leaves,
        allowed: Tolerance,
    ) -> tuple[Leaves, Sums, Array, Any]:
        stretch, states = AcceptedStepVJP(run, result, gradients), result.record.states
        assert states is not None
        assert result.record.nodes is not None
        room = min(self.room, result.record.nodes.shape[0] - 1)
        empty = tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (room, *leaf.shape)) for leaf in y0)

        def segment(carry: Any) -> Any:
            end, g, output, sums, between = carry
            known = jnp.where((states.starts >= 0) & (states.starts < end), states.starts, -1)
            row = jnp.argmax(known)
            first, alive = known[row], end > 0
            least = jnp.maximum(first, end - room)  # the first step of this turn, whose states fit

            def behind(state: Any) -> Array:
                return alive & (state[0] < end - 1)

            def advance(state: Any) -> Any:
                n, y, between = state
                go = behind(state)
                between = write(between, jnp.where(go & (n >= least), n - least, room), y)
                return jnp.where(go, n + 1, n), choose(go, run.at(n).advanced(y), y), between

            _, y, between = repeat(behind, advance, (jnp.maximum(first, 0), read(states.rows, row), between))

            def ahead(state: Any) -> Array:
                return alive & (state[0] >= least)

            def descend(state: Any) -> Any:
                n, z, g, output, sums = state
                go = ahead(state)
                _, g, output, sums = stretch.step(jnp.maximum(n, 0), go, z, g, output, sums)
                before = read(between, jnp.clip(n - 1 - least, 0, room - 1))
                return jnp.where(go, n - 1, n), choose(go, before, z), g, output, sums

            _, _, g, output, sums = repeat(ahead, descend, (end - 1, y, g, output, sums))
            return jnp.where(alive, least, end), g, output, sums, between

        g, output = stretch.start()
        carry = (result.pace.accepted, g, output, sums, empty)
        _, g, output, sums, _ = repeat(lambda carry: carry[0] > 0, segment, carry)
        return stretch.finish(g, output), sums, jnp.zeros((), run.layout.time), None
