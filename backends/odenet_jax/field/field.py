"""The field along depth, and the arrays that its gradient goes to.

Over 250 lines: what the field closes over is made weights where it is called, in one piece with how it is called.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.core import Jaxpr

from odenet import Depth
from odenet.kit import Kind, blend, called, check_alike
from odenet_jax.field import switches
from odenet_jax.field.host_calls import calls_host
from odenet_jax.field.jumps import jumps
from odenet_jax.field.kinks import kinked
from odenet_jax.field.linearity import linear
from odenet_jax.field.module_writes import with_unwritten_modules
from odenet_jax.field.repeatable import repeatable
from odenet_jax.field.state import HALF, Leaves, as_array, flattened, require_arrays, require_like, stacked

Arrays = list[Array]


@dataclass(frozen=True)
class Weights:
    """The arrays that a field reads beside time and state.

    Args:
        inexact: those of the tree of weights that a gradient goes to.
        other: its others (integers, booleans).
        closed: what the field closes over and a gradient goes to (see `Field.hoist`).
        constants: what else it closes over.
    """

    inexact: Arrays
    other: Arrays
    closed: Arrays = dataclasses.field(default_factory=list)
    constants: Arrays = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Slot:
    """What one step reads of weights that change with depth.

    Args:
        start: at the start of its layer or interval.
        end: at the end of its interval, for weights that are linear in depth.
        other: what cannot be interpolated (integers, booleans, random keys), from the start of the step to its end.
        other_end: at its end, for weights that are linear in depth: that of the next block, where the step reaches it.
        part: which part of its interval the step is, counted from 0; None where it is not cut.
        parts: how many steps the interval is cut into.
    """

    start: Arrays
    end: Arrays | None
    other: Arrays
    other_end: Arrays | None = None
    part: Any = None
    parts: int = 1

    def at(self, position: Any, weights: Weights) -> Weights:
        """Those of all `weights` that hold at `position` in [0, 1] of the step."""
        mixed = self.start
        if self.end is not None and isinstance(position, Array):  # of an adaptive solve, whose steps are its own choice
            places = [position.astype(leaf.real.dtype) for leaf in self.start]
            pairs = zip(places, self.start, self.end, strict=True)
            mixed = [(1 - place) * a + place * b for place, a, b in pairs]
        elif self.end is not None and self.parts == 1:
            mixed = blend(self.start, self.end, position)
        elif self.end is not None:
            mixed = []
            for a, b in zip(self.start, self.end, strict=True):
                local = (jnp.asarray(self.part, a.real.dtype) + position) / self.parts
                mixed.append((1 - local) * a + local * b)
        # the next block's at its very place; an adaptive solve stops at nodes, where it reads what held before
        within = self.other_end is None or isinstance(position, Array) or float(position) < 1
        other = self.other if within else self.other_end or []
        return dataclasses.replace(weights, inexact=mixed, other=other)


jax.tree_util.register_dataclass(Weights, ["inexact", "other", "closed", "constants"], [])
jax.tree_util.register_dataclass(Slot, ["start", "end", "other", "other_end", "part"], ["parts"])


@dataclass(frozen=True)
class Field:
    """`f(t, y, w)` as a pure function of every array that a gradient goes to.

    Args:
        function: `function(t, y, weights)`, the weights being those of one place; `function(t, y, weights, state, key)`
            to a slope and the new state, where blocks are told these (see `odenet_jax.field.replay`).
        kind: of the weights along depth.
        intervals: layers or intervals; 1 for shared weights.
        collective: whether it reads other rows of a `jax.vmap`, by the name of its axis (known once it is hoisted).
        program: of it, whose arguments are t, the leaves of y and others (known once it is hoisted).
        key: what it computes, once it is hoisted outside of `jax.jit` and if that can be told (see `field.programs`).
        fixed: the constants of its program, None for those that are being traced.
    """

    function: Callable[..., Any]
    kind: Kind
    intervals: int
    collective: bool = False
    program: Jaxpr | None = None
    key: Hashable | None = None
    fixed: Sequence[Any] = dataclasses.field(default=(), compare=False)

    def jumps(self, y: Leaves) -> bool:
        """Whether it jumps with its state, whose leaves these are (see `jumps`; and `switches`, where it compares)."""
        if self.program is None:
            return False
        state = slice(1, 1 + len(y))
        return jumps(self.program, state) or switches.jumps(self.program, state, self.fixed)

    def kinked(self, y: Leaves) -> bool:
        """Whether its derivative jumps with its state, whose leaves these are, where it does not (see `kinks`)."""
        return self.program is not None and kinked(self.program, slice(1, 1 + len(y)), self.fixed)

    def calls_host(self) -> bool:
        """Whether it reads what the host returns, which may be another number when steps run again."""
        return self.program is not None and calls_host(self.program)

    def together(self, y: Leaves) -> bool:
        """Whether the steps of a field that jumps count together: they share their weights, and it does not divide by
        what may vanish, where one of them may be off by any amount."""
        assert self.program is not None
        return self.kind == "shared" and not jumps(self.program, slice(1, 1 + len(y)), by_division=True)

    def compared_whole(self, y: Leaves) -> bool:
        """Whether what is known at a few states and steps tells nothing of a gradient along other steps: the field
        jumps between them, or its pullback is not linear (see `odenet_jax.field.linearity`)."""
        return self.jumps(y) or (self.program is not None and not linear(self.program))

    def slots(self, weights: Weights, steps: int) -> Slot | None:
        """The weights of all steps, stacked to be scanned over and differentiated by JAX in O(steps); None if shared.

        Indexing inside the scan would cost a derivative O(steps^2): a zero array of all layers at every step.
        """
        if self.kind == "shared":
            return None
        fitted, k = weights.inexact, steps // self.intervals
        if k > 1 and fitted:
            fitted = Depth(fitted, self.kind).refine(k).tree
        other = [jnp.repeat(leaf[: self.intervals], k, axis=0) if k > 1 else leaf[:steps] for leaf in weights.other]
        if self.kind == "piecewise":
            return Slot(fitted, None, other)
        ends = [jnp.repeat(leaf, k, axis=0)[1 : 1 + steps] if k > 1 else leaf[1:] for leaf in weights.other]
        return Slot([leaf[:-1] for leaf in fitted], [leaf[1:] for leaf in fitted], other, ends)

    def slot(self, weights: Weights, n: Any, steps: int) -> Slot | None:
        """The weights of step n, read in place, no copy of the rest: for loops that JAX does not differentiate."""
        if self.kind == "shared":
            return None
        k = steps // self.intervals
        m = n // k

        def row(leaf: Array, index: Any) -> Array:
            return lax.dynamic_index_in_dim(leaf, index, keepdims=False)

        start = [row(leaf, m) for leaf in weights.inexact]
        other = [row(leaf, m) for leaf in weights.other]
        if self.kind == "piecewise":
            return Slot(start, None, other)
        end = [row(leaf, m + 1) for leaf in weights.inexact]
        ends = [row(leaf, (n + 1) // k) for leaf in weights.other]
        return Slot(start, end, other, ends, n % k if k > 1 else None, k)

    def rows(self, weights: Weights, indices: Array, steps: int) -> Slot | None:
        """The weights of several steps, copied and stacked."""
        return None if self.kind == "shared" else jax.vmap(lambda n: self.slot(weights, n, steps))(indices)

    def add(self, sums: Arrays, n: Any, steps: int, gradient: Any) -> Arrays:
        """The gradients `sums` of all weights with that of step n's `(start, end)` (or of shared weights) added."""
        if self.kind == "shared":
            return [total + part for total, part in zip(sums, gradient, strict=True)]
        m = n // (steps // self.intervals)
        start, end = gradient
        sums = [total.at[m].add(part) for total, part in zip(sums, start, strict=True)]
        return sums if end is None else [total.at[m + 1].add(part) for total, part in zip(sums, end, strict=True)]

    def __call__(self, t: Any, y: Any, position: Any, slot: Slot | None, weights: Weights, *context: Any) -> Any:
        """The slope at `position` in [0, 1] of the step that reads `slot`, or shared weights where there is none."""
        return self.function(t, y, weights if slot is None else slot.at(position, weights), *context)

    def hoist(self, weights: Weights, t: Any, y: Any, *context: Any) -> tuple[Field, Weights]:
        """The field with the traced values that it closes over made weights.

        A gradient of our own must see them: JAX would otherwise give them none, or find them gone when it goes back.

        Args:
            weights: of all depths.
            t, y, context: examples of what it is called with.
        """
        example = weights
        if self.kind != "shared":
            inexact, other = jax.eval_shape(
                lambda: jax.tree.map(lambda leaf: leaf[0], (weights.inexact, weights.other))
            )
            example = Weights(inexact, other)
        function = self.function

        def traced(*arguments: Any) -> Any:
            value = function(*arguments)
            slope = value[0] if context else value  # what was told is returned beside it
            require_like(slope, arguments[1])
            require_arrays(slope)
            return value

        pure, key = repeatable("field", traced, t, y, example, *context)
        leaves, structure = jax.tree.flatten(pure)
        places = [_place(leaf, whole=key is not None) for leaf in leaves]
        closed = [leaf for leaf, place in zip(leaves, places, strict=True) if place == 1]
        # a copy of NumPy's, which may be written to before the backward pass reads it
        constants = [
            leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)
            for leaf, place in zip(leaves, places, strict=True)
            if place == 2
        ]
        kinds = [leaf.dtype if place == 1 else None for leaf, place in zip(leaves, places, strict=True)]
        others = [None if place else leaf for leaf, place in zip(leaves, places, strict=True)]  # no tracer is left

        def rebuilt(t: Any, y: Any, w: Weights, *context: Any) -> Any:
            first, second = iter(w.closed), iter(w.constants)
            picked: list[Any] = [
                leaf if not place else next(first) if place == 1 else next(second)
                for leaf, place in zip(others, places, strict=True)
            ]
            picked = [
                leaf.astype(kind) if kind is not None and leaf.dtype != kind else leaf
                for leaf, kind in zip(picked, kinds, strict=True)
            ]
            return jax.tree.unflatten(structure, picked)(t, y, Weights(w.inexact, w.other), *context)

        key = key and (key, tuple(places), self.kind, self.intervals)
        fixed = tuple(None if isinstance(leaf, Tracer) else leaf for leaf in pure.consts)
        hoisted = dataclasses.replace(
            self, function=rebuilt, collective=pure.collective, program=pure.jaxpr, key=key, fixed=fixed
        )
        return hoisted, Weights(weights.inexact, weights.other, widened(closed), constants)


