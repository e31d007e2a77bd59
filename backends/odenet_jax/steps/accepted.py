"""The times of an adaptive solve, the steps that it accepted, and the field along them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from odenet import Span
from odenet.kit import Tableau, positions
from odenet_jax.field.field import Field
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike
from odenet_jax.steps.clock import Clock, TimePoint, clock
from odenet_jax.steps.fixed import Run
from odenet_jax.steps.weighted_sum import weigh_leaves


@dataclass(frozen=True)
class SolveTimes:
    """Times that are known before the solve, all of them since t0.

    Args:
        t0, t1: its ends.
        stops: times that steps end at, in any order, beside t1; those outside of the solve are not met.
        jumps: those of them where the field jumps.
        layers: boundaries of the layers of weights that change with depth, both ends included; None for one layer.
        clock: from these to the times that the field is told.
        sound: False where traced times turn out to be none that can be solved between; None where they are known.
    """

    t0: Array
    t1: Array
    stops: Array
    jumps: Array
    layers: Array | None
    clock: Clock
    sound: Array | None = None

    @property
    def sign(self) -> Array:
        """The direction of time, 1 or -1."""
        return jnp.where(self.t1 >= self.t0, 1, -1).astype(self.t0.dtype)

    def stop(self, t: Array) -> Array:
        """The next time after t that a step ends at."""
        if not self.stops.shape[0]:
            return self.t1
        ahead = self.sign * (self.stops - t) > 0
        nearest = jnp.min(jnp.where(ahead, self.sign * self.stops, float(jnp.finfo(t.dtype).max)))
        return jnp.where(nearest < self.sign * self.t1, self.sign * nearest, self.t1)

    def jumping(self, t: Array) -> Array:
        """Whether the field jumps at t."""
        return jnp.any(self.jumps == t)

    def moment(self, a: Array, b: Array, position: float) -> TimePoint:
        """The moment at a position of the step from a to b, on the step's side of a jump."""
        if position not in (0, 1):
            return self.clock.moment(a + (b - a) * position)
        end, other = (b, a) if position else (a, b)
        at = self.clock.moment(end)
        if not self.jumps.shape[0]:
            return at
        # beside the time that the field is told: an offset's neighbour may be rounded onto the jump again
        far = float(jnp.finfo(at.time.dtype).max)
        beside = jnp.nextafter(at.time, jnp.where(other > end, far, -far).astype(at.time.dtype))
        return TimePoint(end, jnp.where(self.jumping(end), beside, at.time))

    def layer(self, a: Array, b: Array) -> Array:
        """The layer of weights that the step from a to b reads."""
        if self.layers is None:
            return jnp.int32(0)
        forward = jnp.where(self.layers[-1] >= self.layers[0], 1, -1)
        return jnp.sum(forward * (a + (b - a) / 2 - self.layers[1:-1]) >= 0, dtype=jnp.int32)

    def local(self, m: Array, t: Array) -> Array:
        """The position of t in layer m."""
        first, last = (self.t0, self.t1) if self.layers is None else (self.layers[m], self.layers[m + 1])
        return jnp.clip((t - first) / jnp.where(last == first, 1, last - first), 0, 1)

    def turned(self, end: Array, marks: Array) -> SolveTimes:
        """The backward pass from a time, with further stops."""
        layers = jnp.stack([self.t0, self.t1]) if self.layers is None else self.layers
        jumps = jnp.concatenate([self.jumps, layers[1:-1]])  # the weights of one layer end there
        return SolveTimes(end, self.t0, jnp.concatenate([self.stops, marks]), jumps, layers, self.clock)


jax.tree_util.register_dataclass(SolveTimes, ["t0", "t1", "stops", "jumps", "layers", "clock", "sound"], [])


def line(t0: Any, t1: Any, span: Span, field: Field, kind: Any, *, unmixed: bool) -> SolveTimes:
    """The times of a solve, in a number type; `unmixed` where weights along depth hold what jumps from node to node."""
    of, t1, stops = clock(t0, t1, span.stops, kind)
    count = field.intervals if field.kind != "shared" else 1
    layers = None if count == 1 else t1 * (jnp.arange(count + 1, dtype=kind) / count)
    inner = jnp.zeros(0, kind) if layers is None else layers[1:-1]
    jumps = stops[np.array([n for n, t in enumerate(span.stops) if t in span.control.jump_t], int)]
    if field.kind == "piecewise" or unmixed:
        jumps = jnp.concatenate([jumps, inner])
    return SolveTimes(jnp.zeros((), kind), t1, jnp.concatenate([stops, inner]), jumps, layers, of)


