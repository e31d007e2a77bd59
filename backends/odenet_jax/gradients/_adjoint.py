"""What both adjoints share: a forward pass that keeps one state, and a backward pass that goes back step by step."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from odenet._step import add
from odenet_jax._field import Slot, Weights
from odenet_jax._fixed import Run, kept_rows, loop_in_place
from odenet_jax._state import Leaves

Carry = tuple[Leaves, Leaves, Any, Array]
"""State, its gradient, gradients of weights and closures so far, residual."""


class Adjoint(ABC):
    """A way back from the last state."""

    def backward(self, run: Run) -> Run:
        """The run to go back along; the forward one unless a method has a grid of its own."""
        return run

    @abstractmethod
    def step(self, run: Run, n: Any, carry: Carry, slot: Slot | None, shared: Weights, closed: Any) -> Carry:
        """From the end of step n to its start."""

    def solve(self, run: Run, y0: Leaves, weights: Weights, probe: Array) -> Leaves:
        """The leaves at the kept times, with this way back."""
        t = jnp.asarray(run.grid.t0, run.layout.time)
        field, closed = run.field.hoist(weights, t, run.layout.call(y0))
        run = dataclasses.replace(run, field=field)

        @jax.custom_vjp
        def network(y0: Leaves, weights: Weights, closed: Any, probe: Array) -> Leaves:
            return loop_in_place(run, y0, weights, closed)[0]

        def forward(y0: Leaves, weights: Weights, closed: Any, probe: Array) -> tuple[Leaves, Any]:
            ys, last = loop_in_place(run, y0, weights, closed)
            return ys, (None if run.grid.final_only else ys, last, weights, closed)

        def backward(kept: Any, gradients: Leaves) -> tuple[Any, Any, Any, Array]:
            ys, last, weights, closed = kept
            return self.back(run, ys, last, weights, closed, gradients)

        network.defvjp(forward, backward)
        return network(y0, weights, closed, probe)

    def back(
        self, run: Run, ys: Leaves | None, last: Leaves, weights: Weights, closed: Any, gradients: Leaves
    ) -> tuple[Leaves, Weights, Any, Array]:
        """Gradients with respect to y0, weights and closures, and the residual.

        Args:
            run: the forward solve.
            ys: the states at `grid.kept`, known exactly; None where that is t1 alone.
            last: the state at t1.
            weights, closed: as in the forward pass.
            gradients: of the loss with respect to the kept states.
        """
        backward = self.backward(run)
        steps = backward.grid.steps
        meet = _nothing if ys is None else _meeting(kept_rows(run.grid, steps), ys, gradients)

        def body(state: tuple[Any, Carry], _: None) -> tuple[tuple[Any, Carry], None]:
            n, carry = state
            slot = backward.field.slot(weights, n, steps)
            y, g, sums, residual = self.step(backward, n, carry, slot, weights, closed)
            y, g = meet(n, y, g)
            return (n - 1, (y, g, sums, residual)), None

        g = tuple(leaf[-1] for leaf in gradients) if run.grid.kept[-1] == run.grid.steps else _zeros(last)
        sums = jax.tree.map(jnp.zeros_like, (weights.inexact, closed))
        start = (jnp.int32(steps - 1), (last, g, sums, jnp.zeros((), run.layout.time)))
        (_, (_, g, (inexact, of_closed), residual)), _ = lax.scan(body, start, None, length=steps)
        none: Any = [np.zeros(leaf.shape, jax.dtypes.float0) for leaf in weights.other]  # JAX's tangent of an integer
        return g, Weights(inexact, none), of_closed, residual


def differentiable(slot: Slot | None, shared: Weights) -> tuple[Any, Callable[[Any], tuple[Slot | None, Weights]]]:
    """What of a step's weights a gradient goes to, and the way from other values for it to what the field reads."""
    if slot is None:
        return shared.inexact, lambda inexact: (None, Weights(inexact, shared.other))
    return (slot.start, slot.end), lambda ends: (dataclasses.replace(slot, start=ends[0], end=ends[1]), shared)


def collect(run: Run, n: Any, sums: Any, found: Any, of_closed: Any) -> Any:
    """The sums with the gradients of step n's weights and of closures added."""
    inexact, closed = sums
    return run.field.add(inexact, n, run.grid.steps, found), jax.tree.map(jnp.add, closed, of_closed)


def _zeros(y: Leaves) -> Leaves:
    return tuple(jnp.zeros_like(leaf) for leaf in y)


def _nothing(n: Any, y: Leaves, g: Leaves) -> tuple[Leaves, Leaves]:
    return y, g


def _meeting(rows: Array, ys: Leaves, gradients: Leaves) -> Callable[[Any, Leaves, Leaves], tuple[Leaves, Leaves]]:
    """At a kept time the state is known exactly, and the loss's own gradient joins."""
    padded = [jnp.concatenate([leaf, jnp.zeros_like(leaf[:1])]) for leaf in gradients]

    def meet(n: Any, y: Leaves, g: Leaves) -> tuple[Leaves, Leaves]:
        row = rows[n]
        known = row < ys[0].shape[0]
        y = tuple(jnp.where(known, kept[row], leaf) for kept, leaf in zip(ys, y, strict=True))
        return y, add(g, tuple(leaf[row] for leaf in padded))

    return meet
