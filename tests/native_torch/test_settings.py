"""What torch is set to around the forward pass, and no longer in the backward pass: the gradient is backprop's."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from odenet_torch import NeuralODE, ResidualStack, convert, odeint_adjoint

WIDTH = 4


class Doubled(TorchFunctionMode):
    """Makes each tanh two."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        return 2 * value if func is torch.tanh else value


class DoubledBelow(TorchDispatchMode):
    """The same below autograd."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        value = func(*args, **(kwargs or {}))
        return value + value if func is torch.ops.aten.tanh.default else value


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SETTINGS = {
    "function mode": Doubled,
    "dispatch mode": DoubledBelow,
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: default_dtype(torch.bfloat16),
    "deterministic": deterministic,
    "kernels": lambda: torch.backends.mkldnn.flags(enabled=False),
    "attention": lambda: sdpa_kernel(SDPBackend.MATH),
}


class Reading(nn.Module):
    """A branch that reads all of these."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, *arguments):
        x = arguments[-1]  # a field is given a time, too
        scale = 1 + torch.full((), 0.3, device="cpu").item()  # a rounding of the default number type
        for is_set in (
            torch.get_default_device().type == "meta",
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.mkldnn.enabled,
        ):
            scale *= 1.5 if is_set else 1.0
        hidden = torch.tanh(self.first(x)) * scale
        heads = hidden[None, None]
        return 0.1 * self.second(torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)[0, 0])


class Layer(Reading):
    def forward(self, x):
        return x + super().forward(x)


def stack(gradient):
    return lambda: ResidualStack([Reading() for _ in range(3)], gradient=gradient)


def field(gradient, **choices):
    return lambda: NeuralODE(Reading(), gradient=gradient, **choices)


def converted(gradient):
    return lambda: convert(nn.Sequential(Layer(), Layer()), example=torch.ones(2, WIDTH), gradient=gradient)


class DropIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.field = Reading()

    def forward(self, x):
        t = torch.linspace(0, 1, 9, device="cpu", dtype=torch.float64)
        return odeint_adjoint(self.field, x, t, method="rk4")[-1]


USES = {
    "checkpoint": (stack("checkpoint"), 1e-6),
    "states": (stack("checkpoint:states=2"), 1e-6),
    "discrete adjoint": (stack("discrete-adjoint:iterations=20"), 1e-4),
    "alf": (field("reversible", solver="alf", steps=4), 1e-5),
    "adaptive": (field("discrete-adjoint", rtol=1e-5, atol=1e-7), 1e-2),
    "converted": (converted("checkpoint"), 1e-6),
    "converted, rounded": (converted("checkpoint:bits=16"), 1e-3),
    "odeint_adjoint": (DropIn, 1e-3),
}


def gradients(use, setting, inside, passes):
    """By the parameters, of the last of some passes, whose backward pass is inside of the setting or after it."""
    torch.manual_seed(0)
    net = USES[use][0]()
    x = torch.randn(3, WIDTH)
    for _ in range(passes):
        net.zero_grad()
        with SETTINGS[setting]():
            y = net(x)
        parameters = [*net.parameters()]
        if inside == "exact":  # the graph of the forward pass, by backprop
            return torch.cat([g.flatten() for g in torch.autograd.grad(y.square().sum(), parameters)])
        y.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in parameters])


def exact(use, setting):
    """By backprop, of the same network."""
    kept = USES[use]
    makers = {
        "checkpoint": stack("backprop"),
        "states": stack("backprop"),
        "discrete adjoint": stack("backprop"),
        "alf": field("backprop", solver="alf", steps=4),
        "adaptive": field("backprop", rtol=1e-5, atol=1e-7),
        "converted": lambda: nn.Sequential(Layer(), Layer()),
        "converted, rounded": lambda: nn.Sequential(Layer(), Layer()),
        "odeint_adjoint": field("backprop", solver="rk4", steps=8),
    }
    try:
        USES[use] = (makers[use], 0.0)
        return gradients(use, setting, "exact", 1)
    finally:
        USES[use] = kept
