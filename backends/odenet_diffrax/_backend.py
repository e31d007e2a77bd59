"""The verbs of the diffrax backend: those of JAX, but for what takes steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax import Array

from odenet import Gradient, NetSpec, Problem, Sample, Solution, UnsupportedError
from odenet.kit import AnySolver, Arrays
from odenet_diffrax import backend
from odenet_diffrax._solve import solve_problem
from odenet_jax._backend import JaxBackend
from odenet_jax.nets.modules import OdeNet


class DiffraxNet(OdeNet):
    """As `odenet_jax.OdeNet`, but for who takes the steps."""

    __init__ = OdeNet.__init__  # equinox would make one of the fields

    def solve(self, ivp: Problem, probe: Array | None, context: Any) -> tuple[Solution, Any]:
        """The same solve by diffrax, in which there is nothing to probe.

        Raises:
            UnsupportedError: batch normalisation in training, whose running statistics diffrax would not hand on.
        """
        if context is not None:
            raise UnsupportedError(
                f"{type(self).__name__} with norm='batch' in training",
                "norm='group' or 'none'; norm='batch' on backends torch and jax",
            )
        return solve_problem(ivp), None


class DiffraxBackend(JaxBackend):
    """odenet's verbs on diffrax. Networks, measurements and devices are those of odenet_jax."""

    network = DiffraxNet

    def solve(self, problem: Problem) -> Solution:
        return solve_problem(problem)

    def _probed(self, problem: Problem, probe: Array) -> Solution:
        """There is nothing to probe; diffrax's dense output does not leave a traced function."""
        return dataclasses.replace(solve_problem(problem), interpolant=None)

    def build(self, spec: NetSpec, weights: Arrays, *, solver: AnySolver, gradient: Gradient, **where: str) -> OdeNet:
        backend.require(solver, gradient)
        return super().build(spec, weights, solver=solver, gradient=gradient, **where)

    def examine(self, model: Any, batch: Any, loss: Any, gradient: Gradient, *, reversible: bool = False) -> Sample:
        """Not offered: a module of odenet_jax takes its own steps.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("examining a module on backend diffrax", "backend='jax'")
