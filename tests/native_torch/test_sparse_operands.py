"""Blocks that multiply by a sparse matrix, as graph networks do: they are run again, counted and compared as others."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import NeuralODE, ResidualStack, convert, odeint_adjoint
from odenet_torch.field import storages, written_on

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support is in beta state")
SIZE, CHANNELS = 8, 6
LAYOUTS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}
PLACES = ("attribute", "buffer", "parameter")
METHODS = ("checkpoint", "checkpoint:memory=10k", "checkpoint:bits=8", "discrete-adjoint")


def matrix() -> torch.Tensor:
    values = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(values < 0.3, values, 0.0)


class Graph(nn.Module):
    """tanh(W A x), with A as an attribute, a buffer, a parameter, or what it is called with."""

    def __init__(self, adjacency: torch.Tensor | None, place: str) -> None:
        super().__init__()
        self.inner, self.place = nn.Linear(CHANNELS, CHANNELS).double(), place
        match place:
            case "attribute":
                self.adjacency = adjacency
            case "buffer":
                self.register_buffer("adjacency", adjacency)
            case "parameter":
                self.adjacency = nn.Parameter(adjacency)

    def forward(self, *arguments):
        x, adjacency = arguments if self.place == "argument" else (arguments[-1], self.adjacency)
        return torch.tanh(self.inner(adjacency @ x))


class Layer(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x, *arguments):
        return x + 0.2 * self.branch(x, *arguments)


class Model(nn.Module):
    def __init__(self, adjacency: torch.Tensor, place: str) -> None:
        super().__init__()
        self.arguments = [adjacency] if place == "argument" else []
        self.layers = nn.ModuleList(Layer(Graph(adjacency.clone(), place)) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, *self.arguments)
        return x


def stack(adjacency, place, gradient):
    return ResidualStack([Graph(adjacency.clone(), place) for _ in range(4)], gradient=gradient)


def field(adjacency, place, gradient):
    return NeuralODE(Graph(adjacency, place), steps=4, solver="heun", gradient=gradient)


def converted(adjacency, place, gradient):
    model = Model(adjacency, place)
    return model if gradient == "backprop" else convert(model, example=X, gradient=gradient) or model


USES = {"stack": stack, "field": field, "convert": converted}
X = torch.randn(SIZE, CHANNELS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(use, adjacency, place, gradient):
    """Of the second of two passes: what is known of a block by then is used."""
    torch.manual_seed(2)
    model, x = use(adjacency, place, gradient), X.clone().requires_grad_()
    for _ in range(2):
        model.zero_grad()
        x.grad = None
        model(x).square().sum().backward()
    return [grad.to_dense() for grad in (x.grad, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize(("use", "place"), [*itertools.product(USES, PLACES), ("convert", "argument")])
def test_gradients_are_those_of_the_dense_matrix(use, place):
    layouts = LAYOUTS.values() if place == "attribute" else (torch.Tensor.to_sparse,)
    for gradient in (*METHODS, *(["auto"] if (use, place) == ("convert", "argument") else [])):
        expected = gradients(USES[use], matrix(), place, gradient)
        for to in layouts:
            for one, other in zip(gradients(USES[use], to(matrix()), place, gradient), expected, strict=True):
                pattern = one != 0 if place == "parameter" else torch.ones_like(one, dtype=torch.bool)
                torch.testing.assert_close(one[pattern], other[pattern], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("use", USES)
def test_values_that_are_written_on_before_the_backward_pass_are_noticed(use, layout):
    """Through `.data`, which torch does not count."""
    torch.manual_seed(2)
    model = USES[use](LAYOUTS[layout](matrix()), "attribute", "checkpoint")
    model(X.clone().requires_grad_()).sum().backward()
    loss = model(X.clone().requires_grad_()).sum()
    for block in model.modules():
        if isinstance(block, Graph):
            storages.parts(block.adjacency)[0].data.mul_(2.0)
    with pytest.raises(odenet.GradientError, match="after the forward pass"):
        loss.backward()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_of_a_sparse_tensor_is_that_of_its_parts(layout):
    sparse, count = LAYOUTS[layout](matrix()), int((matrix() != 0).sum())
    indices = 2 * count if layout == "coo" else count + SIZE + 1
    assert storages.nbytes(sparse) == 8 * (count + indices)
    assert len(storages.storages(sparse)) == (2 if layout == "coo" else 3)
    before = written_on.writes(sparse)
    assert before == written_on.writes(sparse)
    storages.parts(sparse)[0].data[0] += 1.0
    assert before != written_on.writes(sparse)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_parameter_of_the_drop_in_s_adjoint_is_refused(layout):
    field = Graph(LAYOUTS[layout](matrix()), "parameter")
    with pytest.raises(odenet.UnsupportedError, match="make its values the parameter"):
        odeint_adjoint(field, X, torch.linspace(0, 1, 3, dtype=torch.float64))


def test_values_of_a_sparse_matrix_are_parameters_of_the_drop_in_s_adjoint():
    (rows, columns), values = matrix().nonzero().T, matrix()[matrix() != 0]

    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.values = nn.Parameter(values.clone())

        def forward(self, t, y):
            return (
                -torch.sparse_coo_tensor(
                    torch.stack([rows, columns]), self.values, (SIZE, SIZE), check_invariants=False
                )
                @ y
            )

    field, times = Values(), torch.linspace(0, 1, 3, dtype=torch.float64)
    odeint_adjoint(field, X, times, rtol=1e-9, atol=1e-9)[-1].square().sum().backward()
    dense = matrix().requires_grad_()
    (torch.matrix_exp(-dense) @ X).square().sum().backward()
    torch.testing.assert_close(field.values.grad, dense.grad[rows, columns], rtol=1e-6, atol=1e-8)
