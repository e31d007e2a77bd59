"""What the methods with a backward pass of their own share: a forward pass that keeps a few states, and VJPs of pieces.

Over 250 lines: the solve as a function of arrays alone is the method's, whose backward pass it calls.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import Grid, Stats, UnsupportedError
from odenet.kit import Alarm, add
from odenet_jax.field.field import Weights
from odenet_jax.field.programs import compiled, kept
from odenet_jax.field.replay import BlockContext, Replay
from odenet_jax.field.settings import Settings
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike, together
from odenet_jax.gradients.certificate import Sketch
from odenet_jax.gradients.linear_map import REMEDY, reverse_only
from odenet_jax.steps.fixed import Carried, LoopObserver, Run, kept_rows, loop_in_place, read

AnyRun = TypeVar("AnyRun", bound=Run)
Value = TypeVar("Value")
Tree = TypeVar("Tree")
Sums = Any
"""Gradients of weights and of what the field closes over, as they add up; those of a stack's rows in place."""


class Adjoint(ABC):
    """A backward pass from the last state."""

    from_end = True
    """Whether the backward pass starts from the state at t1, which is kept for it."""

    def __init__(self, stats: Stats, alarm: Alarm | None = None) -> None:
        self.stats, self.alarm = stats, alarm

    @property
    def choices(self) -> dict[str, Any]:
        """What its programs depend on: all but what belongs to one solve, and is told of by `settled`."""
        return {name: value for name, value in sorted(vars(self).items()) if name not in ("stats", "alarm")}

    def sketch(self, y0: Leaves) -> Sketch | None:
        """What the backward pass is to be given of the state at t0."""
        return None

    def keeps(self, run: Run) -> Sequence[int]:
        """The indices below N, in order, of the states that the backward pass is to be given beside the user's."""
        return ()

    def beside(self, run: Run) -> LoopObserver | None:
        """What the forward pass is to make of its states, beside the state at t1; None for nothing."""
        return None

    def discover(self, run: Run, y0: Leaves) -> None:
        """Called before a forward pass that is to be differentiated."""
        return

    @abstractmethod
    def back(
        self, run: Run, saved: SavedStates, gradients: OutputCotangents, sums: Sums
    ) -> tuple[Leaves, Sums, Array, Any]:
        """Gradients with respect to y0 and to weights, the reconstruction residual, and what `settled` looks at.

        Args:
            run: the forward solve.
            saved: what the forward pass kept.
            gradients: of the loss with respect to the states at `grid.kept`.
            sums: zeros like the gradients of weights.
        """

    def settled(self, gradients: Any, trouble: Any) -> Any:
        """What the backward pass found, if it has come to its end; what is to be said of it is said.

        Not part of a program that is kept: errors and warnings are those of this solve.

        Args:
            gradients: gradients with respect to y0, to weights, others if there are any, and the residual.
            trouble: see `back`.
        """
        return gradients

    def solve(self, run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, BlockContext | None]:
        """The leaves at the kept times, with this backward pass, and what blocks are told after it."""
        y0, traced_weights = alike((y0, run.weights))
        run = dataclasses.replace(run, weights=traced_weights)
        run = run.hoisted(y0)
        context = run.replay and run.replay.context
        weights = alike(run.weights, y0)
        moving = reverse_only((alike(y0, weights), (weights.inexact, weights.closed)), self.stats.gradient)
        arguments = (*moving, (weights.other, weights.constants, context), alike(probe, moving))
        key = run.key("gradient", type(self), self.choices)
        bare = dataclasses.replace(run, weights=Weights([], []), replay=None)
        network = self.network(bare, kept(key, lambda: self.programs(bare, key)), arguments)
        ys, state = network(*arguments)
        return ys, context and dataclasses.replace(context, state=lax.stop_gradient(state))

    def programs(self, run: Run, key: Hashable | None) -> tuple[Callable[..., Any], ...]:
        """The solve, the solve with what the backward pass needs of it, and the backward pass, as functions of arrays
        alone.

        Args:
            run: without its arrays.
            key: what they are kept by, see `odenet_jax.field.programs`.
        """

        def bound(of: Any, rest: Any) -> Run:
            (inexact, closed), (other, constants, context) = of, rest
            replay = None if context is None else Replay(context)
            return dataclasses.replace(run, weights=Weights(inexact, other, closed, constants), replay=replay)

        def primal(y0: Leaves, of: Any, rest: Any) -> Any:
            ys, _, _, context = loop_in_place(bound(of, rest), y0)
            return ys, context and context.state

        def forward(y0: Leaves, of: Any, rest: Any) -> tuple[Any, Any]:
            here = bound(of, rest)
            self.discover(here, y0)
            ys, states, end, context = loop_in_place(here, y0, self.keeps(here), self.beside(here))
            saved = SavedStates(
                states, None if run.grid.final_only else ys, end if self.from_end else None, self.sketch(y0)
            )
            return (ys, context and context.state), (saved, context)

        def backward(residuals: Any, gradients: Leaves) -> tuple[Leaves, Any, Array, Any]:
            saved, of, rest = residuals
            cotangents = OutputCotangents(run.grid, gradients, run.grid.steps)
            here = dataclasses.replace(bound(of, rest), again=True, unread=cotangents.unread(run))
            sums = jax.tree.map(jnp.zeros_like, of)
            g, sums, residual, trouble = self.back(here, saved, cotangents, sums)
            return none_unread(here, g), sums, residual, trouble

        return tuple(compiled(function, key) for function in (primal, forward, backward))

    def network(self, run: Run, programs: tuple[Callable[..., Any], ...], arguments: Any) -> Callable[..., Any]:
        """The solve as a function of arrays alone, with this backward pass; made anew for each solve, see `settled`.

        Args:
            run: without its arrays.
            programs: see there; those of a solve before it may do.
            arguments: examples.
        """
        at_once, for_way_back, way_back = programs

        def there(y0: Leaves, of: Any, rest: Any, probe: Array) -> tuple[Any, Any]:
            outputs, (saved, context) = for_way_back(y0, of, rest)
            return outputs, (saved, of, (*rest[:2], context))

        @together()
        def back(residuals: Any, gradients: Leaves) -> tuple[Leaves, Any, Array]:
            g, sums, residual, trouble = way_back(residuals, gradients)
            return self.settled((g, sums, residual), trouble)

        if run.field.collective:  # traced here, where named axes are known: JAX will call them where these are not
            (ys, _), residuals = eqx.filter_eval_shape(there, *arguments)
            back = eqx.filter_closure_convert(back, residuals, ys)
            there = eqx.filter_closure_convert(there, *arguments)

        def refusing(residuals: Any, gradients: Any) -> tuple[Leaves, Any, None, Array]:
            g, sums, residual = once(self.stats.gradient, back(residuals, gradients[0]))
            return g, sums, None, alike(residual, g, sums)

        @jax.custom_vjp
        def network(y0: Leaves, of: Any, rest: Any, probe: Array) -> Any:
            return at_once(y0, of, rest)

        settings = Settings()
        network.defvjp(settings.kept(there), settings.kept(refusing))
        return network


