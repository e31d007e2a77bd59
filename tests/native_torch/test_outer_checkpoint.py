"""Networks of ours inside a `torch.utils.checkpoint` of somebody's, which counts what is saved and runs all twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from odenet_torch import NeuralODE, ResidualStack, convert, odeint, odeint_adjoint

pytestmark = [pytest.mark.usefixtures("double"), pytest.mark.filterwarnings("ignore::odenet.GradientWarning")]
FIXED = (
    "backprop",
    "checkpoint",
    "checkpoint:segments=2",
    "checkpoint:states=2",
    "checkpoint:bits=8",
    "discrete-adjoint",
)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return x + 0.2 * nn.functional.dropout(torch.tanh(self.linear(x)), 0.5)


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, t, y):
        return torch.tanh(self.linear(y))


class DropIn(nn.Module):
    def __init__(self, entry):
        super().__init__()
        self.field, self.entry = Field(), entry

    def forward(self, x):
        return self.entry(self.field, x, torch.tensor([0.0, 1.0]))[-1]


def blocks():
    return [nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(4)]


def converted(gradient):
    return convert(nn.Sequential(*[Layer() for _ in range(4)]), example=torch.randn(3, 4), gradient=gradient)


NETWORKS = {
    **{f"stack, {name}": lambda name=name: ResidualStack(blocks(), gradient=name) for name in FIXED},
    **{
        f"plain stack, {name}": lambda name=name: ResidualStack(
            [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(4)], gradient=name
        )
        for name in FIXED[3:]
    },
    **{f"converted, {name}": lambda name=name: converted(name) for name in FIXED},
    **{
        f"adaptive, {name}": lambda name=name: NeuralODE(Field(), rtol=1e-5, atol=1e-7, gradient=name)
        for name in ("backprop", "checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint")
    },
    "equal, continuous-adjoint": lambda: NeuralODE(Field(), steps=4, gradient="continuous-adjoint"),
    "odeint": lambda: DropIn(odeint),
    "odeint_adjoint": lambda: DropIn(odeint_adjoint),
}


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "without reentrant autograd"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_gradients_are_those_without_it(network, reentrant):
    def gradients(net, outer):
        torch.manual_seed(2)
        x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
        y = checkpoint(net, x, use_reentrant=reentrant) if outer else net(x)
        return torch.autograd.grad(y.square().sum(), [x, *net.parameters()]) if not reentrant else back(y, x, net)

    def back(y, x, net):  # torch.autograd.grad is refused there
        net.zero_grad()
        y.square().sum().backward()
        return x.grad, *(p.grad for p in net.parameters())

    torch.manual_seed(1)
    plain = network()
    torch.manual_seed(1)
    net = network()
    for _ in range(3):  # what is known of a network from its first passes changes what its later ones look at
        torch.testing.assert_close(gradients(net, True), gradients(plain, False), rtol=1e-9, atol=1e-12)