def field(function: Callable[..., Any], depth: Depth | None) -> tuple[Field, Weights]:
    """A field and its weights, a list of layers stacked.

    Raises:
        DtypeError: float64 NumPy weights while JAX has 64-bit numbers switched off.
        DepthError: layers that cannot be stacked.
    """
    form = "field(t, y), since there are no weights" if depth is None else "field(t, y, w), since there are weights"
    allowed = f"a field that can be called as {form}"
    if depth is None:
        return Field(lambda t, y, weights: called(function, (t, y), "field", allowed), "shared", 1), Weights([], [])
    one = depth.tree if depth.kind == "shared" or depth.stacked else depth.tree[0]
    leaves, structure = flattened(one, "weights")
    if not (depth.kind == "shared" or depth.stacked):
        check_alike(depth.tree)
        columns = zip(*(jax.tree.leaves(layer) for layer in depth.tree), strict=True)
        leaves = [_layers(column) if _is_array(column[0]) else column[0] for column in columns]
    arrays = [as_array("weight", leaf) if _is_array(leaf) else leaf for leaf in leaves]
    inexact = [_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in arrays]

    def tree_of(weights: Weights) -> Any:
        first, second = iter(weights.inexact), iter(weights.other)
        picked = [
            next(first).astype(leaf.dtype) if grad else next(second) if _is_array(leaf) else leaf
            for leaf, grad in zip(arrays, inexact, strict=True)
        ]
        return jax.tree.unflatten(structure, picked)

    def along(t: Any, y: Any, weights: Weights, *context: Any) -> Any:
        return with_unwritten_modules(
            lambda tree: called(function, (t, y, tree, *context), "field", allowed), tree_of(weights)
        )

    result = Field(along, depth.kind, depth.intervals or 1)
    others = [leaf for leaf, grad in zip(arrays, inexact, strict=True) if _is_array(leaf) and not grad]
    differentiated = [leaf for leaf, grad in zip(arrays, inexact, strict=True) if grad]
    return result, Weights(widened(differentiated) if depth.kind == "shared" else differentiated, others)


def widened(leaves: Arrays) -> Arrays:
    """Half-precision arrays that every step reads, in float32: the gradients of the steps are summed as wide as that,
    and rounded once. The field is called with them as they were."""
    return [leaf.astype(jnp.float32) if leaf.dtype in HALF else leaf for leaf in leaves]


def _place(leaf: Any, *, whole: bool) -> int:
    """Where a leaf of a field goes: 1 to what has a gradient, 2 to the constants, 0 nowhere."""
    if isinstance(leaf, Tracer):
        return 1 if eqx.is_inexact_array(leaf) else 2
    return 2 if whole and not isinstance(leaf, Jaxpr) else 0


def _layers(column: Sequence[Any]) -> Array:
    """The arrays of all layers as one. One of several layers is converted once, so that `stacked` knows it."""
    arrays = {id(leaf): as_array("weight", leaf) for leaf in column}
    return stacked([arrays[id(leaf)] for leaf in column])


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))