@dataclass(frozen=True)
class Accepted:
    """The grid that an adaptive solve chose: what `odenet.Grid` is to equal steps.

    Args:
        line: its times.
        nodes: ends of the steps, in a buffer of more entries.
        steps: how many steps were accepted.
        count: of layers.
    """

    line: SolveTimes
    nodes: Array
    steps: Array
    count: int = 1

    def ends(self, n: Any) -> tuple[Array, Array]:
        """The times at which step n begins and ends."""
        return self.nodes[n], self.nodes[n + 1]


@dataclass(frozen=True)
class AcceptedRun(Run):
    """A run whose steps are the solver's own choice.

    Args:
        ends: of the step that it stands at.
        layer: that this step reads.
    """

    ends: tuple[Array, Array] | None = None
    layer: Any = 0

    @property
    def line(self) -> SolveTimes:
        """The times of the solve."""
        assert isinstance(self.grid, Accepted)
        return self.grid.line

    @property
    def size(self) -> Array:
        """The size of the step that the run stands at, negative where time decreases."""
        assert self.ends is not None
        return self.ends[1] - self.ends[0]

    def moment(self, position: float) -> TimePoint:
        """That at a position of the step that it stands at, see `SolveTimes.moment`."""
        assert self.ends is not None
        return self.line.moment(*self.ends, position)

    def at(self, n: Any) -> AcceptedRun:
        """The run at accepted step n."""
        assert isinstance(self.grid, Accepted)
        return self.between(*self.grid.ends(n))

    def between(self, a: Array, b: Array) -> AcceptedRun:
        """The run at the step from a to b."""
        m = self.line.layer(a, b)
        slot = self.field.slot(self.weights, m, self.field.intervals)
        return dataclasses.replace(self, ends=(a, b), layer=m, slot=slot)

    def increment(self, n: Any, y: Leaves, *, reverse: bool = False) -> Leaves:
        """The increment of the accepted step at hand; n is not looked at."""
        tableau = self.solver.increments
        size = -self.size if reverse else self.size
        return weigh_leaves(None, size, tableau.b, self.slopes(tableau, tableau.step_stages, y, reverse=reverse))

    def slopes(self, tableau: Tableau, count: int, y: Leaves, *, reverse: bool = False) -> list[Leaves]:
        """The slopes of the first stages of the step."""
        size = -self.size if reverse else self.size
        places = positions(tableau, True) if reverse else tableau.c
        ks: list[Leaves] = []
        for i in range(count):
            ks.append(self.slope(0, places[i], weigh_leaves(y, size, tableau.a[i], ks) if i else y))
        return ks

    def advanced(self, y: Leaves) -> Leaves:
        """The state at the end of the step, by a loop over its stages: the field is compiled once for all of them."""
        tableau = self.solver.increments
        count = tableau.step_stages
        moments = jax.tree.map(lambda *moment: jnp.stack(moment), *(self.moment(node) for node in tableau.c[:count]))
        rows = [(*row, *(0.0,) * (count - len(row))) for row in (*tableau.a[:count], tableau.b[:count])]
        weights = jnp.asarray(rows, self.layout.time) * self.size

        def at(i: Any, slopes: Leaves) -> Leaves:
            return tuple(
                leaf + jnp.tensordot(weights[i].astype(leaf.dtype), k, 1) for leaf, k in zip(y, slopes, strict=True)
            )

        def stage(i: Any, slopes: Leaves) -> Leaves:
            new = self.slope_at(jax.tree.map(lambda moment: moment[i], moments), at(i, slopes))
            return tuple(lax.dynamic_update_index_in_dim(k, slope, i, 0) for k, slope in zip(slopes, new, strict=True))

        empty = tuple(jnp.broadcast_to(jnp.zeros_like(leaf), (count, *leaf.shape)) for leaf in y)
        return at(count, lax.fori_loop(0, count, stage, alike(empty, y)))

    def slope(self, n: Any, position: float, y: Leaves, *, reverse: bool = False, rank: int | None = None) -> Leaves:
        """f at a position of the accepted step at hand; n is not looked at."""
        return self.slope_at(self.moment(position), y)

    def slope_at(self, moment: TimePoint, y: Leaves) -> Leaves:
        """The field at a moment, with the weights of this step's layer."""
        local = self.line.local(self.layer, moment.offset)
        return self.layout.slope(self.field(moment.time, self.layout.call(y), local, self.slot, self.weights), y)


jax.tree_util.register_dataclass(Accepted, ["line", "nodes", "steps"], ["count"])
