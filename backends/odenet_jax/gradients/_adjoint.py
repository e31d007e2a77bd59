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
"""State, its gradient, gradients of what all steps read (shared weights, closures), residual."""


class Adjoint(ABC):
    """A way back from the last state."""

    def backward(self, run: Run) -> Run:
        """The run to go back along; the forward one unless a method has a grid of its own."""
        return run

    @abstractmethod
    def step(self, run: Run, n: Any, carry: Carry, slot: Slot | None, shared: Weights, closed: Any) -> tuple[Carry, Any]:
        """From the end of step n to its start: the new carry and the gradient of `slot`."""

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
            return self.back(run, *kept, gradients)

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

        def ends(inexact: Any) -> Any:
            slots = backward.field.slots(Weights(inexact, weights.other), steps)
            return None if slots is None else (slots.start, slots.end)

        slots = backward.field.slots(weights, steps)
        _, pull = jax.vjp(ends, weights.inexact)
        meet = _nothing if ys is None else _meeting(kept_rows(run.grid, steps), ys, gradients)
        fixed = jax.tree.map(jnp.zeros_like, (weights.inexact if slots is None else [], closed))

        def body(carry: tuple[Any, Carry], slot: Slot | None) -> tuple[tuple[Any, Carry], Any]:
            n, inner = carry
            (y, g, sums, residual), found = self.step(backward, n, inner, slot, weights, closed)
            y, g = meet(n, y, g)
            return (n - 1, (y, g, sums, residual)), found

        g = tuple(leaf[-1] for leaf in gradients) if run.grid.kept[-1] == run.grid.steps else _zeros(last)
        start = (jnp.int32(steps - 1), (last, g, fixed, jnp.zeros((), run.layout.time)))
        (_, (_, g, (shared, of_closed), residual)), found = lax.scan(body, start, slots, length=steps, reverse=True)
        inexact = shared if slots is None else pull(found)[0]
        return g, Weights(inexact, [_none(leaf) for leaf in weights.other]), of_closed, residual


def differentiable(slot: Slot | None, shared: Weights) -> tuple[Any, Callable[[Any], tuple[Slot | None, Weights]]]:
    """What of a step's weights a gradient goes to, and the way from other values for it to what the field reads."""
    if slot is None:
        return shared.inexact, lambda inexact: (None, Weights(inexact, shared.other))
    return (slot.start, slot.end), lambda ends: (Slot(*ends, slot.other), shared)


def collect(slot: Slot | None, sums: Any, found: Any, of_closed: Any) -> tuple[Any, Any]:
    """The new sums over steps, and the gradient of the start and end of this step's own slot."""
    shared, closed = sums
    closed = jax.tree.map(jnp.add, closed, of_closed)
    if slot is None:
        return (jax.tree.map(jnp.add, shared, found), closed), None
    return (shared, closed), found


def _none(leaf: Array) -> Any:
    """The tangent of an integer: JAX's own zero of type float0."""
    return np.zeros(leaf.shape, jax.dtypes.float0)


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
