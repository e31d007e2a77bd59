"""Backprop: JAX differentiates the scan."""

from __future__ import annotations

import dataclasses

from jax import Array

from odenet import Problem, Stats
from odenet_jax.field.field import Weights
from odenet_jax.field.programs import compiled, eager, kept
from odenet_jax.field.replay import Replay, Told
from odenet_jax.field.state import HALF, Leaves
from odenet_jax.gradients.accepted_steps import Again, WayBack
from odenet_jax.steps.fixed import Run, Solve, loop


def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, Told | None]:
    """The leaves at the kept times, and what blocks are told after it."""
    alone = eager()
    if alone or any(
        kind in HALF for kind in run.layout.given
    ):  # what the field closes over is summed as wide as weights
        run = run.hoisted(y0)
    key = run.key("backprop") if alone else None
    if key is None:
        return loop(run, y0)
    bare = dataclasses.replace(run, weights=Weights([], []), replay=None)

    def program(weights: Weights, told: Told | None, y0: Leaves) -> tuple[Leaves, Told | None]:
        replay = None if told is None else Replay(told)
        return loop(dataclasses.replace(bare, weights=weights, replay=replay), y0)

    return kept(key, lambda: compiled(program, key))(run.weights, run.replay and run.replay.told, y0)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_jax.gradients.solve`."""
    return solve


def adaptive(problem: Problem, stats: Stats) -> WayBack:
    """See `odenet_jax.gradients.solve`."""
    return Again(again=True)
