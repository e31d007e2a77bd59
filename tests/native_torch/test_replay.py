"""Blocks that hold more than weights: what runs again must run as it ran, and leave no trace.

Exact methods are held to backprop's gradient to rounding, the others within a bound that another mask, other
statistics or a lost term would exceed.
"""

from __future__ import annotations

import copy
import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from odenet import GradientError
from odenet_torch import NeuralODE, ResidualStack, solve
from odenet_torch.field.called_modules import indifferent

WIDTH, BATCH = 8, 6
pytestmark = pytest.mark.usefixtures("double")
EXACT = {  # by method: solvers
    "checkpoint": ("euler", "heun", "midpoint"),
    "checkpoint:segments=2": ("euler", "heun"),
    "checkpoint:states=2": ("euler", "heun", "ralston"),
    "checkpoint:memory=1M": ("euler",),
    "discrete-adjoint:iterations=14": ("euler", "heun", "midpoint", "rk4"),
    "discrete-adjoint:tolerance=1e-14:limit=40": ("euler",),
    "reversible": ("reversible-heun", "alf", "reversible:euler", "reversible:heun"),
}
NEAR = {
    "discrete-adjoint": ("euler", "heun", "midpoint"),
    "discrete-adjoint:correct=no": ("euler", "heun"),
    "discrete-adjoint:predictor=extrapolate:order=1": ("euler",),
    "discrete-adjoint:anchors=2": ("euler", "rk4"),
    "continuous-adjoint": ("euler", "heun", "ralston"),
    "continuous-adjoint:interpolate=yes": ("euler", "midpoint"),
    "continuous-adjoint:steps=9": ("euler", "heun"),
    "continuous-adjoint:solver=rk4:steps=3": ("euler",),
}
EXACT_PAIRS = [(solver, method) for method, solvers in EXACT.items() for solver in solvers]
NEAR_PAIRS = [(solver, method) for method, solvers in NEAR.items() for solver in solvers]
ALL_PAIRS = [*EXACT_PAIRS, *NEAR_PAIRS]
SOME_PAIRS = [
    ("heun", "checkpoint"),
    ("euler", "checkpoint:segments=2"),
    ("euler", "checkpoint:states=2"),
    ("heun", "discrete-adjoint:iterations=14"),
    ("euler", "continuous-adjoint"),
    ("reversible-heun", "reversible"),
]
ALL = pytest.mark.parametrize(("solver", "method"), ALL_PAIRS)
SOME = pytest.mark.parametrize(("solver", "method"), SOME_PAIRS)


class Block(nn.Module):
    """A small residual branch with some module in its middle."""

    def __init__(self, middle=None):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.middle = middle if middle is not None else nn.Identity()
        self.outer = nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.outer.weight.mul_(0.5)

    def forward(self, x):
        return 0.4 * self.outer(torch.tanh(self.middle(self.inner(x))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)[None]
        return self.attention(y, y, y, need_weights=False)[0][0]


class Grouped(nn.Module):
    """A norm of images, on the state as an image."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.reshape(len(x), 2, 4, 1)).reshape(x.shape)


class Tally(nn.Module):
    """A buffer that each training pass changes, and that matters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        out = x - self.mean
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)  # another tensor each time
        return out


MIDDLES = {
    "BatchNorm": lambda: nn.BatchNorm1d(WIDTH),
    "BatchNorm without statistics": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "InstanceNorm": lambda: Grouped(nn.InstanceNorm2d(2, affine=True, track_running_stats=True)),
    "GroupNorm": lambda: Grouped(nn.GroupNorm(2, 2)),
    "LayerNorm": lambda: nn.LayerNorm(WIDTH),
    "Dropout": lambda: nn.Dropout(0.3),
    "RReLU": lambda: nn.RReLU(),
    "attention": Attention,
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "a buffer that matters": Tally,
}


@pytest.fixture
def x():
    return torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(5))


def stack(solver, method, middle=lambda: None, blocks=4, block=Block):
    torch.manual_seed(2)
    return ResidualStack([block(middle()) for _ in range(blocks)], solver=solver, gradient=method, along="linear")


