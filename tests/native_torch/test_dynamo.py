"""torch.compile around a solve: it breaks its graph there, and does not look into the solve."""

from __future__ import annotations

import pytest
import torch
from of_time import Layer, OfTime
from torch import nn

import odenet
import odenet_jax
import odenet_torch
from odenet_torch import NeuralODE, ResidualStack, convert, odeint, odeint_adjoint


def block():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh())


assert odenet_jax.solve  # loaded: its rules of trees are asked about tensors, too
TIMES = torch.tensor([0.0, 1.0])
EQUAL = {"steps": 2, "gradient": "checkpoint"}
SOLVES = {
    "odenet.solve": lambda f, y: odenet.solve(f, y, **EQUAL).y1,
    "odenet.solve of a closure": lambda f, y: odenet.solve(lambda t, y: f(t, y), y, **EQUAL).y1,
    "odenet_torch.solve": lambda f, y: odenet_torch.solve(f, y, steps=2).y1,
    "odeint": lambda f, y: odeint(f, y, TIMES, method="euler")[-1],
    "odeint_adjoint": lambda f, y: odeint_adjoint(f, y, TIMES, method="dopri5")[-1],
}
NETWORKS = {
    "stack": lambda: ResidualStack([nn.Linear(4, 4), nn.Linear(4, 4)], gradient="checkpoint"),
    "ode": lambda: NeuralODE(OfTime(block()), steps=2, gradient="discrete-adjoint"),
    "adaptive": lambda: NeuralODE(OfTime(block()), rtol=1e-3, gradient="continuous-adjoint"),
    "converted": lambda: convert(
        nn.Sequential(Layer(block()), Layer(block())),
        gradient="checkpoint",
        example=torch.randn(2, 4, requires_grad=True),
    ),
}


class Around(nn.Module):
    """A network with a solve in the middle."""

    def __init__(self, kind):
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)
        self.solve = SOLVES.get(kind)
        self.inner = OfTime(block()) if self.solve else NETWORKS[kind]()

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(self.solve(self.inner, x) if self.solve else self.inner(x))


def network(kind):
    torch._dynamo.reset()
    torch.manual_seed(0)
    return Around(kind), torch.randn(3, 4)


def gradients(call, of, x):
    of.zero_grad()
    call(x).square().sum().backward()
    return [p.grad for p in of.parameters()]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo's own
@pytest.mark.filterwarnings("ignore:torch.compile does not look into")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")  # of odenet.solve, which finds its backend
@pytest.mark.parametrize("kind", [*SOLVES, *NETWORKS])
def test_a_program_with_a_solve_is_compiled_around_it(kind):
    net, x = network(kind)
    expected = gradients(net, net, x)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    found = gradients(torch.compile(net, backend=backend), net, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    # before the solve, and after it, where there is any: none of the solve, nor of its looks at the field
    # a frame with a closure it leaves whole to Python, but for torch 2.6, which can go on behind it
    around = sum("linear" in str(graph.graph) for graph in graphs)
    assert around == 2 or ("closure" in kind and around == 0)
    assert len(graphs) <= 3


@pytest.mark.parametrize("kind", [*SOLVES, *NETWORKS])
def test_one_graph_for_all_is_refused_in_words(kind):
    net, x = network(kind)
    net(x)  # odenet.solve finds its backend, which no program may look through
    with pytest.raises(Exception, match=r"fullgraph=True\) around a solve.*leave fullgraph out") as refused:
        torch.compile(net, backend="eager", fullgraph=True)(x)
    assert isinstance(refused.value, odenet.UnsupportedError) or torch.__version__ < "2.9"


def test_a_value_and_its_gradients_are_taken_between_two_graphs():
    inner, x = OfTime(block()), torch.randn(3, 4)

    def value(x):
        return odenet.value_and_grad(lambda solution: solution.y1.square().sum(), inner, 2 * x, steps=2)[0] + 1

    expected = value(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(value, backend="eager")(x), expected)
    torch._dynamo.reset()  # which would take what it has compiled of the same function
    with pytest.raises(Exception, match=r"fullgraph=True\) around a solve.*leave fullgraph out"):
        torch.compile(value, backend="eager", fullgraph=True)(x)
