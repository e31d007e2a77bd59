"""torch.compile: the step is compiled once, whatever the number of equal blocks; the loop stays Python."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odenet_torch import NeuralODE, ResidualStack

METHODS = (
    ("euler", "backprop"),
    ("euler", "checkpoint"),
    ("euler", "checkpoint:states=3"),
    ("euler", "discrete-adjoint"),
    ("heun", "discrete-adjoint:iterations=2"),
    ("euler", "continuous-adjoint"),
    ("reversible-heun", "reversible"),
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Field(Block):
    def forward(self, t, y):
        return super().forward(y) * t


@pytest.fixture
def graphs():
    """The graphs that were compiled, and the backend that notes them."""
    torch._dynamo.reset()
    seen = []

    def backend(graph, example):
        seen.append(graph)
        return graph.forward

    yield seen, backend
    torch._dynamo.reset()


def gradients(call, module, x):
    module.zero_grad()
    (given,) = torch.autograd.grad(call(x).square().sum(), x, retain_graph=True)
    call(x).square().sum().backward()
    return [given, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.parametrize(("solver", "gradient"), METHODS)
def test_equal_blocks_are_at_most_two_graphs_and_give_the_same_gradients(graphs, solver, gradient):
    seen, backend = graphs
    torch.manual_seed(0)
    stack = ResidualStack([Block() for _ in range(12)], solver=solver, gradient=gradient)
    x = torch.randn(3, 6, requires_grad=True)
    plain = gradients(stack, stack, x)
    stack.compile(backend=backend)
    for one, other in zip(gradients(stack, stack, x), plain, strict=True):
        torch.testing.assert_close(one, other)
    assert 1 <= len(seen) <= 2


def test_a_field_is_compiled_once(graphs):
    seen, backend = graphs
    torch.manual_seed(0)
    ode = NeuralODE(Field(), steps=9, gradient="discrete-adjoint")
    x = torch.randn(3, 6, requires_grad=True)
    plain = gradients(ode, ode, x)
    ode.compile(backend=backend)
    for one, other in zip(gradients(ode, ode, x), plain, strict=True):
        torch.testing.assert_close(one, other)
    assert 1 <= len(seen) <= 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
def test_a_compiled_model_around_a_compiled_stack(graphs):
    seen, backend = graphs
    torch.manual_seed(0)
    stack = ResidualStack([Block() for _ in range(12)], gradient="discrete-adjoint")
    model = nn.Sequential(nn.Linear(6, 6), stack, nn.Linear(6, 2))
    x = torch.randn(3, 6, requires_grad=True)
    plain = gradients(model, model, x)
    stack.compile(backend=backend)
    compiled = torch.compile(model, backend=backend)
    for one, other in zip(gradients(compiled, model, x), plain, strict=True):
        torch.testing.assert_close(one, other)
    assert 1 <= len(seen) <= 2 + 3  # of the stack, and of what is around it


def test_compiling_around_a_stack_whose_blocks_are_not_is_said(graphs):
    _, backend = graphs
    stack = ResidualStack([Block() for _ in range(3)], gradient="discrete-adjoint")
    with pytest.warns(UserWarning, match=r"call compile\(\) of the stack"):
        torch.compile(stack, backend=backend)(torch.randn(3, 6))