def backward(model, x, seed=11):
    """One training step's gradient, and the random state after it."""
    torch.manual_seed(seed)
    model.zero_grad()
    x = x.clone().requires_grad_()
    model(x).square().sum().backward()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in (x, *model.parameters())]
    return torch.cat([g.flatten() for g in found])


def apart(one, other):
    return float((one - other).norm() / other.norm())


def settled(model):
    """Buffers that change are as in a run of some length."""
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            model(torch.randn(BATCH, WIDTH))
    return model


@pytest.mark.parametrize(
    ("middle", "solver", "method"),
    [
        pytest.param(middle, *pair, marks=() if middle == "Dropout" or pair in SOME_PAIRS else pytest.mark.slow)
        for middle in MIDDLES  # one with every pair for what is drawn, and for make test-slow for what is written
        for pair in (ALL_PAIRS if middle in ("BatchNorm", "Dropout", "a buffer that matters") else SOME_PAIRS)
    ],
)
def test_gradient_buffers_and_random_state_are_those_of_backprop(x, solver, method, middle):
    """In two training steps, of which the second starts from what the first left, and in evaluation."""
    twins = [settled(stack(solver, gradient, MIDDLES[middle])) for gradient in ("backprop", method)]
    bound = 1e-12 if (solver, method) in EXACT_PAIRS else 0.5 if "continuous" in method else 0.05
    for training in (True, True, False):
        exact, found = ((backward(twin.train(training), x), torch.get_rng_state()) for twin in twins)
        assert apart(found[0], exact[0]) < bound
        assert torch.equal(found[1], exact[1])
        for (name, one), other in zip(twins[0].named_buffers(), twins[1].buffers(), strict=True):
            assert torch.equal(one, other), name
        assert {module.training for module in twins[1].modules()} == {training}


@ALL
def test_batches_are_counted_once_for_each_use_in_the_forward_pass(x, solver, method):
    """Linear in depth, Heun's inner blocks are used twice; the statistics are those of a loop written here."""
    model = stack(solver, method, MIDDLES["BatchNorm"])
    if solver not in ("euler", "heun"):
        backward(model, x)
        counts = [int(block.middle.num_batches_tracked) for block in model.blocks]
        backward(model, x)
        assert [int(block.middle.num_batches_tracked) for block in model.blocks] == [2 * count for count in counts]
        assert sum(counts) == model.stats.f_evaluations
        return
    loop = copy.deepcopy(list(model.blocks))
    for step in (1, 2):
        backward(model, x)
        y, h = x, 1 / 3
        for one, other in itertools.pairwise(loop):
            first = one(y)
            y = y + (h / 2 * (first + other(y + h * first)) if solver == "heun" else h * first)
        inner = step * (2 if solver == "heun" else 1)
        counts = [int(block.middle.num_batches_tracked) for block in model.blocks]
        assert counts == [step, inner, inner, step if solver == "heun" else 0]
        for mine, plain in zip(model.blocks, loop, strict=True):
            torch.testing.assert_close(mine.middle.running_mean, plain.middle.running_mean, rtol=1e-13, atol=1e-15)
            torch.testing.assert_close(mine.middle.running_var, plain.middle.running_var, rtol=1e-13, atol=1e-15)


def test_synchronised_batch_norm_is_treated_as_batch_norm():
    """By its class: it runs on CUDA alone."""
    norm = nn.SyncBatchNorm(WIDTH)
    assert indifferent(norm)
    assert not indifferent(norm.eval())
    assert not indifferent(nn.LayerNorm(WIDTH))


@SOME
def test_a_frozen_norm_in_a_training_stack_keeps_its_statistics(x, solver, method):
    """The usual way of fine-tuning: BatchNorm in evaluation mode, all else in training mode."""
    twins = [settled(stack(solver, gradient, MIDDLES["BatchNorm"])) for gradient in ("backprop", method)]
    for twin in twins:
        for block in twin.blocks:
            block.middle.eval()
    before = [buffer.clone() for buffer in twins[1].buffers()]
    exact, found = (backward(twin, x) for twin in twins)
    assert apart(found, exact) < (0.5 if "continuous" in method else 1e-12)
    assert all(torch.equal(one, other) for one, other in zip(before, twins[1].buffers(), strict=True))


