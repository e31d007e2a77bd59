"""Gradients of the loss that are not there, as gradcheck asks for, and several at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, convert, solve

WIDTH = 3


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def forward(self, *arguments):
        return 0.3 * torch.tanh(self.linear(arguments[-1]))


class Layer(Branch):
    def forward(self, x):
        return x + super().forward(x)


def converted(gradient):
    example = torch.ones(2, WIDTH, dtype=torch.float64)
    return convert(nn.Sequential(Layer(), Layer()), example=example, gradient=gradient)


def per_sample():
    field, control = Branch(), odenet.PIDController(rtol=1e-8, atol=1e-10, per_sample=True)
    return lambda x: solve(field, x, t0=0.0, t1=1.0, control=control).y1


USES = {
    "rounded layers": lambda: converted("checkpoint:bits=16"),
    "rows": per_sample,
    "stack": lambda: ResidualStack([Branch(), Branch()], gradient="checkpoint:bits=16"),
    "adaptive": lambda: NeuralODE(Branch(), rtol=1e-8, atol=1e-10, gradient="discrete-adjoint"),
}


@pytest.mark.parametrize("use", USES)
def test_gradcheck_with_gradients_that_are_not_there(use):
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(USES[use](), (x,), atol=1e-3, rtol=1e-3, check_undefined_grad=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResidualStack([Branch(), Branch()], gradient="auto"),
        lambda: NeuralODE(Branch(), steps=4, gradient="auto"),
    ],
)
def test_several_gradients_at_once_are_not_audited(make):
    torch.manual_seed(0)
    net, x = make(), torch.randn(2, WIDTH, dtype=torch.float64)
    at_once = torch.autograd.functional.jacobian(net, x, vectorize=True)
    torch.testing.assert_close(at_once, torch.autograd.functional.jacobian(net, x))
