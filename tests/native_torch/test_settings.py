"""What torch is set to around the forward pass, and no longer in the backward pass: the gradient is backprop's."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from odenet import GradientError, InputError
from odenet_torch import NeuralODE, ResidualStack, convert, odeint_adjoint, solve

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
    "kernels": lambda: torch.backends.cudnn.flags(enabled=False),
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
            torch.backends.cudnn.enabled,
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


EXACT = {
    "checkpoint": stack("backprop"),
    "states": stack("backprop"),
    "discrete adjoint": stack("backprop"),
    "alf": field("backprop", solver="alf", steps=4),
    "adaptive": field("backprop", rtol=1e-5, atol=1e-7),
    "converted": lambda: nn.Sequential(Layer(), Layer()),
    "converted, rounded": lambda: nn.Sequential(Layer(), Layer()),
    "odeint_adjoint": field("backprop", solver="rk4", steps=8),
}
"""The same networks, by autograd."""


def gradients(make, setting, passes=1):
    """By the parameters that are read, of the last of some passes, whose backward pass is outside of the setting."""
    torch.manual_seed(0)
    net = make()
    x = torch.randn(3, WIDTH)
    for _ in range(passes):
        net.zero_grad()
        with setting():
            y = net(x)
        y.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None and p.grad.any()])


CASES = [
    *((use, "function mode") for use in USES),
    *((use, "default device") for use in USES),
    *((use, setting) for use in ("checkpoint", "converted") for setting in SETTINGS if "de" not in setting),
    *(("discrete adjoint", setting) for setting in ("dispatch mode", "default dtype", "deterministic", "kernels")),
    *(("odeint_adjoint", setting) for setting in ("deterministic", "kernels")),
    ("checkpoint", "default dtype"),
    ("converted", "default dtype"),
    ("converted, rounded", "dispatch mode"),
]


@pytest.mark.parametrize(("use", "setting"), CASES)
def test_a_backward_pass_runs_steps_as_they_ran(use, setting):
    wanted, (make, tolerance) = gradients(EXACT[use], SETTINGS[setting]), USES[use]
    for passes in (1, 3):  # blocks are known from the second on
        got = gradients(make, SETTINGS[setting], passes)
        assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert not torch._C._len_torch_function_stack()
    assert not torch._C._len_torch_dispatch_stack()
    assert torch.get_default_dtype() is torch.float32
    assert torch.backends.cudnn.enabled
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("use", USES)
def test_a_field_that_asks_whether_gradients_are_recorded_is_refused(use, monkeypatch):
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, *arguments):
            return torch.tanh(self.inner(arguments[-1])) * (0.1 if torch.is_grad_enabled() else 0.2)

    class AskingLayer(Asking):
        def forward(self, x):
            return x + super().forward(x)

    monkeypatch.setitem(globals(), "Reading", Asking)
    monkeypatch.setitem(globals(), "Layer", AskingLayer)
    with pytest.raises((GradientError, InputError)):
        USES[use][0]()(torch.randn(3, WIDTH))


@pytest.mark.parametrize("use", USES)
def test_recording_that_a_field_leaves_switched_on_is_for_itself(use, monkeypatch):
    class Switching(Reading):
        def forward(self, *arguments):
            torch.set_grad_enabled(True)
            return 0.1 * torch.tanh(self.first(arguments[-1]))

    class SwitchingLayer(Switching):
        def forward(self, x):
            return x + super().forward(x)

    monkeypatch.setitem(globals(), "Reading", Switching)
    monkeypatch.setitem(globals(), "Layer", SwitchingLayer)
    (make, tolerance), wanted = USES[use], gradients(EXACT[use], contextlib.nullcontext)
    got = gradients(make, contextlib.nullcontext)
    assert (got - wanted).norm() <= tolerance * wanted.norm()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", ["checkpoint", "checkpoint:segments=2", "discrete-adjoint"])
def test_the_default_device_can_be_put_back_after_a_backward_pass(method):
    """Torch's checkpoint enters the mode of the device again, which was there already."""
    block, y = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    for _ in range(2):
        torch.set_default_device("meta")
        try:
            solved = solve(lambda t, y: block(y), y, t1=1.0, steps=2, gradient=method).y1
            solved.sum().backward()
        finally:
            torch.set_default_device(None)
        assert torch.zeros(()).device.type == "cpu"
        assert not torch._C._len_torch_function_stack()