@SOME
def test_a_module_in_a_closure_runs_again_as_it_ran(x, solver, method):
    """It is no argument of the solve; it is noticed when it is called first."""

    def run(gradient):
        torch.manual_seed(2)
        block = Block(nn.Sequential(MIDDLES["spectral norm"](), nn.BatchNorm1d(WIDTH), nn.Dropout(0.3)))
        torch.manual_seed(3)
        given = x.clone().requires_grad_()
        y1 = solve(lambda t, y: torch.cos(t) * block(y), given, steps=6, solver=solver, gradient=gradient).y1
        y1.square().sum().backward()
        found = [given.grad, *(p.grad for p in block.parameters())]
        return torch.cat([g.flatten() for g in found]), [buffer.clone() for buffer in block.buffers()]

    (exact, kept), (found, left) = run("backprop"), run(method)
    assert apart(found, exact) < (0.5 if "continuous" in method else 1e-11)
    assert all(torch.equal(one, other) for one, other in zip(left, kept, strict=True))


@SOME
@pytest.mark.parametrize("inside", [True, False])
def test_the_backward_pass_is_under_the_autocast_of_the_forward_pass(x, solver, method, inside):
    """The same bits whether backward() is called inside or outside, and the same as backprop's up to bfloat16."""
    torch.set_default_dtype(torch.float32)
    given, found = x.float(), {}
    for gradient in ("backprop", method):
        for within in (True, inside):
            model = stack(solver, gradient, MIDDLES["LayerNorm"])
            mixed = torch.autocast("cpu", torch.bfloat16)
            with mixed:
                loss = model(given).float().square().sum()
                if within:
                    loss.backward()
            if not within:
                loss.backward()
            found[gradient, within] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert torch.equal(found[method, True], found[method, inside])
    assert apart(found[method, inside], found["backprop", True]) < (0.5 if "continuous" in method else 0.02)
    plain = stack(solver, method, MIDDLES["LayerNorm"])
    plain(given).square().sum().backward()
    single = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert apart(found[method, inside], single) > 1e-5  # so autocast did something


@SOME
def test_a_parameter_that_is_used_again_after_the_stack_keeps_both_gradients(x, solver, method):
    """Casts made without a graph in the forward pass must not be found in autocast's cache afterwards."""
    torch.set_default_dtype(torch.float32)
    found = {}
    for gradient in ("backprop", method):
        model = stack(solver, gradient)
        with torch.autocast("cpu", torch.bfloat16):
            early = model.blocks[0](x.float())
            y = model(early)
            late = model.blocks[0](y) + model.blocks[1](y)
        late.float().square().sum().backward()
        found[gradient] = [model.blocks[i].inner.weight.grad for i in (0, 1)]
    for one, other in zip(found[method], found["backprop"], strict=True):
        assert apart(one, other) < (0.2 if "continuous" in method else 0.02)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.calls / 10)


