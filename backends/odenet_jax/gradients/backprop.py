"""Backprop: JAX differentiates the scan."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from odenet import Problem, Stats
from odenet_jax.field.replay import Told
from odenet_jax.field.state import HALF, Leaves
from odenet_jax.gradients.accepted_steps import Again, WayBack
from odenet_jax.steps.fixed import Run, Solve, loop


def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, Told | None]:
    """The leaves at the kept times, and what blocks are told after it."""
    if any(kind in HALF for kind in run.layout.given):  # what the field closes over is summed as wide as weights
        t, example = jnp.asarray(run.grid.t0, run.layout.time), () if run.replay is None else run.replay.told.example()
        field, weights = run.field.hoist(run.weights, t, run.layout.call(y0), *example)
        run = dataclasses.replace(run, field=field, weights=weights)
    return loop(run, y0)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_jax.gradients.solve`."""
    return solve


def adaptive(problem: Problem, stats: Stats) -> WayBack:
    """See `odenet_jax.gradients.solve`."""
    return Again(again=True)
