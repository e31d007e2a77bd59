"""The continuous adjoint's certificate where one step does most of the work, and is not the first."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from odenet_torch import ResidualStack, solve


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.inner, self.outer, self.scale = nn.Linear(8, 16).double(), nn.Linear(16, 8).double(), scale

    def forward(self, y):
        return self.scale * self.outer(torch.tanh(self.inner(y)))


class Pulse(Block):
    """Fast around a moment."""

    def forward(self, t, y):
        return super().forward(y) * (1 + 20 * torch.exp(-(((t - 0.6) / 0.05) ** 2)))


def gradient(outputs, y0, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(outputs.square().sum(), (y0, *parameters))])


def errors(run, parameters):
    """The true relative error, and the certificate."""
    y0 = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = gradient(run(y0, "backprop")[0], y0, parameters)
        outputs, stats = run(y0, "continuous-adjoint")
        off = gradient(outputs, y0, parameters) - exact
    return (off.norm() / exact.norm()).item(), float(stats().certificate)


@pytest.mark.parametrize(("solver", "large"), [("euler", 4), ("euler", 15), ("heun", 4), ("rk4", 4)])
def test_one_large_block(solver, large):
    torch.manual_seed(0)
    blocks = [Block(30.0 if n == large else 1.0) for n in range(16)]
    blocks = blocks if solver == "euler" else [*blocks, blocks[-1]]
    parameters = [*nn.ModuleList(blocks).parameters()]

    def run(y0, method):
        net = ResidualStack(blocks, solver=solver, gradient=method)
        return net(y0), lambda: net.stats

    error, certificate = errors(run, parameters)
    assert certificate > error / 3
    assert error > 0.03


@pytest.mark.parametrize("steps", [16, 37])
def test_a_field_that_is_fast_around_a_moment(steps):
    torch.manual_seed(0)
    field = Pulse(2.0)

    def run(y0, method):
        solution = solve(field, y0, steps=steps, solver="euler", gradient=method)
        return solution.y1, lambda: solution.stats

    error, certificate = errors(run, [*field.parameters()])
    assert certificate > error / 3
    assert error > 0.1


def test_the_largest_move_is_found_in_small_states_and_in_large_ones():
    from odenet_torch.gradients.compared_steps import LargestMove

    class Run:
        class grid:
            steps = 50

        class layout:
            time, device = torch.float32, torch.device("cpu")

    for size in (3, 1 << 15):
        for largest in (1, 3, 4, 31, 49):
            y = torch.ones(size)
            nothing = torch.zeros(2)  # a leaf that never moves has no size to move beside
            moves = LargestMove(Run, (y, nothing, y[:1]), 1)
            for n in range(50):
                y = y * (3.0 if n == 0 else 1.5 if n == largest else 1.01)  # the first step is compared anyway
                moves.add(n, (y, nothing, y[:1]))
            assert moves.step() == {largest}
            assert not moves.states
