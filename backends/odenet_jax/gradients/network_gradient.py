"""How far the continuous adjoint of a field that jumps is off: its gradient, beside that of the network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from odenet import DiscreteAdjoint, Stats
from odenet.kit import DRIFT, ITERATIONS_BESIDE, subtract
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.adjoint import OutputCotangents, SavedStates, Sums
from odenet_jax.gradients.compared_steps import magnitude
from odenet_jax.gradients.discrete_adjoint import Reversal
from odenet_jax.steps.fixed import Run


class NetworkGradient:
    """The gradient of the network, by the discrete adjoint, beside a backward pass of the continuous one.

    Each jump that a step has crossed, on the way there or back, may change the whole gradient: two steps tell nothing
    of the others, and how far the state has drifted tells nothing of that. What the discrete adjoint rebuilds has a
    certificate of its own, which says whether the comparison is to be believed.

    It takes three evaluations and a VJP of each step, and the memory of a second costate and of second gradients of
    weights.

    Args:
        run: the forward solve.
        stats: of the solve.
        saved: what the forward pass kept, with a sketch of the state at t0.
        end: the state at t1.
        gradients, sums: see `Adjoint.back`.
    """

    def __init__(
        self, run: Run, stats: Stats, saved: SavedStates, end: Leaves, gradients: OutputCotangents, sums: Sums
    ) -> None:
        self.kind = run.layout.time
        saved = dataclasses.replace(saved, states=(), end=(end,))
        reversal = Reversal(DiscreteAdjoint(iterations=ITERATIONS_BESIDE), stats, None)
        self.g, self.sums, self.residual, _ = reversal.back(run, saved, gradients, sums)

    def certificate(self, a: Leaves, sums: Sums) -> Array:
        """The relative error of the gradient, a scalar; a is the costate at t0, and the sums are those of weights."""
        off = [self._size(subtract(a, self.g)), self._size(jax.tree.map(jnp.subtract, sums, self.sums))]
        sizes = [self._size(self.g), self._size(self.sums)]
        pairs = zip(off, sizes, strict=True)
        errors = [part / jnp.maximum(size, jnp.finfo(size.dtype).tiny) for part, size in pairs]
        error = jnp.max(jnp.stack([*errors, DRIFT * self.residual.astype(self.kind)]))
        # a gradient of zero is right, whatever was rebuilt
        return jnp.where(jnp.any(jnp.stack(off + sizes) != 0), error, 0.0)

    def _size(self, tree: Leaves | Sums) -> Array:
        return magnitude(tree, self.kind)
