"""Backprop: JAX differentiates the scan."""

from __future__ import annotations

import dataclasses

from jax import Array

from odenet import Problem, Stats
from odenet_jax.field.field import Weights
from odenet_jax.field.programs import compiled, eager, kept
from odenet_jax.field.replay import BlockContext, Replay
from odenet_jax.field.state import HALF, Leaves
from odenet_jax.gradients.accepted_steps import BackwardPass, RecomputedStates
from odenet_jax.steps.fixed import Run, Solve, loop


def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, BlockContext | None]:
    """The leaves at the kept times, and what blocks are told after it."""
    alone, hoisted = eager(), run.hoisted(y0)  # which looks at the field, here too
    if alone or any(
        kind in HALF for kind in run.layout.dtypes
    ):  # what the field closes over is summed as wide as weights
        run = hoisted
    key = run.key("backprop") if alone else None
    if key is None:
        return loop(run, y0)
    bare = dataclasses.replace(run, weights=Weights([], []), replay=None)

    def program(weights: Weights, context: BlockContext | None, y0: Leaves) -> tuple[Leaves, BlockContext | None]:
        replay = None if context is None else Replay(context)
        return loop(dataclasses.replace(bare, weights=weights, replay=replay), y0)

    return kept(key, lambda: compiled(program, key))(run.weights, run.replay and run.replay.context, y0)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by backprop."""
    return solve


def adaptive(problem: Problem, stats: Stats) -> BackwardPass:
    """The backward pass of backprop over accepted steps."""
    return RecomputedStates(again=True)
