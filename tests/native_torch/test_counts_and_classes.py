"""Counts of operations, tensors of classes of their own, tensors without values, and derivatives that are taken
forwards: right, or refused in words."""

import functools

import pytest
import torch
from of_time import Layer, OfTime
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from odenet import GradientError, UnsupportedError
from odenet_torch import NeuralODE, ResidualStack, convert, odeint_adjoint

DEPTH, WIDTH = 4, 3
EVALUATION = 2 * 2 * WIDTH * WIDTH
"""Operations of one evaluation of a block, at two rows."""


def block_class():
    """A block of code of its own, which nobody has looked at."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

        def forward(self, x):
            return 0.3 * torch.tanh(self.linear(x))

        def __getattr__(self, name):  # which has every attribute
            try:
                return super().__getattr__(name)
            except AttributeError:
                return None

    return Block


class DropIn(OfTime):
    def forward(self, x):
        times = torch.linspace(0, 1, 3, dtype=torch.float64)
        return odeint_adjoint(lambda t, y: self.block(y), x, times, method="euler", adjoint_params=self.parameters())[
            -1
        ]


class Checkpointed(nn.Sequential):
    def forward(self, x):
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


def stack(gradient):
    return lambda blocks: ResidualStack(blocks, gradient=gradient, t1=float(DEPTH))


def converted(blocks):
    layers = nn.Sequential(*map(Layer, blocks))
    return convert(layers, example=torch.zeros(2, WIDTH, dtype=torch.float64), gradient="checkpoint")


def adaptive(gradient):
    return lambda blocks: NeuralODE(OfTime(blocks[0]), rtol=1e-8, atol=1e-8, gradient=gradient)


WAYS = {
    "torch's checkpoint": lambda blocks: Checkpointed(*map(Layer, blocks)),
    "backprop": stack("backprop"),
    "checkpoint": stack("checkpoint"),
    "states": stack("checkpoint:states=2"),
    "discrete-adjoint": stack("discrete-adjoint:iterations=40"),
    "converted": converted,
    "adaptive checkpoint": adaptive("checkpoint"),
    "continuous-adjoint": adaptive("continuous-adjoint"),
    "drop-in": lambda blocks: DropIn(blocks[0]),
}


def made(way):
    torch.manual_seed(0)
    kind = block_class()
    return WAYS[way]([kind() for _ in range(DEPTH)])


def state():
    return torch.linspace(-1, 1, 2 * WIDTH, dtype=torch.float64).reshape(2, WIDTH)


def gradients(model, count):
    model.zero_grad()
    if not count:
        model(state()).square().sum().backward()
        return [p.grad for p in model.parameters()], 0, 0
    with FlopCounterMode(display=False) as counter:
        y = model(state().requires_grad_())
        forward = counter.get_total_flops()
        y.square().sum().backward()
    return [p.grad for p in model.parameters()], forward // EVALUATION, counter.get_total_flops() // EVALUATION


EVALUATIONS = {
    # of the forward pass, and of both, in every pass: the look at the first one is not counted
    "torch's checkpoint": (4, 16),
    "backprop": (4, 12),
    "checkpoint": (4, 16),
    "converted": (4, 16),
    "states": (4, 17),  # of four steps, one is taken three times
}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "torch's checkpoint"])
def test_a_count_of_operations_changes_nothing_and_is_torch_s(way):
    expected, *_ = gradients(made(way), count=False)
    model = made(way)
    for _ in range(3):
        found, *counts = gradients(model, count=True)
        assert found[0].abs().sum() > 0
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert way not in EVALUATIONS or tuple(counts) == EVALUATIONS[way]
    assert gradients(made("torch's checkpoint"), count=True)[1:] == EVALUATIONS["torch's checkpoint"]


class Doubling(torch.Tensor):
    """Whose tanh is twice as large."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        value = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * value if func is torch.tanh else value


class Named(torch.Tensor):
    """That does nothing."""


CUT = [way for way in WAYS if way not in ("torch's checkpoint", "backprop")]


@pytest.mark.parametrize("way", CUT)
def test_states_of_a_class_that_acts_are_refused(way):
    model = made(way)
    with pytest.raises(UnsupportedError, match="Doubling"):
        model(state().as_subclass(Doubling))
    expected, *_ = gradients(model, count=False)
    model.zero_grad()
    model(state().as_subclass(Named)).square().sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on its first use
@pytest.mark.parametrize("way", CUT)
def test_derivatives_that_are_taken_forwards(way):
    model, direction = made(way), torch.ones(2, WIDTH, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(state(), direction)
        if way == "drop-in":
            with pytest.raises(UnsupportedError, match="forward_ad"):
                model(dual)
            return
        tangent = forward_ad.unpack_dual(model(dual)).tangent
    h = 1e-5
    with torch.no_grad():
        expected = (model(state() + h * direction) - model(state() - h * direction)) / (2 * h)
    torch.testing.assert_close(tangent, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("way", CUT)
def test_tensors_without_values(way):
    model = made(way)

    def shape():
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            x = mode.from_tensor(state()).requires_grad_()
            model(x).sum().backward()
        return x.grad.shape

    if way != "converted":
        with pytest.raises(UnsupportedError, match="FakeTensorMode"):
            shape()
    gradients(model, count=False)
    if way in ("adaptive checkpoint", "continuous-adjoint", "drop-in"):
        with pytest.raises(UnsupportedError, match="FakeTensorMode"):
            shape()
    else:
        assert shape() == state().shape


class OfHalf(nn.Module):
    """Whose class makes another function each time that it is asked for its forward."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def scaled(self, factor, y):
        return factor * torch.tanh(self.inner(y))

    forward = functools.partialmethod(scaled, 0.5)


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "discrete-adjoint:iterations=20"])
def test_a_partial_method_as_forward_is_what_it_was(gradient):
    found = []
    for method in ("backprop", gradient):
        torch.manual_seed(0)
        stack, x = ResidualStack([OfHalf() for _ in range(4)], gradient=method), torch.randn(3, 4)
        stack(x).square().sum().backward()
        found.append([p.grad for p in stack.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    y = stack(x)
    before = vars(OfHalf)["forward"]
    OfHalf.forward = functools.partialmethod(OfHalf.scaled, 0.4)
    try:
        with pytest.raises(GradientError, match="replaced"):
            y.sum().backward()
    finally:
        OfHalf.forward = before
