"""How far rebuilt states are off, by what the backward pass knows of them, and what is said of it.

A state's rows, and what an error in them is held against, are `odenet._gradients.certified`.

Over 250 lines: all that is measured of a state, and the one primitive that carries it to the host.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from odenet import Stats
from odenet.kit import BUCKETS, DOUBTFUL, KINKS, SMALL, WHOLE, Alarm, Certified, channel_axes, floor, signs
from odenet_jax.field.state import Leaves, promoted
from odenet_jax.gradients.runtime_errors import for_export

Tree = TypeVar("Tree")
Worst = tuple[Array, Array]
"""The largest error so far, and the step that it was met in: -1 is the state at t0."""


def relative(defect: Leaves, y: Leaves) -> Array:
    """|defect| / |y| of the worst row of the worst leaf, a scalar."""
    errors = [
        _worst(*reading) for d, leaf in zip(defect, y, strict=True) if leaf.size for reading in _readings(d, leaf)
    ]
    return functools.reduce(_larger, errors) if errors else jnp.zeros(())


def share(defect: Leaves, y: Leaves) -> Array:
    """|defect| / |y| of the worst leaf, all of its rows together, a scalar."""
    pairs = [pair for pair in zip(defect, y, strict=True) if pair[1].size]
    errors = [jnp.linalg.norm(d.ravel()) / _above_zero(jnp.linalg.norm(leaf.ravel())) for d, leaf in pairs]
    return functools.reduce(_larger, errors) if errors else jnp.zeros(())


def by_kinks(error: Array, share: Array) -> tuple[Array, Array]:
    """A certificate where kinks count (see `odenet.kit.KINKS`), and whether it is that of kinks.

    Args:
        error: the largest of a row.
        share: the largest of a step, see `share`.
    """
    of_kinks = KINKS * jnp.sqrt(share)
    counts = (error <= DOUBTFUL) & (of_kinks > DOUBTFUL)
    return jnp.where(counts, of_kinks, error), counts


def sized(y: Leaves, later: Leaves) -> Leaves:
    """What errors of a state are held against: itself, but of a leaf that is zero, as the log-density of a flow is
    at t0, a part of a later one."""
    return tuple(map(sized_rows, y, later))


def sized_rows(y: Array, later: Array, axes: tuple[int, ...] | None = None) -> Array:
    """The same of one leaf; with axes, of each row along these."""
    return jnp.where(_vanishes(y, later, axes), SMALL * later, y)


def _vanishes(y: Array, later: Array, axes: tuple[int, ...] | None = None) -> Array:
    """By the largest numbers: squares of small ones vanish in float32."""
    largest, latest = (jnp.max(jnp.abs(x), axes, keepdims=axes is not None, initial=0) for x in (y, later))
    return largest <= float(jnp.finfo(later.dtype).eps) ** 0.5 * latest


def on_top(worst: Worst, error: Array, n: Any) -> Worst:
    """The worst so far with an error of step n that comes on top of the others, as it is of all of them; its place is
    that of the larger part."""
    total = worst[0] + error.astype(worst[0].dtype)
    return total, worse(worst, error, n)[1]


def worse(worst: Worst, error: Array, n: Any) -> Worst:
    """The worst so far with one more error, of step n; NaN is the worst there is."""
    error = error.astype(worst[0].dtype)
    new = ~(error <= worst[0]) & ~jnp.isnan(worst[0])
    # by arithmetic: before 0.10.2 JAX cannot choose, for divided rows, between two numbers that are those of all rows
    place, kind = worst[1], worst[1].dtype
    return jnp.where(new, error, worst[0]), place + new.astype(kind) * (jnp.asarray(n, kind) - place)


def _larger(one: Array, other: Array) -> Array:
    kind = promoted(one.dtype, other.dtype)
    return jnp.maximum(one.astype(kind), other.astype(kind))


def root(count: Any) -> Any:
    """The square root of a number of entries, which may be a symbol (`jax.export.symbolic_shape`)."""
    return count**0.5 if isinstance(count, int) else jnp.sqrt(jnp.asarray(count, jnp.float32))


def _readings(defect: Array, y: Array) -> list[tuple[Array, Array, int]]:
    readings = [(defect, y, axis) for axis in channel_axes(y.ndim)]
    # of one axis, they may be channels of one row or rows of one channel
    return readings if y.ndim > 1 else [*readings, (defect[..., None], y[..., None], -1)]


def _worst(defect: Array, y: Array, axis: int) -> Array:
    return jnp.max(jnp.linalg.norm(defect, axis=axis) / _scale(jnp.linalg.norm(y, axis=axis), y.shape[axis]))


def _scale(sizes: Array, width: int) -> Array:
    """What an error of each row is held against: its size, or where that is nearly zero the floor."""
    # a mean of roots, which neither a few huge rows nor many rows of zeros carry away
    least = jnp.square(jnp.mean(jnp.sqrt(sizes))) * floor(width)
    return jnp.maximum(sizes, _above_zero(least))


def _above_zero(size: Array) -> Array:
    return jnp.maximum(size, jnp.finfo(size.dtype).tiny)


class Sketch:
    """What is kept of a state to tell later by how much another one differs from it: a few sums of each row.

    The entries of a row are added up in `BUCKETS` buckets, with signs as if by chance; the root of the sum of the
    squares of these is the row's norm on average (Charikar, Chen and Farach-Colton 2002). Rows no wider are kept whole.
    """

    def __init__(self, y: Leaves) -> None:
        self.rows = tuple(_sketched(leaf, axis) for leaf, axis in self._places(y))

    @staticmethod
    def _places(y: Leaves) -> list[tuple[Array, int]]:
        leaves = (leaf if leaf.ndim else leaf[None] for leaf in y if leaf.size)
        return [(leaf, axis) for leaf in leaves for axis in channel_axes(leaf.ndim)]

    def error(self, y: Leaves, end: Leaves) -> Array:
        """About `relative(y - x, x)`, x being the state that this is of: of the wider rows within a quarter or so.

        Args:
            y: x, as it was rebuilt.
            end: the state at t1. A leaf that begins at zero, as the log-density of a flow does, has no size that its
                error could be held against: that is held against a part of its rows' size at t1.
        """
        errors: list[Array] = []
        for (leaf, axis), sums, (last, _) in zip(self._places(y), self.rows, self._places(end), strict=True):
            sizes = jnp.linalg.norm(sums, axis=-1)
            later = SMALL / root(max(sizes.size, 1)) * jnp.linalg.norm(last.ravel())
            scale = _scale(sizes, leaf.shape[axis])
            scale = jnp.where(_vanishes(sums, last), jnp.maximum(scale, later), scale)
            errors.append(jnp.max(jnp.linalg.norm(_sketched(leaf, axis) - sums, axis=-1) / scale))
        return functools.reduce(_larger, errors) if errors else jnp.zeros(())


def _flatten(sketch: Sketch) -> tuple[tuple[Array, ...], None]:
    return sketch.rows, None


def _unflatten(_: None, rows: Any) -> Sketch:
    sketch = object.__new__(Sketch)
    sketch.rows = rows
    return sketch


jax.tree_util.register_pytree_node(Sketch, _flatten, _unflatten)


def _sketched(leaf: Array, axis: int) -> Array:
    rows, width = jnp.moveaxis(leaf, axis, -1), leaf.shape[axis]
    if width <= BUCKETS:
        return rows
    rows = rows * signs(jnp.arange(width, dtype=jnp.int32)).astype(rows.real.dtype)
    rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, -width % BUCKETS)])
    return rows.reshape(*rows.shape[:-1], -1, BUCKETS).sum(-2)


def certify(
    stats: Stats,
    alarm: Alarm | None,
    steps: Any,
    worst: Worst,
    gradients: tuple[Any, ...],
    of: Certified = "states",
    kinks: Array | None = None,
) -> tuple[Any, ...]:
    """What a backward pass found, which says it when it is there if the worst error is large.

    Said by the host while the program runs; not by a program that `jax.export` made, which has no host to call.

    Args:
        stats: of the solve.
        alarm: of the network; None where nothing is to be said.
        steps: of the backward pass.
        worst: of the errors that the backward pass came to know of.
        gradients: the gradients of the state at t0, of weights, others if there are any, and the residual.
        of: what the errors are of.
        kinks: whether the worst one is what kinks make of it, see `by_kinks`; None where there are none.
    """
    if alarm is None:
        return gradients
    g, sums, *others, residual = gradients
    told = [*worst, jnp.asarray(steps, jnp.int32), *(() if kinks is None else [kinks.astype(jnp.int32)])]
    tell = functools.partial(_tell, alarm, stats.gradient, stats.solver, of)
    # by way of a number that gradients need: a call that gives nothing is taken for one that does nothing
    zero = _certificate_p.bind(*map(lax.stop_gradient, told), tell=tell)
    leaves, structure = jax.tree.flatten(sums)
    small = min(range(len(leaves)), key=lambda i: leaves[i].size, default=None)
    if small is not None:
        leaves[small] = leaves[small] + zero.astype(leaves[small].dtype)
    return tied(zero, g), jax.tree.unflatten(structure, leaves), *tied(zero, others), residual


def tied(zero: Array, tree: Tree) -> Tree:
    """The tree, of which nothing can be had without this zero."""
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


def _tell(
    alarm: Alarm, gradient: str, solver: str, of: Certified, error: Any, n: Any, steps: Any, kinks: Any = 0
) -> None:
    alarm.tell(float(error), gradient, solver, int(steps), int(n), of="kinks" if kinks else of)


_certificate_p = Primitive("odenet_certificate")


@_certificate_p.def_impl
def _now(error: Array, *others: Array, tell: Callable[..., None]) -> Array:
    tell(error, *others)
    return jnp.zeros_like(error)


@_certificate_p.def_abstract_eval
def _like(error: Any, *others: Any, tell: Callable[..., None]) -> Any:
    return error


def _for_all_rows(arguments: Any, axes: Any, *, tell: Callable[..., None]) -> tuple[Array, None]:
    """Reports the worst of all rows of a `jax.vmap`."""
    places = [*zip(arguments, axes, strict=True)]
    rows = next(leaf.shape[axis] for leaf, axis in places if axis is not None)
    columns = [jnp.broadcast_to(leaf, (rows,)) if axis is None else leaf for leaf, axis in places]
    # NaN, where there is one; by a mask, since rows may be divided over devices; no step is below WHOLE
    here = jnp.arange(rows) == jnp.argmax(columns[0])
    return _certificate_p.bind(*(jnp.max(leaf, where=here, initial=WHOLE) for leaf in columns), tell=tell), None


batching.primitive_batchers[_certificate_p] = _for_all_rows


def _in_a_program(context: Any, *arguments: Any, tell: Callable[..., None]) -> Any:
    exported = for_export(context)

    def program(error: Array, *others: Array) -> Array:
        if not exported:
            lax.cond(error <= DOUBTFUL, lambda: None, lambda: jax.debug.callback(tell, error, *others))
        return jnp.zeros_like(error)

    return mlir.lower_fun(program, multiple_results=False)(context, *arguments)


mlir.register_lowering(_certificate_p, _in_a_program)