class OwnDice(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return x + torch.randn(x.shape, generator=self.generator)


class PythonDice(nn.Module):
    def forward(self, x):
        return x if random.random() > 0.1 else 2 * x


class NumpyDice(nn.Module):
    def forward(self, x):
        return x if np.random.random() > 0.1 else 2 * x


class Renormalised(nn.BatchNorm1d):
    """By its class a BatchNorm; in training, too, it reads the statistics that it changes."""

    def forward(self, x):
        out = x - self.running_mean
        super().forward(x)
        return out


CALLS = [0]


class Global(nn.Module):
    def forward(self, x):
        CALLS[0] = (CALLS[0] + 1) % 4
        return x * (1 + CALLS[0] / 10)


@SOME
@pytest.mark.parametrize(
    ("middle", "match"),
    [
        (Counter, "is not a function of its inputs"),
        (OwnDice, "is not a function of its inputs"),
        (Global, "is not a function of its inputs"),
        (lambda: Renormalised(WIDTH, affine=False), "is not a function of its inputs"),
        (PythonDice, "draws random numbers from Python or NumPy"),
        (NumpyDice, "draws random numbers from Python or NumPy"),
    ],
)
def test_a_block_that_is_no_function_of_its_inputs_is_named(x, solver, method, middle, match):
    """Whichever block it is, and each time that the model is called."""
    torch.manual_seed(0)
    blocks = [Block(), Block(), Block(middle()), Block()]
    model = ResidualStack(blocks, solver=solver, gradient=method, along="linear")
    for _ in range(2):
        with pytest.raises(GradientError, match=rf"block 2 \(Block\) {match}"):
            model(x)
    ResidualStack(blocks, solver=solver, along="linear")(x)  # backprop runs it


@SOME
def test_switching_between_forward_and_backward_is_an_error(x, solver, method):
    model = stack(solver, method, MIDDLES["BatchNorm"])
    loss = model(x).sum()
    model.blocks[1].middle.eval()
    with pytest.raises(GradientError, match=r"block 1 \(Block\) was switched between train\(\) and eval\(\)"):
        loss.backward()


def freeze(model):
    model.blocks[1].inner.weight.requires_grad_(False)


def write_parameter(model):
    with torch.no_grad():
        model.blocks[1].inner.weight.mul_(2)


def write_frozen(model):
    with torch.no_grad():
        model.blocks[2].inner.weight.mul_(2)


def write_buffer(model):
    with torch.no_grad():
        model.blocks[1].middle.running_var.mul_(2)


def other_buffer(model):
    model.blocks[1].middle.running_var = model.blocks[1].middle.running_var * 2


@SOME
@pytest.mark.parametrize("change", [freeze, write_parameter, write_frozen, write_buffer, other_buffer])
def test_what_changed_between_forward_and_backward_is_noticed(x, solver, method, change):
    """Not the parameters alone that want a gradient: a frozen one or a buffer makes the other gradients wrong."""
    model = stack(solver, method, MIDDLES["BatchNorm"]).eval()
    model.blocks[2].requires_grad_(False)
    loss = model(x).square().sum()
    change(model)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|was changed"):
        loss.backward()


@SOME
@pytest.mark.parametrize("wanted", [True, False])
def test_an_extra_argument_that_is_written_on_is_noticed(x, solver, method, wanted):
    class Scaled(Block):
        def forward(self, x, scale):
            return scale * super().forward(x)

    model, scale = stack(solver, method, block=Scaled), torch.ones(WIDTH, requires_grad=wanted)
    loss = model(x, scale).square().sum()
    with torch.no_grad():
        scale.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@SOME
@pytest.mark.parametrize("kind", ["stack", "module"])
def test_the_parameters_of_a_functional_call_are_those_of_the_backward_pass(x, solver, method, kind):
    """Outside of the call the module has its own again; these are frozen here, or wrong and not missed."""

    class Flow(Block):
        def forward(self, t, y):
            return torch.cos(t) * super().forward(y)

    def made(gradient):
        torch.manual_seed(1)
        model = NeuralODE(Flow(), steps=5, solver=solver, gradient=gradient)
        return stack(solver, gradient) if kind == "stack" else model

    torch.manual_seed(4)
    others = {name: 0.5 * torch.randn_like(p) for name, p in made("backprop").named_parameters()}
    for frozen in (True, False):
        found = {}
        for gradient in ("backprop", method):
            model = made(gradient).requires_grad_(not frozen)
            given = {name: p.clone().requires_grad_() for name, p in others.items()}
            torch.func.functional_call(model, given, (x,)).square().sum().backward()
            found[gradient] = torch.cat([p.grad.flatten() for p in given.values() if p.grad is not None])
            assert all(p.grad is None for p in model.parameters())
        assert apart(found[method], found["backprop"]) < (0.5 if "continuous" in method else 1e-9)


@SOME
def test_a_functional_call_with_other_buffers_is_an_error_and_not_another_gradient(x, solver, method):
    model = stack(solver, method, MIDDLES["BatchNorm"]).eval()
    others = {name: 2 * buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    loss = torch.func.functional_call(model, others, (x,)).sum()
    with pytest.raises(GradientError, match=r"the buffer running_mean of block \d \(Block\) was changed"):
        loss.backward()


@SOME
def test_hooks_of_parameters_see_the_whole_gradient_once(x, solver, method):
    """Not each step's part of it: clipped or doubled part by part it would be another gradient."""
    calls = []
    found = {}
    for gradient in ("backprop", method):
        model = stack(solver, gradient)

        def hook(g, gradient=gradient):
            calls.append(gradient)
            return 2 * g

        handle = model.blocks[1].inner.weight.register_hook(hook)
        found[gradient] = backward(model, x)
        handle.remove()
    assert calls == ["backprop", method]
    assert apart(found[method], found["backprop"]) < (0.5 if "continuous" in method else 1e-12)


@SOME
def test_a_stack_within_a_block_of_a_stack(x, solver, method):
    class Nested(nn.Module):
        def __init__(self, gradient):
            super().__init__()
            self.stack = stack(solver, gradient, lambda: nn.Dropout(0.2), blocks=2)

        def forward(self, x):
            return 0.5 * (self.stack(x) - x)

    found = {}
    for gradient in ("backprop", method):
        inner = [Nested(gradient) for _ in range(3)]
        found[gradient] = backward(ResidualStack(inner, solver=solver, gradient=gradient, along="linear"), x)
    assert apart(found[method], found["backprop"]) < (0.5 if "continuous" in method else 1e-11)


class Energy(Block):
    """Minus the gradient of a scalar, which the block takes by itself."""

    def forward(self, x):
        with torch.enable_grad():
            z = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(z).square().sum(), z, create_graph=True)
        return -slope


class Remembered(Block):
    """A block that is itself a checkpoint of torch's."""

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)