@dataclass(frozen=True)
class SavedStates:
    """What a forward pass kept.

    Args:
        states: those that the method asked for, stacked.
        ys: the states at `grid.kept`, stacked; None where that is t1 alone.
        end: the state at t1, or what a reversible solver needs for the backward pass, or what the method makes of the
            states (see `Adjoint.beside`); None where it is not asked for.
    """

    states: Leaves
    ys: Leaves | None
    end: Carried | Any | None
    sketch: Sketch | None = None


jax.tree_util.register_dataclass(SavedStates, ["states", "ys", "end", "sketch"], [])


class OutputCotangents:
    """Gradients of the loss with respect to kept states, which join the backward pass where it meets them.

    Args:
        grid: of the forward solve.
        gradients: at `grid.kept`, stacked.
        steps: of the backward pass, whose grid holds every kept time.
    """

    def __init__(self, grid: Grid, gradients: Leaves, steps: int) -> None:
        self.grid = grid
        self.gradients = gradients
        self.rows = None
        if not grid.final_only:
            self.rows = kept_rows([n * steps // grid.steps for n in grid.kept], steps)

    def unread(self, run: Run) -> Array | None:
        """Whether the loss reads none of them; None where another row may have read one by the name of an axis."""
        return None if run.field.collective else ~jnp.stack([jnp.any(leaf != 0) for leaf in self.gradients]).any()

    def end(self) -> Leaves:
        """The cotangent at t1; zero where y(t1) is not kept."""
        last = tuple(leaf[-1] for leaf in self.gradients)
        return last if self.grid.kept[-1] == self.grid.steps else zeros(last)

    def at(self, n: Any) -> Leaves | None:
        """That at index n, zero where it is not kept; None where nothing but y(t1) is."""
        if self.rows is None:
            return None
        return _known(self.gradients, self.rows[n], tuple(jnp.zeros_like(leaf[0]) for leaf in self.gradients))

    def join(self, n: Any, g: Leaves) -> Leaves:
        """g with that at index n, the start of step n, added."""
        gradient = self.at(n)
        return g if gradient is None else add(g, gradient)

    def known(self, n: Any, ys: Leaves | None, y: Leaves) -> Leaves:
        """y at index n as the forward pass had it, where it is kept."""
        return y if self.rows is None or ys is None else _known(ys, self.rows[n], y)


def descend(step: Callable[[Any, Any], Any], steps: int, count: int, carry: Any) -> Any:
    """`step(n, carry)` for n = steps - 1 and on downward, `count` times."""

    def body(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        n, carry = state
        return (n - 1, step(n, carry)), None

    return lax.scan(body, (jnp.int32(steps - 1), alike(carry)), None, length=count)[0][1]


def differentiated(run: Run) -> list[Any]:
    """What the step that `run` stands at reads, and what the field closes over: what `vjp` gives gradients of."""
    slot = run.slot
    return [run.weights.inexact if slot is None else (slot.start, slot.end), run.weights.closed]


def vjp(run: AnyRun, evaluate: Callable[[AnyRun, Leaves], Value], y: Leaves) -> tuple[Value, Callable[[Value], Any]]:
    """A piece of the step that `run` stands at, and its pullback.

    Returns:
        `evaluate(run, y)`, and the function from a cotangent to the part of y and, after it, the gradients of what the
        step reads (see `collect`).
    """
    slot, weights = run.slot, run.weights

    def call(y: Leaves, reads: Any, closed: Any) -> Value:
        if slot is None:
            there = dataclasses.replace(run, weights=dataclasses.replace(weights, inexact=reads, closed=closed))
        else:
            there = dataclasses.replace(
                run,
                weights=dataclasses.replace(weights, closed=closed),
                slot=dataclasses.replace(slot, start=reads[0], end=reads[1]),
            )
        return evaluate(there, y)

    return jax.vjp(call, y, *differentiated(run))


def collect(run: Run, n: Any, sums: Sums, gradients: Any) -> Sums:
    """The sums with the gradients of what step n reads added; n may be an array of steps, found stacked like it."""
    inexact, closed = sums
    reads, of_closed = none_unread(run, gradients)
    return run.field.add(inexact, n, run.grid.steps, reads), jax.tree.map(jnp.add, closed, of_closed)


def none_unread(run: Run, gradients: Tree) -> Tree:
    """What a backward pass found; zeros where the loss reads no state of the solve.

    Such a row of a `jax.vmap` has gradients of zero, but those of a step that overflowed are then 0 x inf, which is
    NaN, and shared weights would have it added to the gradients of the other rows. A step at a time, where the sum
    reads what was found anyway: of all gradients at once, each would be in memory twice.
    """
    unread = run.unread
    if unread is None:
        return gradients
    return jax.tree.map(lambda leaf: jnp.where(unread, jnp.zeros((), leaf.dtype), leaf), gradients)


def zeros(y: Leaves) -> Leaves:
    """Leaves of zeros with the shapes and number types of y."""
    return tuple(jnp.zeros_like(leaf) for leaf in y)


def _known(buffer: Leaves, row: Array, otherwise: Leaves) -> Leaves:
    """A row of a buffer; something else where there is no such row."""
    known = row < buffer[0].shape[0]
    return tuple(jnp.where(known, leaf, other) for leaf, other in zip(read(buffer, row), otherwise, strict=True))


def once(gradient: str, gradients: Any) -> Any:
    """Gradients that cannot be differentiated again: JAX would differentiate the backward pass, which is an
    approximation.

    Raises:
        UnsupportedError: when a derivative of them is asked for.
    """

    @jax.custom_jvp
    def identity(gradients: Any) -> Any:
        return gradients

    @identity.defjvp
    def refuse(primals: Any, tangents: Any) -> Any:
        raise UnsupportedError(
            f"a second derivative through gradient={gradient!r}",
            "first derivatives",
            REMEDY,
        )

    return identity(gradients)
