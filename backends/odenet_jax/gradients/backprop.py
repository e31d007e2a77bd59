"""Backprop: JAX differentiates the scan."""

from __future__ import annotations

from jax import Array

from odenet import Problem, Stats
from odenet_jax.field.replay import Told
from odenet_jax.field.state import Leaves
from odenet_jax.gradients.accepted_steps import Again, WayBack
from odenet_jax.steps.fixed import Run, Solve, loop


def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, Told | None]:
    """The leaves at the kept times, and what blocks are told after it."""
    return loop(run, y0)


def fixed(problem: Problem, stats: Stats) -> Solve:
    """See `odenet_jax.gradients.solve`."""
    return solve


def adaptive(problem: Problem, stats: Stats) -> WayBack:
    """See `odenet_jax.gradients.solve`."""
    return Again()