class Clipped(Block):
    def forward(self, x):
        out = super().forward(x)
        if out.requires_grad:
            out.register_hook(lambda g: g.clamp(-0.02, 0.02))
        return out


class Doubled(torch.autograd.Function):
    """The identity, with a backward pass that is not its derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Straight(Block):
    def forward(self, x):
        return super().forward(Doubled.apply(x))


class Recurrent(nn.Module):
    def __init__(self, _):
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x):
        return 0.3 * self.gru(x[None])[0][0]


class Looked(nn.Module):
    """A sparse gradient, and a buffer and a plain tensor that it reads."""

    def __init__(self, _):
        super().__init__()
        self.table = nn.Embedding(9, WIDTH, sparse=True)
        self.register_buffer("mask", torch.linspace(0, 1, WIDTH), persistent=False)
        self.plain = torch.ones(WIDTH)

    def forward(self, x):
        rows = self.table(torch.arange(BATCH))
        return 0.1 * torch.sin(x * rows) * self.mask * self.plain


@SOME
@pytest.mark.parametrize("block", [Energy, Remembered, Clipped, Straight, Recurrent, Looked])
def test_blocks_that_do_more_than_compute(x, solver, method, block):
    """What a block does in its own backward pass is done once for each VJP, as in backprop."""
    found = {}
    for gradient in ("backprop", method):
        model, given = stack(solver, gradient, block=block), x.clone().requires_grad_()
        model(given).square().sum().backward()
        found[gradient] = [p.grad for p in (given, *model.parameters()) if p.grad is not None]
    one, other = (torch.cat([g.to_dense().flatten() for g in found[key]]) for key in (method, "backprop"))
    assert apart(one, other) < (2 if "continuous" in method else 1e-12)


@SOME
def test_a_parameter_that_is_an_extra_argument_of_its_own_block_gets_both_gradients(x, solver, method):
    class Scaled(Block):
        def forward(self, x, weight):
            return super().forward(x) @ weight

    found = {}
    for gradient in ("backprop", method):
        model = stack(solver, gradient, block=Scaled)
        model(x, model.blocks[1].inner.weight).square().sum().backward()
        found[gradient] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert apart(found[method], found["backprop"]) < (0.5 if "continuous" in method else 1e-12)


@SOME
def test_two_forward_passes_before_their_backward_passes(x, solver, method):
    """Each goes back through its own masks and buffers, in any order."""
    found = {}
    for gradient in ("backprop", method):
        model = stack(solver, gradient, lambda: nn.Sequential(nn.Dropout(0.3), MIDDLES["spectral norm"]()))
        torch.manual_seed(1)
        losses = [model(x).square().sum(), model(2 * x).square().sum()]
        for loss in losses:
            loss.backward()
        found[gradient] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert apart(found[method], found["backprop"]) < (0.5 if "continuous" in method else 1e-12)
