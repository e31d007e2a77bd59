"""What blocks keep in caches of functions, generators, descriptors and arguments, and what they draw by generators of
their own: the gradient is that of plain autograd, or refused. The oracle is backprop with the same random state.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import random
import types
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from keeping_block import WIDTH, KeepingBlock
from torch.utils.checkpoint import checkpoint

from odenet import GradientError
from odenet_torch import ResidualStack

KEPT = ("checkpoint", "checkpoint:segments=2")  # graphs of the forward pass
CUT = ("checkpoint:states=2", "checkpoint:bits=16", "discrete-adjoint:iterations=30")
every_method = pytest.mark.parametrize("gradient", [*KEPT, *CUT])
OTHER = types.ModuleType("somebody_elses")
exec("class Tracker:\n    def add(self, loss): self.loss = loss\nTRACKER = Tracker()", OTHER.__dict__)


class Block(KeepingBlock):
    def forward(self, x):
        return super().forward(x) * self.scale()

    def scale(self):
        return 1.0


def stacked(kind, gradient, tied=False):
    torch.manual_seed(0)
    blocks = [kind()] * 4 if tied else [kind() for _ in range(4)]
    return ResidualStack(blocks, gradient=gradient).double()


def gradients(stack, loss=lambda y: y.square().sum(), passes=2, clear=lambda: None, arguments=()):
    """Those of all passes, one after another."""
    random.seed(0), np.random.seed(0), torch.manual_seed(1)
    x = torch.linspace(-1, 1, 3 * WIDTH, dtype=torch.float64).reshape(3, WIDTH).requires_grad_()
    results = []
    for _ in range(passes):
        clear()
        stack.zero_grad()
        x.grad = None
        loss(stack(x, *arguments)).backward()
        results += [x.grad, *(p.grad.clone() for p in stack.parameters())]
    return results


def close(results, expected, gradient):
    rtol = 1e-4 if "bits" in gradient else 1e-9
    torch.testing.assert_close(results, expected, rtol=rtol, atol=rtol)


@every_method
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", [functools.cache, functools.lru_cache, functools.lru_cache(maxsize=2)])
def test_what_a_cached_function_computes_of_weights_has_its_gradient(kind, tied, gradient):
    norm = kind(lambda weight: weight.square().mean().exp())

    class Cached(Block):
        def scale(self):
            return norm(self.inner.weight)

    def results(method):
        stack = stacked(Cached, method, tied)
        beside = [block.inner.weight for block in stack.blocks]
        found = gradients(stack, lambda y: y.square().sum() + sum(map(norm, beside)), clear=norm.cache_clear)
        norm.cache_clear()
        return found

    close(results(gradient), results("backprop"), gradient)


@every_method
def test_a_property_that_is_computed_once_for_all_steps_has_its_gradient(gradient):
    class Once(Block):
        @functools.cached_property
        def norm(self):
            return self.inner.weight.square().mean().exp()

        def scale(self):
            return self.norm

    def results(method):
        stack = stacked(Once, method, tied=True)
        return gradients(stack, clear=lambda: vars(stack.blocks[0]).pop("norm", None))

    close(results(gradient), results("backprop"), gradient)


class Store:
    """A descriptor that keeps what stands for attributes of instances."""

    def __init__(self):
        self.values = weakref.WeakKeyDictionary()

    def __get__(self, owner, kind=None):
        return self if owner is None else self.values[owner]

    def __set__(self, owner, value):
        self.values[owner] = value


class Described(Block):
    loss = Store()

    def keep(self, loss):
        self.loss = loss


class Chained(Block):
    losses: ClassVar = collections.ChainMap({})

    def keep(self, loss):
        self.losses[id(self)] = loss


class Promised(Block):
    losses: ClassVar = {}

    def keep(self, loss):
        self.losses[id(self)] = future = concurrent.futures.Future()
        future.set_result(loss)


class Appended(Block):
    def forward(self, x, losses):
        h = torch.tanh(self.inner(x))
        losses.append(h.square().mean())
        return self.out(h)


class Named(Block):
    def forward(self, x, owner):
        h = torch.tanh(self.inner(x))
        owner.total = owner.total + h.square().mean()
        return self.out(h)


class Owner:
    total = 0


def taken(kind, stack, argument):
    """The losses of one pass."""
    if kind is Described:
        return sum(block.loss for block in stack.blocks)
    if kind is Chained:
        return sum(Chained.losses.values())
    if kind is Promised:
        return sum(future.result() for future in Promised.losses.values())
    total = argument.total if kind is Named else sum(argument)
    if kind is Named:
        argument.total = 0
    else:
        argument.clear()
    return total


@pytest.mark.parametrize("kind", [Described, Chained, Promised, Appended, Named])
@every_method
def test_a_loss_in_a_descriptor_or_an_argument_has_its_gradient_or_is_refused(gradient, kind):
    def results(method):
        Chained.losses.clear(), Promised.losses.clear()
        stack, argument = stacked(kind, method), Owner() if kind is Named else []
        arguments = (argument,) if kind in (Appended, Named) else ()
        return gradients(stack, lambda y: y.square().sum() + taken(kind, stack, argument), arguments=arguments)

    if gradient in CUT:
        with pytest.raises(GradientError, match="kept beside what it returned"):
            results(gradient)
    else:
        close(results(gradient), results("backprop"), gradient)


@every_method
def test_a_tensor_in_an_object_that_is_an_argument_has_its_gradient_in_every_pass(gradient):
    class Conditioned(Block):
        def forward(self, x, owner):
            return super().forward(x) * owner.total

    def results(method):
        owner = Owner()
        owner.total = torch.full((WIDTH,), 1.3, dtype=torch.float64, requires_grad=True)
        return [*gradients(stacked(Conditioned, method), passes=3, arguments=(owner,)), owner.total.grad]

    close(results(gradient), results("backprop"), gradient)


class OnParameter(Block):
    def keep(self, loss):
        self.inner.weight.loss = loss


class Elsewhere(Block):
    def keep(self, loss):
        OTHER.TRACKER.add(loss)


def summed():
    total = 0
    while True:
        total = total + (yield)


class Sent(Block):
    def __init__(self):
        super().__init__()
        self.sums = summed()
        next(self.sums)

    def keep(self, loss):
        self.sums.send(loss)


class Hooked(Block):
    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda g: g / 2)
        return super().forward(x)


class Reentrant(Block):
    def forward(self, x):
        return self.out(checkpoint(lambda z: torch.tanh(self.inner(z)), x, use_reentrant=True))


@every_method
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, of its checkpoint
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (OnParameter, "block 0 .* keeps a tensor that needs a gradient where it cannot be found"),
        (Elsewhere, "block 0 .* keeps a tensor that needs a gradient where it cannot be found"),
        (Sent, "sums.total, a variable of a generator"),
        (Hooked, "registers a hook on its input"),
        (Reentrant, "use_reentrant=True"),
    ],
)
def test_what_cannot_be_put_back_is_refused_by_name(kind, match, gradient):
    with pytest.raises(GradientError, match=match):
        gradients(stacked(kind, gradient))


class Dropped(Block):
    rate = 0.0

    def scale(self):
        return 1.0 if not self.rate or self.drawn() >= self.rate else 0.0


class Python(Dropped):
    def drawn(self):
        return random.random()


class Numpy(Dropped):
    def drawn(self):
        return np.random.rand()


class Own(Dropped):
    dice = np.random.default_rng(0)

    def drawn(self):
        return self.dice.random()


class OwnPython(Dropped):
    dice = random.Random(0)

    def drawn(self):
        return self.dice.uniform(0, 1)


class OwnTorch(Dropped):
    dice = torch.Generator()

    def drawn(self):
        return torch.rand((), generator=self.dice)


@every_method
@pytest.mark.parametrize("kind", [Python, Numpy, Own, OwnPython, OwnTorch])
def test_numbers_that_are_drawn_later_in_a_block_s_life_and_seldom_matter_are_refused(kind, gradient):
    stack = stacked(kind, gradient)
    expected = gradients(stacked(kind, "backprop"))
    close(gradients(stack), expected, gradient)  # a schedule begins at 0
    for block in stack.blocks:
        block.rate = 1e-9
    with pytest.raises(GradientError, match="draws random numbers"):
        gradients(stack)


@every_method
def test_a_block_that_seeds_a_generator_itself_runs_again_as_it_ran(gradient):
    class Seeded(Block):
        dice = torch.Generator()

        def scale(self):
            self.dice.manual_seed(3)
            return torch.rand((WIDTH,), generator=self.dice, dtype=torch.float64) * random.Random(5).random()

    close(gradients(stacked(Seeded, gradient)), gradients(stacked(Seeded, "backprop")), gradient)


class Remembers(Block):
    def __init__(self):
        super().__init__()
        self.before = None

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        every = h if self.before is None else torch.cat([self.before, h])
        self.before = every.detach()
        return self.out(h * every.mean(0))


@every_method
def test_a_block_that_reads_what_its_last_evaluation_left_is_refused_where_it_has_several(gradient):
    torch.manual_seed(0)
    stack = ResidualStack([Remembers() for _ in range(3)], solver="heun", gradient=gradient).double()
    with pytest.raises(GradientError, match="not a function of its inputs"):
        gradients(stack)


@every_method
def test_a_block_finds_again_what_the_last_pass_left_for_it(gradient):
    def results(method):
        stack = stacked(Remembers, method)
        x = torch.linspace(-1, 1, 3 * WIDTH, dtype=torch.float64).reshape(3, WIDTH).requires_grad_()
        (stack(x).square().sum() + stack(x / 2).square().sum()).backward()
        return [x.grad, *(p.grad for p in stack.parameters())]

    close(results(gradient), results("backprop"), gradient)
