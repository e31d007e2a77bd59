"""The networks of a `NetSpec`, solved by diffrax."""

from __future__ import annotations

from jax import Array

from odenet import Problem, Solution
from odenet_diffrax._solve import solve_problem
from odenet_jax.nets.modules import OdeNet


class DiffraxNet(OdeNet):
    """As `odenet_jax.OdeNet`, but for who takes the steps."""

    __init__ = OdeNet.__init__  # equinox would make one of the fields

    def solve(self, made: Problem, probe: Array | None) -> Solution:
        """See `odenet_jax.OdeNet`. There is nothing to probe."""
        return solve_problem(made)
