"""Gradients with respect to times: of t0, t1 and of the times that are kept.

They are those of the ODE, `dy(t)/dt = f(t, y)` and `dy(t)/dt0 = -(dy(t)/dy0) f(t0, y0)`; steps do not move with them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from odenet import Result, UnsupportedError
from odenet_jax.field.field import Field
from odenet_jax.field.state import Leaves
from odenet_jax.steps.accepted import AcceptedRun
from odenet_jax.steps.record import AdaptiveResult
from odenet_jax.steps.size_control import CODE


class Times(NamedTuple):
    """Those of a solve; None for those that are not there, or need no gradient."""

    t0: Array | None
    t1: Array | None
    ts: Array | None


def moving(field: Field, t0: Array | None, t1: Array | None, ts: Array | None) -> Times:
    """Those that a derivative is asked for.

    Raises:
        UnsupportedError: of weights that change along depth, whose layers would move with t0 and t1.
    """
    if field.kind != "shared" and (t0 is not None or t1 is not None):
        raise UnsupportedError(
            "a gradient with respect to t0 or t1 of weights that change along depth",
            "weights that are the same at all depths",
            "scale the field in the place of the time: t1 f(t1 s, y, w) from s=0 to s=1",
        )
    return Times(t0, t1, ts)


def of_times(
    run: AcceptedRun,
    times: Times,
    ts: Array | None,
    result: AdaptiveResult,
    y0: Leaves,
    g0: Leaves,
    g1: Leaves,
    gs: Leaves,
) -> Times:
    """The gradients.

    Args:
        run: along the accepted steps.
        times: those asked for.
        ts: the kept times, since t0.
        result: the solve.
        y0: the state at t0.
        g0, g1, gs: gradients with respect to the states at t0, at the end, and at the kept times.
    """
    here, line = run.between(run.line.t0, run.line.t1), run.line

    def along(t: Array, y: Leaves, g: Leaves) -> Array:
        # where nobody reads the state its slope does not count, and it may be none
        slope = here.slope_at(line.clock.moment(t), y)
        parts = [jnp.sum(jnp.where(a == 0, 0, jnp.real(a * k))) for a, k in zip(g, slope, strict=True)]
        return sum(parts[1:], parts[0]).astype(t.dtype)

    t0 = None if times.t0 is None else -along(line.t0, y0, g0)
    t1 = None
    if times.t1 is not None:
        t1 = along(line.t1, result.y1, g1)
        still = result.pace.outcome > CODE[Result.EVENT]
        t1 = jnp.where(still if result.position is None else still | (result.position < 1), 0, t1)
    by_ts = None
    if times.ts is not None:
        assert ts is not None
        reached = jnp.arange(ts.shape[0], dtype=jnp.int32) < result.outputs
        by_ts = jnp.where(reached, lax.map(lambda row: along(*row), (ts, result.ys, gs)), 0)
    return Times(t0, t1, by_ts)
