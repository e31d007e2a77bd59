"""The verbs of the torchdiffeq backend: those of torch, but for what takes steps."""

from __future__ import annotations

from typing import Any

from torch import nn

from odenet import Gradient, NetSpec, Problem, Sample, Solution, UnsupportedError
from odenet.kit import AnySolver, Arrays
from odenet_torch._backend import TorchBackend
from odenet_torch.nets.modules import OdeNet
from odenet_torchdiffeq import backend
from odenet_torchdiffeq._solve import solve_problem


class TorchdiffeqNet(OdeNet):
    """As `odenet_torch.OdeNet`, but for who takes the steps."""

    def solve(self, ivp: Problem) -> Solution:
        """Its fields close over nothing."""
        return solve_problem(ivp, closed=False)


class TorchdiffeqBackend(TorchBackend):
    """odenet's verbs on torchdiffeq. Networks, measurements and devices are those of odenet_torch."""

    network = TorchdiffeqNet

    def solve(self, problem: Problem) -> Solution:
        return solve_problem(problem)

    def build(self, spec: NetSpec, weights: Arrays, *, solver: AnySolver, gradient: Gradient, **where: str) -> OdeNet:
        backend.require(solver, gradient)
        return super().build(spec, weights, solver=solver, gradient=gradient, **where)

    def examine(
        self, model: nn.Module, batch: Any, loss: Any, gradient: Gradient, *, reversible: bool = False
    ) -> Sample:
        """Not offered: a module of odenet_torch takes its own steps.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("examining a module on backend torchdiffeq", "backend='torch'")
