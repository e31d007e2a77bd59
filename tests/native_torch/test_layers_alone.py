"""Layers that a model sets up as it runs, and that do not run outside of its forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odenet import ConversionError
from odenet_torch import convert


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.block = nn.Linear(4, 4), 64

    def forward(self, y):
        if y.shape[1] % self.block:
            raise ValueError(f"the length must be a multiple of {self.block}")
        return y + 0.1 * torch.tanh(self.linear(y))


class Model(nn.Module):
    """Long sequences are attended to in blocks, and its layers are told when one is short, as in BigBird-Pegasus."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, y):
        for layer in self.layers:
            layer.block = 64 if y.shape[1] >= 64 else 1
        for layer in self.layers:
            y = layer(y)
        return y


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "checkpoint:bits=8"])
def test_a_layer_that_does_not_run_alone_is_named_and_what_to_do_helps(gradient):
    torch.manual_seed(0)
    model, y = Model(), torch.randn(2, 5, 4)
    with pytest.raises(ConversionError, match=r"Layer.*multiple of 64.*call the model once"):
        convert(model, gradient=gradient, example=y)
    expected = torch.autograd.grad(model(y).sum(), model.parameters())  # it has been called
    converted = convert(model, gradient=gradient, example=y)
    converted(y).sum().backward()
    for value, parameter in zip(expected, converted.parameters(), strict=True):
        assert (parameter.grad - value).norm() < 0.05 * value.norm()
