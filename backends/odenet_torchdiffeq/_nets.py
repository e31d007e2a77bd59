"""The networks of a `NetSpec`, solved by torchdiffeq."""

from __future__ import annotations

from odenet import Problem, Solution
from odenet_torch.nets.modules import OdeNet
from odenet_torchdiffeq._solve import solve_problem


class TorchdiffeqNet(OdeNet):
    """As `odenet_torch.OdeNet`, but for who takes the steps."""

    def solve(self, ivp: Problem) -> Solution:
        """Its fields close over nothing."""
        return solve_problem(ivp, closed=False)
