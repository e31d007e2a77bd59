"""How far the continuous adjoint of a field that jumps is off: its gradient, beside that of the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from odenet import DiscreteAdjoint, Stats
from odenet.kit import DRIFT, ITERATIONS_BESIDE, STATES_BESIDE, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import Cotangents, RecomputedStates
from odenet_jax.gradients.adjoint import OutputCotangents, SavedStates, Sums
from odenet_jax.gradients.compared_steps import magnitude
from odenet_jax.gradients.discrete_adjoint import Reversal
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.fixed import Run
from odenet_jax.steps.record import AdaptiveResult
from odenet_jax.steps.tolerance import Tolerance

EXACT = RecomputedStates(STATES_BESIDE, STATES_BESIDE)
"""Of an adaptive solve: what its forward pass is to keep, and the gradient of its steps."""


class NetworkGradient:
    """The gradient of the network beside a backward pass of the continuous adjoint.

    Each jump that a step has crossed, on the way there or back, may change the whole gradient: two steps tell nothing
    of the others, and how far the state has drifted tells nothing of that.

    Args:
        kind: number type of times.
        g: the gradient at t0.
        sums: the gradients of weights.
        residual: what these are off by, by how far states are off at which they were taken.
    """

    def __init__(self, kind: Any, g: Leaves, sums: Sums, residual: Array) -> None:
        self.kind, self.g, self.sums, self.residual = kind, g, sums, residual

    @classmethod
    def of_equal_steps(
        cls, run: Run, stats: Stats, saved: SavedStates, end: Leaves, gradients: OutputCotangents, sums: Sums
    ) -> NetworkGradient:
        """By the discrete adjoint, whose own certificate says whether the comparison is to be believed.

        It takes three evaluations and a VJP of each step, and the memory of a second costate and of second gradients of
        weights.

        Args:
            run: the forward solve.
            stats: of the solve.
            saved: what the forward pass kept, with a sketch of the state at t0.
            end: the state at t1.
            gradients, sums: see `Adjoint.back`.
        """
        saved = dataclasses.replace(saved, states=(), end=(end,))
        reversal = Reversal(DiscreteAdjoint(iterations=ITERATIONS_BESIDE), stats, None)
        g, sums, residual, _ = reversal.back(run, saved, gradients, sums)
        # that of all steps together is as large as the error is
        return cls(run.layout.time, g, sums, residual if run.field.together(end) else DRIFT * residual)

    @classmethod
    def of_accepted_steps(
        cls, run: AcceptedRun, result: AdaptiveResult, gradients: Cotangents, sums: Sums, y0: Leaves, allowed: Tolerance
    ) -> NetworkGradient:
        """The exact one of the steps that an adaptive solve accepted, run again from a few states: see
        `BackwardPass.back`."""
        g, sums, nothing, _ = EXACT.back(run, result, gradients, sums, y0, allowed)
        return cls(run.layout.time, g, sums, nothing)

    def certificate(self, a: Leaves, sums: Sums, *, by_y0: bool = True) -> Array:
        """The relative error of the gradient, a scalar.

        Args:
            a: the costate at t0.
            sums: those of weights.
            by_y0: whether the gradient of y0 is asked for.
        """
        g = self.g if by_y0 else ()
        off = [self._size(subtract(a, g) if by_y0 else ()), self._size(jax.tree.map(jnp.subtract, sums, self.sums))]
        sizes = [self._size(g), self._size(self.sums)]
        pairs = zip(off, sizes, strict=True)
        errors = [part / jnp.maximum(size, jnp.finfo(size.dtype).tiny) for part, size in pairs]
        error = jnp.max(jnp.stack([*errors, self.residual.astype(self.kind)]))
        # a gradient of zero is right, whatever was rebuilt
        return jnp.where(jnp.any(jnp.stack(off + sizes) != 0), error, 0.0)

    def _size(self, tree: Leaves | Sums) -> Array:
        return magnitude(tree, self.kind)
