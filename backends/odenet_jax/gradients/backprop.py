"""Backprop: JAX differentiates the scan."""

from __future__ import annotations

from jax import Array

from odenet_jax.field.replay import Told
from odenet_jax.field.state import Leaves
from odenet_jax.steps.fixed import Run, loop


def solve(run: Run, y0: Leaves, probe: Array) -> tuple[Leaves, Told | None]:
    """The leaves at the kept times, and what blocks are told after it."""
    return loop(run, y0)
