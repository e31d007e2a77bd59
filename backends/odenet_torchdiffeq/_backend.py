"""The verbs of the torchdiffeq backend: those of torch, but for what takes steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Depth, Gradient, Gradients, InputError, NetSpec, Problem, Sample, Solution, UnsupportedError, _tree
from odenet._backend import Arrays
from odenet._solver import AnySolver
from odenet_torch._backend import TorchBackend, _dtype, _fresh
from odenet_torchdiffeq import backend
from odenet_torchdiffeq._nets import TorchdiffeqNet
from odenet_torchdiffeq._solve import solve_problem


class TorchdiffeqBackend(TorchBackend):
    """odenet's verbs on torchdiffeq. Networks, measurements and devices are those of odenet_torch."""

    def solve(self, problem: Problem) -> Solution:
        """See `Backend`."""
        return solve_problem(problem)

    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """See `Backend`. Leaves that cannot have a gradient (integers) have None."""
        depth = problem.weights
        y0, y_leaves = _fresh(problem.y0)
        weights, w_leaves = _fresh(None if depth is None else depth.tree)
        given = None if depth is None else Depth(weights, depth.kind, depth.stacked)
        with torch.enable_grad():
            solution = solve_problem(dataclasses.replace(problem, y0=y0, weights=given))
            value = loss(solution)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
            raise InputError(f"the loss returned {value!r}", "a real scalar tensor")
        wanted = [leaf for leaf in (*y_leaves, *w_leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        gradients = (
            torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else [None] * len(wanted)
        )
        found = {
            id(leaf): torch.zeros_like(leaf) if g is None else g for leaf, g in zip(wanted, gradients, strict=True)
        }
        plain = dataclasses.replace(solution, ys=_tree.map(Tensor.detach, solution.ys))
        both = (_tree.map(lambda leaf: found.get(id(leaf)), tree) for tree in (y0, weights))
        return value.detach(), Gradients(*both), plain

    def build(
        self,
        spec: NetSpec,
        weights: Arrays,
        *,
        solver: AnySolver,
        gradient: Gradient,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> TorchdiffeqNet:
        """See `Backend`."""
        backend.require(solver, gradient)
        self._check_device(device)
        return TorchdiffeqNet(spec, weights, solver=solver, gradient=gradient, dtype=_dtype(dtype), device=device)

    def examine(
        self, model: nn.Module, batch: Any, loss: Any, gradient: Gradient, *, reversible: bool = False
    ) -> Sample:
        """Not offered: a module of odenet_torch takes its own steps.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("examining a module on backend torchdiffeq", "backend='torch'")
