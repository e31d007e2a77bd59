"""Steps whose size follows the error: what every adaptive loop does, whatever it solves.

Loops go on until the slowest row of a `jax.vmap` is done, and a row that is done changes nothing any more. JAX would
otherwise select between the old and the new carry at every step, whole buffers of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from equinox.internal import unvmap_any
from jax import Array, lax

from odenet import PIDController, Result
from odenet.kit import Arithmetic, Landing, Tableau, landing, resumed
from odenet_jax.field.state import Leaves
from odenet_jax.field.varying import alike
from odenet_jax.steps.accepted import AcceptedRun, SolveTimes
from odenet_jax.steps.clock import TimePoint
from odenet_jax.steps.tolerance import Tolerance
from odenet_jax.steps.weighted_sum import weigh_leaves

TRACED = Arithmetic(jnp.minimum, jnp.maximum, jnp.where)
CODE = {result: code for code, result in enumerate(Result)}


class LoopState(NamedTuple):
    """Where an adaptive loop is.

    Args:
        t: the time reached.
        size: of the next step, positive.
        past: see `odenet._solvers.controller.Past`.
        accepted, rejected: steps so far.
        alive: whether it goes on.
        outcome: how it ended, the place in `Result`.
    """

    t: Array
    size: Array
    past: tuple[Array, Array]
    accepted: Array
    rejected: Array
    alive: Array
    outcome: Array

    def ended(self, condition: Array, result: Result) -> LoopState:
        """The loop ended by a condition, if it goes on and the condition holds."""
        outcome = jnp.where(self.alive & condition, CODE[result], self.outcome).astype(jnp.int32)
        return self._replace(alive=self.alive & ~condition, outcome=outcome)


def start(line: SolveTimes, size: Array, finite: Array) -> LoopState:
    """Where a loop begins: not at all where the first slope is not finite, or there is no time to cross."""
    one, zero = jnp.ones((), line.t0.dtype), jnp.int32(0)
    moving = line.t0 != line.t1
    if line.sound is not None:
        moving |= ~line.sound
    outcome = jnp.where(moving & ~finite, CODE[Result.NONFINITE], CODE[Result.SUCCESS]).astype(jnp.int32)
    pace = LoopState(line.t0, size, (one, one), zero, zero, moving & finite, outcome)
    vanished = _vanished(line, pace) if line.sound is None else _vanished(line, pace) | ~line.sound
    return pace.ended(vanished, Result.STEP_TOO_SMALL)


def propose(line: SolveTimes, pace: LoopState) -> Landing:
    """The next step: to the next stop, if it reaches that."""
    largest = jnp.maximum(jnp.abs(line.t0), jnp.abs(line.t1))
    spacing = float(jnp.finfo(pace.t.dtype).eps) * largest
    return landing(pace.t, pace.size, line.stop(pace.t), line.sign, spacing, TRACED)


def judge(
    control: PIDController, order: int, line: SolveTimes, pace: LoopState, step: Landing, ratio: Array
) -> tuple[Any, LoopState]:
    """Whether a step is accepted, and where the loop is after it.

    Args:
        control, order: of step sizes, and that of the error estimate.
        line, pace: times, and where the loop is.
        step: the one that was tried.
        ratio: its error over what is allowed.
    """
    took, alive = jnp.abs(step.t1 - pace.t), pace.alive
    accepted, factor, past = control.judge(order, ratio, pace.past, TRACED)
    smallest = jnp.zeros((), bool) if control.min_step is None else took <= control.min_step * (1 + 1e-10)
    accepted |= smallest & jnp.isfinite(ratio)
    accepted &= alive
    # t + size rounds to t1: a size of few roundings of t, multiplied as took, would never become smaller
    size = jnp.where(accepted, took, jnp.minimum(took, pace.size)) * factor
    size = control.bounded(resumed(size, pace.size, accepted & step.lands, TRACED), TRACED)
    now = LoopState(
        jnp.where(accepted, step.t1, pace.t),
        jnp.where(alive, size, pace.size),
        (jnp.where(accepted, past[0], pace.past[0]), jnp.where(accepted, past[1], pace.past[1])),
        jnp.where(accepted, pace.accepted + 1, pace.accepted),
        jnp.where(alive & ~accepted, pace.rejected + 1, pace.rejected),
        alive,
        pace.outcome,
    )
    now = now._replace(alive=alive & (now.t != line.t1))
    now = now.ended(smallest & ~accepted, Result.NONFINITE)
    now = now.ended(_vanished(line, now), Result.STEP_TOO_SMALL)
    return accepted, now.ended(now.accepted + now.rejected >= control.max_steps, Result.MAX_STEPS)


def _vanished(line: SolveTimes, pace: LoopState) -> Array:
    return ~(pace.t + line.sign * pace.size != pace.t) | ~jnp.isfinite(pace.size)


def first_size(
    control: PIDController,
    tableau: Tableau,
    tolerance: Tolerance,
    line: SolveTimes,
    evaluate: Callable[[TimePoint, Leaves], Leaves],
    y: Leaves,
    first: Leaves,
) -> Array:
    """The size of the first step (Hairer, Norsett, Wanner I, p. 169).

    Args:
        control, tableau, tolerance, line: of the solve.
        evaluate: the field at a moment.
        y, first: the state at the start, and the slope.
    """
    whole = jnp.abs(line.t1 - line.t0)
    if control.first_step is not None:
        size = jnp.asarray(control.first_step, line.t0.dtype)
    else:
        d1 = tolerance.size(first, y)
        trial = control.trial(tolerance.size(y, y), d1, TRACED)
        trial = jnp.minimum(trial, jnp.abs(line.stop(line.t0) - line.t0))
        signed = line.sign * trial
        second = evaluate(line.clock.moment(line.t0 + signed), weigh_leaves(y, signed, (1.0,), (first,)))
        change = tuple(b - a for a, b in zip(first, second, strict=True))
        d2 = tolerance.size(change, y) / jnp.where(trial == 0, 1, trial)
        size = control.first(tableau.error_order, trial, d1, d2, TRACED)
    return jnp.asarray(control.bounded(jnp.minimum(size, whole), TRACED), line.t0.dtype)


def finite(*states: Leaves) -> Array:
    """Whether all numbers are."""
    return jnp.array([jnp.isfinite(leaf).all() for state in states for leaf in state]).all()


def repeat(alive: Callable[[Any], Array], body: Callable[[Any], Any], carry: Any) -> Any:
    """`lax.while_loop` until no row of a `jax.vmap` is alive; the body leaves the carry of those that are not."""
    return lax.while_loop(lambda carry: unvmap_any(alive(carry)), body, alike(carry))


def renewed(run: AcceptedRun, needed: Array, t: Array, y: Leaves, otherwise: Leaves) -> Leaves:
    """The slope at the start of the step from t, where it is needed."""

    def fresh() -> Leaves:
        return run.between(t, run.line.stop(t)).slope(0, 0.0, y)

    return lax.cond(needed, fresh, lambda: otherwise)
