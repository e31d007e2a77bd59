"""A state that was made in `torch.inference_mode()`, as features of a frozen encoder are."""

import pytest
import torch
from torch import nn

import odenet_torch


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "checkpoint:bits=16", "discrete-adjoint:iterations=20"])
def test_weights_have_their_gradients(gradient):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with torch.inference_mode():
        y0 = torch.randn(2, 3)

    def gradients(y, **choices):
        y1 = odenet_torch.solve(lambda t, y: net(y), y, t1=1.0, steps=4, solver="euler", **choices).y1
        return torch.cat([g.flatten() for g in torch.autograd.grad(y1.square().sum(), net.parameters())])

    expected = gradients(y0.clone())
    torch.testing.assert_close(gradients(y0, gradient=gradient), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert odenet_torch.solve(lambda t, y: net(y), y0, t1=1.0, steps=4, solver="euler").y1.shape == (2, 3)
