"""Running a block again as it ran before: the same random key, and the state that it read then.

Memory-free gradients evaluate f again. Dropout must draw the same mask, and BatchNorm must not count the batch twice.
Nothing is hidden in JAX: state and key are arguments, and here is which of them an evaluation gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from odenet import Grid, InputError, Problem, ReversibleSolver, StateError
from odenet.kit import StagedSolver, shown, staged

Place = tuple[Any, float, bool, int | None]
"""An evaluation: step, position in it, whether of a reversed step, and which of the step's, where position leaves it
open."""


@dataclass(frozen=True)
class BlockContext:
    """What the blocks of one forward pass are told beside their input.

    Args:
        state: of all blocks, leaves with a leading axis of blocks; None where blocks have none.
        key: of random numbers; evaluation i gets `fold_in(key, i)`. None where blocks draw none.
        states_read: after the forward pass, what each evaluation read of `state`, leaves with a leading axis of
            evaluations.
        order: which block stands at each place.
        linear: whether the end of a step reads the next block.
        solver: of the forward pass.
        steps: of the forward pass.
    """

    state: Any
    key: Array | None
    states_read: Any
    order: tuple[int, ...]
    linear: bool
    solver: StagedSolver
    steps: int

    def example(self) -> tuple[Any, Array | None]:
        """State and key as an evaluation gets them."""
        return _rows(self.state, 0), _key(self, 0)

    def number(self, place: Place) -> Any:
        """Which evaluation of the forward pass it is, counted from 0; that at t0 beside the steps is the last."""
        n, position, reverse, rank = place
        if rank is None:  # a two-state solver, one evaluation a step
            solver = self.solver
            apart = isinstance(solver, ReversibleSolver) and solver.evaluations_at_start and position == 0
            return jnp.int32(self.steps) if apart else n
        return n * self.solver.stages + rank + (self.solver.increments.step_stages if reverse else 0)

    def number_again(self, place: Place, stages: int, steps: int) -> Any:
        """Which evaluation of the forward pass the backward pass repeats.

        A reversed step repeats those of its step in reverse order; a backward pass by another solver, the nearest there
        is.

        Args:
            place: in the backward pass.
            stages, steps: of the backward pass.
        """
        n, _, reverse, rank = place
        if rank is None or isinstance(self.solver, ReversibleSolver):
            return self.number(place)
        rank = stages - 1 - rank if reverse else rank
        n = n if steps == self.steps else n * self.steps // steps
        return n * self.solver.stages + (rank if rank < self.solver.stages else 0)


jax.tree_util.register_dataclass(BlockContext, ["state", "key", "states_read"], ["order", "linear", "solver", "steps"])


class Replay:
    """The evaluations of a part of the solve. Made anew for each part, whose end takes from it what it left.

    Args:
        context: of the forward pass.
        state: of all blocks, at the start of the part.
    """

    def __init__(self, context: BlockContext, state: Any = None) -> None:
        self.context = context
        self.state = state
        self.read: list[Any] = []

    def first(self, place: Place, evaluate: Callable[[Any, Array | None], tuple[Any, Any]]) -> Any:
        """An evaluation of the forward pass: it reads and writes the state of its block."""
        context = self.context
        if context.state is None:
            return evaluate(None, _key(context, context.number(place)))[0]
        n, position, *_ = place
        row = jnp.asarray(np.array(context.order, np.int32))[n + int(context.linear and position == 1)]
        before = _rows(self.state, row)
        value, after = evaluate(_copy(before), _key(context, context.number(place)))
        after = lax.stop_gradient(jax.tree.map(jnp.asarray, after))
        _check_alike(before, after)
        self.state = jax.tree.map(
            lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, row, 0), self.state, after
        )
        self.read.append(before)
        return value

    def again(
        self, place: Place, stages: int, steps: int, evaluate: Callable[[Any, Array | None], tuple[Any, Any]]
    ) -> Any:
        """An evaluation of the backward pass: it reads what the forward evaluation at its place did, and writes
        nothing."""
        number = self.context.number_again(place, stages, steps)
        before = None if self.context.states_read is None else _rows(self.context.states_read, number)
        return evaluate(before, _key(self.context, number))[0]


def block_context(
    state: Any, key: Array | None, order: tuple[int, ...], kind: str, problem: Problem
) -> BlockContext | None:
    """What the blocks of a problem are told; None where that is nothing.

    Args:
        state: of all blocks, leaves with a leading axis of blocks; or None.
        key: of random numbers, or None.
        order: which block stands at each place.
        kind: of the blocks along depth, "piecewise" or "linear".
        made: the problem.

    Raises:
        StateError: the state of fewer or more blocks. InputError: what is no single random key.
    """
    if state is None and key is None:
        return None
    if key is not None:
        _require_key(key)
    count = max(order) + 1
    leaves = jax.tree.leaves(state)
    if any(getattr(leaf, "shape", ())[:1] != (count,) for leaf in leaves):
        raise StateError(
            f"a state of {[getattr(leaf, 'shape', shown(leaf)) for leaf in leaves]} for {count} blocks",
            f"leaves with a leading axis of {count}",
            "make blocks and state with ResidualStack.stateful",
        )
    assert isinstance(problem.grid, Grid)
    solver = staged(problem.solver, "blocks that are told a state or a key")
    return BlockContext(state, key, None, order, kind == "linear", solver, problem.grid.steps)


def _require_key(key: Any) -> None:
    kind, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    typed = kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key)
    if not (typed and shape == ()) and not (kind == jnp.uint32 and shape is not None and len(shape) == 1):
        what = shown(key) if shape is None else f"an array of {kind} of shape {tuple(shape)}"
        raise InputError(f"key={what}", "one random key, as of jax.random.key(0)", "jax.vmap for a key of each row")


def call(
    block: Any,
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
    state: Any = None,
    key: Array | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    """The value of a block, and its new state (None where it has none); for `axis_name` see `ResidualStack`."""
    if axis_name is not None:
        if any(leaf.ndim == 0 for leaf in jax.tree.leaves(arguments[0])):
            raise StateError(f"axis_name={shown(axis_name)} and a state without an axis", "states of shape (rows, ...)")
        rows = next(leaf.shape[0] for leaf in jax.tree.leaves(arguments[0]))
        keys = None if key is None else jax.random.split(key, rows)
        mapped = eqx.filter_vmap(
            lambda arguments, named, key: call(block, arguments, named, state, key),
            out_axes=(eqx.if_array(0), None),
            axis_name=axis_name,
        )
        return mapped(arguments, dict(named), keys)
    drawing = {} if key is None else {"key": key}
    if state is None:
        return block(*arguments, **named, **drawing), None
    return block(*arguments, state, **named, **drawing)


def after(
    context: BlockContext, state: Any, at_start: list[Any] | None = None, in_steps: list[Any] | None = None
) -> BlockContext:
    """What is known after a forward pass: the new state, and what was read.

    Args:
        context: what it was before the pass.
        state: of all blocks, as it is now.
        at_start: what evaluations at t0 beside the steps read.
        in_steps: what each evaluation of a step read, leaves with a leading axis of steps; None to forget it.
    """
    if context.state is None or not in_steps:
        return dataclasses.replace(context, state=state)
    count = len(in_steps)

    def together(*leaves: Array) -> Array:
        steps = jnp.stack(leaves[:count], 1)
        return jnp.concatenate([steps.reshape(-1, *steps.shape[2:]), *(leaf[None] for leaf in leaves[count:])])

    return dataclasses.replace(context, state=state, states_read=jax.tree.map(together, *in_steps, *(at_start or ())))


def _key(context: BlockContext, number: Any) -> Array | None:
    return None if context.key is None else jax.random.fold_in(context.key, number)


def _rows(tree: Any, row: Any) -> Any:
    return lax.stop_gradient(jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, row, keepdims=False), tree))


def _copy(tree: Any) -> Any:
    """Another tree of the same leaves: an equinox State that a block has written to is void."""
    return jax.tree.map(lambda leaf: leaf, tree)


def _check_alike(before: Any, after: Any) -> None:
    (leaves, structure), (others, other) = jax.tree.flatten(before), jax.tree.flatten(after)
    kinds = [[f"{leaf.dtype}{list(leaf.shape)}" for leaf in tree] for tree in (leaves, others)]
    if structure != other or kinds[0] != kinds[1]:
        raise StateError(
            f"a block returned the state {after} for the state {before}",
            "a state of the same tree, shapes and number types",
        )
