"""One layer that a model calls in turn, as ALBERT does, is converted as many are; layers that make their own
parameters are, once they have them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import transformers
from torch import nn

from odenet import ConversionError
from odenet_torch import convert


class Residual(nn.Module):
    def __init__(self, make=nn.Linear, *sizes):
        super().__init__()
        self.f = make(*(sizes or (4, 4)))

    def forward(self, x):
        return x + torch.tanh(self.f(x))


class MakesItsLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = None

    def forward(self, x):
        if self.f is None:
            self.f = nn.Linear(4, 4)
        return x + torch.tanh(self.f(x))


class InTurn(nn.Module):
    def __init__(self, count, calls):
        super().__init__()
        self.layers, self.calls = nn.ModuleList([Residual() for _ in range(count)]), calls

    def forward(self, x):
        for n in range(self.calls):
            x = self.layers[n % len(self.layers)](x)
        return x


def albert():
    sizes = {"embedding_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.AlbertConfig(vocab_size=40, num_hidden_layers=4, num_hidden_groups=1, **sizes)
    return transformers.AlbertModel(config).train(), {"input_ids": torch.arange(12).view(2, 6)}


MODELS = {
    "albert": albert,
    "one": lambda: (InTurn(1, 5), torch.randn(2, 4)),
    "one, behind another": lambda: (nn.Sequential(nn.Linear(4, 4), InTurn(1, 3)), torch.randn(2, 4)),
}


def gradients(model, batch):
    torch.manual_seed(1)
    out = model(**batch).last_hidden_state if isinstance(batch, dict) else model(batch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(out.square().mean(), parameters, allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


@pytest.mark.parametrize(("gradient", "tolerance"), [("checkpoint", 0.0), ("checkpoint:bits=16", 1e-3), ("auto", 0.0)])
@pytest.mark.parametrize("name", MODELS)
def test_one_layer_called_in_turn(name, gradient, tolerance):
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    converted = convert(copy.deepcopy(model), example=batch, gradient=gradient)
    assert any("odenet_run" in vars(module) for module in converted.modules())
    for _ in range(2):
        expected, found = gradients(model, batch), gradients(converted, batch)
        assert float((found - expected).norm() / expected.norm()) <= tolerance


def test_a_rebuilding_method_refuses_one_layer_and_names_what_takes_it():
    with pytest.raises(ConversionError, match="gradient='checkpoint'"):
        convert(InTurn(1, 5), example=torch.randn(2, 4), gradient="discrete-adjoint")


def test_one_layer_that_is_called_once_is_no_run():
    with pytest.raises(ConversionError, match="or of one that it calls in turn"):
        convert(InTurn(1, 1), example=torch.randn(2, 4), gradient="checkpoint")


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:bits=8", "discrete-adjoint", "auto"])
def test_lazy_layers_are_converted_after_their_first_call(gradient):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        model = nn.Sequential(*[Residual(nn.LazyLinear, 4) for _ in range(3)])
    with pytest.raises(ConversionError, match="call the model once"):
        convert(model, example=torch.randn(2, 4), gradient=gradient)
    model(torch.randn(2, 4))
    convert(model, example=torch.randn(2, 4), gradient=gradient)


@pytest.mark.parametrize("gradient", ["checkpoint:bits=8", "checkpoint:bits=16", "discrete-adjoint"])
def test_layers_that_make_themselves_would_have_no_gradient(gradient):
    model, x = nn.Sequential(*[MakesItsLayer() for _ in range(3)]), torch.randn(2, 4)
    with pytest.raises(ConversionError, match="call the model once"):
        convert(model, example=x, gradient=gradient)
    model(x)
    expected = gradients(model, x)
    found = gradients(convert(copy.deepcopy(model), example=x, gradient="checkpoint:bits=16"), x)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
