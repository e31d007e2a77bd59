"""The verbs of the torchdiffeq backend: those of torch, but for what takes steps, which is torchdiffeq."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odenet import (
    ContinuousAdjoint,
    Gradient,
    Grid,
    NetSpec,
    Problem,
    Sample,
    Solution,
    Solver,
    Span,
    Stats,
    UnsupportedError,
)
from odenet.kit import AnySolver, Arrays
from odenet_torch._backend import TorchBackend
from odenet_torch.field.field import FunctionField
from odenet_torch.field.state import Layout, Leaves, layout
from odenet_torch.nets.modules import OdeNet
from odenet_torch.steps.times import moves
from odenet_torchdiffeq import backend
from odenet_torchdiffeq._adaptive import solve_span
from odenet_torchdiffeq._field import OnGrid

FIXED = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk38": "rk4"}
"""Their name of each of our solvers. Their rk4 is the 3/8 rule."""


def solve_problem(ivp: Problem, *, closed: bool = True) -> Solution:
    """The solution of a problem.

    Args:
        ivp: the problem.
        closed: whether f may close over tensors, which `odeint_adjoint` must be told: one evaluation finds them.

    Raises:
        UnsupportedError: what torchdiffeq has not.
        SolveError: an adaptive solve could not go on.
    """
    state_layout, leaves = layout(ivp.y0)
    if len(set(state_layout.carried)) > 1:
        raise UnsupportedError(
            f"a state of several number types ({', '.join(map(str, state_layout.carried))}) on backend torchdiffeq, "
            "which would promote them",
            "leaves of one number type",
        )
    field = FunctionField(ivp.field, ivp.weights)
    if isinstance(ivp.grid, Span):
        return solve_span(ivp, ivp.grid, field, state_layout, leaves)
    _require_still(ivp.grid)
    return _solve_grid(ivp, ivp.grid, field, state_layout, leaves, closed)


def _require_still(grid: Grid) -> None:
    """Raises UnsupportedError for times that need a gradient."""
    t0, t1, ts = grid.moving or (None, None, None)
    kept = ts if isinstance(ts, (list, tuple)) else [ts]
    if any(map(moves, (t0, t1, *kept))):
        raise UnsupportedError(
            "a gradient with respect to a time with equal steps on backend torchdiffeq",
            "times that need no gradient; rtol and atol in the place of steps",
            "take backend='torch'",
        )


def _solve_grid(
    ivp: Problem, grid: Grid, field: FunctionField, state_layout: Layout, leaves: Leaves, closed: bool
) -> Solution:
    method, sign = ivp.gradient, -1 if grid.t1 < grid.t0 else 1
    backward = method.steps or grid.steps if isinstance(method, ContinuousAdjoint) else grid.steps
    assert isinstance(ivp.solver, Solver)  # one of those that this backend offers
    system = OnGrid(field, state_layout, sign, grid, ivp.solver, backward)
    met = sorted({0, *grid.saved, grid.steps})

    def times(steps: int) -> Tensor:
        """The grid of that many steps in tau."""
        taus = [sign * (grid.t0 + (grid.t1 - grid.t0) * (n / steps)) for n in range(steps + 1)]
        return torch.tensor(taus, dtype=state_layout.time, device=state_layout.device)

    def between(func: Any, y0: Any, t: Tensor) -> Tensor:
        """The steps of the backward solve between two times that were met."""
        nodes, start, length = times(backward), sign * grid.t0, abs(grid.t1 - grid.t0)
        last, first = (round((float(tau) - start) / length * backward) for tau in (t[0], t[-1]))
        return torch.cat([t[:1], nodes[first + 1 : last].flip(0), t[-1:]])

    nodes = times(grid.steps)
    y0 = leaves[0] if len(leaves) == 1 else leaves
    name = FIXED[ivp.solver.name]
    options = {"grid_constructor": lambda func, y0, t: nodes}
    if grid.t0 == grid.t1:  # for which torchdiffeq has no order of times
        states: Any = tuple(leaf.expand(len(met), *leaf.shape) for leaf in leaves)
    else:

        def tensors() -> tuple[Tensor, ...]:
            """Those that f reads: the weights, and what one evaluation shows that it closes over."""
            if not closed:
                return system.weights(grid.steps)
            system.callback_step(nodes[0], None, nodes[1] - nodes[0])
            return system.parameters(nodes[0], leaves, grid.steps)

        integrate = backend.method(method)(ivp, {"method": name, "options": options}, tensors, between)
        states = integrate(system, y0, nodes[met])
    picks = [met.index(n) for n in grid.saved]
    ys = [state_layout.returned(leaf[picks], i) for i, leaf in enumerate(system.leaves(states))]
    ts = torch.tensor(grid.times, dtype=state_layout.time, device=state_layout.device)
    stats = Stats("torchdiffeq", ivp.solver.label, method.label, grid.steps, system.evaluations)
    return Solution(ts, state_layout.unflatten(ys), stats)


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
