"""What a block keeps or caches in places that no module registers: the gradient is that of plain autograd, or refused.

One block for each place, and three ways back: one that keeps graphs, and two that run without.
"""

from __future__ import annotations

import collections
import contextvars
import copy
import functools
import queue
import sys
import threading
import types
import weakref

import pytest
import torch
from keeping_block import WIDTH, KeepingBlock
from torch import nn

from odenet import GradientError
from odenet_torch import ResidualStack

DEPTH = 3
CHECKPOINT, OTHERS = "checkpoint", ("checkpoint:bits=16", "discrete-adjoint:iterations=30")
CONTEXT: contextvars.ContextVar = contextvars.ContextVar("CONTEXT", default=None)
LOCAL, WEAK, QUEUE, USED = threading.local(), weakref.WeakKeyDictionary(), queue.Queue(), collections.UserDict()
MODULE = types.ModuleType(f"{__name__}.module")
TOTAL = [torch.zeros(())]


class Block(KeepingBlock):
    total = None

    @classmethod
    def taken(cls, blocks):
        """The losses of all blocks, which are no longer there."""
        return 0


class Variable(Block):
    def keep(self, loss):
        CONTEXT.set(loss if CONTEXT.get() is None else CONTEXT.get() + loss)

    @classmethod
    def taken(cls, blocks):
        loss = CONTEXT.get()
        CONTEXT.set(None)
        return loss


class OfClass(Block):
    def keep(self, loss):
        OfClass.total = loss if OfClass.total is None else OfClass.total + loss

    @classmethod
    def taken(cls, blocks):
        loss, OfClass.total = OfClass.total, None
        return loss


class NewOfClass(Block):
    def keep(self, loss):
        type(self).sum = getattr(type(self), "sum", 0) + loss

    @classmethod
    def taken(cls, blocks):
        loss = cls.sum
        del cls.sum
        return loss


class OtherClass(Block):
    def keep(self, loss):
        Store.loss = Store.loss + loss

    @classmethod
    def taken(cls, blocks):
        loss, Store.loss = Store.loss, 0
        return loss


class Store:
    loss = 0


class OfPythonModule(Block):
    def keep(self, loss):
        MODULE.loss = getattr(MODULE, "loss", 0) + loss

    @classmethod
    def taken(cls, blocks):
        loss = MODULE.loss
        del MODULE.loss
        return loss


class Thread(Block):
    def keep(self, loss):
        LOCAL.loss = getattr(LOCAL, "loss", 0) + loss

    @classmethod
    def taken(cls, blocks):
        loss = LOCAL.loss
        del LOCAL.loss
        return loss


class Weak(Block):
    def keep(self, loss):
        WEAK[self] = loss

    @classmethod
    def taken(cls, blocks):
        return sum(WEAK.pop(block) for block in blocks)


class Queued(Block):
    def keep(self, loss):
        QUEUE.put(loss)

    @classmethod
    def taken(cls, blocks):
        return sum(QUEUE.get() for _ in blocks)


class InUserDict(Block):
    def keep(self, loss):
        USED[id(self)] = loss

    @classmethod
    def taken(cls, blocks):
        return sum(USED.pop(id(block)) for block in blocks)


class Slotted:
    __slots__ = ("loss",)


class Slot(Block):
    def __init__(self) -> None:
        super().__init__()
        self.slotted = Slotted()

    def keep(self, loss):
        self.slotted.loss = loss

    @classmethod
    def taken(cls, blocks):
        return sum(block.slotted.loss for block in blocks)


class Result:
    def __init__(self, loss) -> None:
        self.loss, self.own = loss, self


class Object(Block):
    def keep(self, loss):
        self.result = Result(loss)

    @classmethod
    def taken(cls, blocks):
        return sum(block.result.loss for block in blocks)


class Closure(Block):
    def keep(self, loss):
        self.result = lambda: 2 * loss

    @classmethod
    def taken(cls, blocks):
        return sum(block.result() for block in blocks)


class Buffer(Block):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loss", torch.zeros(()))

    def keep(self, loss):
        self.loss = loss

    @classmethod
    def taken(cls, blocks):
        return sum(block.loss for block in blocks)


KEPT = (Variable, OfClass, NewOfClass, OtherClass, OfPythonModule, Thread, Weak, Queued, InUserDict, Slot, Object)
KEPT += (Closure, Buffer)


class Cached(Block):
    """Weights that are computed once a pass, and kept with their graph."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = 2 * self.inner.weight
        return self.out(torch.tanh(x @ self.kept))

    @classmethod
    def taken(cls, blocks):
        for block in blocks:
            block.kept = None
        return 0


class CachedProperty(Block):
    @functools.cached_property
    def kept(self):
        return 2 * self.inner.weight

    def forward(self, x):
        return self.out(torch.tanh(x @ self.kept))

    @classmethod
    def taken(cls, blocks):
        for block in blocks:
            del vars(block)["kept"]
        return 0


class CachedById(Block):
    memory: dict = {}  # noqa: RUF012

    def forward(self, x):
        if id(x) not in self.memory:
            self.memory.clear()
            self.memory[id(x)] = x, torch.tanh(self.inner(x))  # x, too: or another tensor may get its id
        return self.out(self.memory[id(x)][1])


class Merged(Block):
    """Weights that are others for the time of the evaluation, as those of LoRA are."""

    def forward(self, x):
        parameters = self.inner._parameters
        before = parameters["weight"]
        parameters["weight"] = self.out.weight
        y = self.out(torch.tanh(self.inner(x)))
        parameters["weight"] = before
        return y


class HookedInside(Block):
    def forward(self, x):
        handle = self.inner.register_forward_hook(lambda module, inputs, output: 2 * output)
        y = self.out(torch.tanh(self.inner(x)))
        handle.remove()
        return y


class DataMerged(Block):
    def forward(self, x):
        before = self.inner.weight.data
        self.inner.weight.data = before + 1.0
        y = self.out(torch.tanh(self.inner(x)))
        self.inner.weight.data = before
        return y


CACHED = (Cached, CachedProperty, CachedById)
LENT = (Merged, HookedInside, DataMerged)


class Plain(nn.Module):
    def __init__(self, blocks) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x) / DEPTH
        return x


def passes(model, blocks, kind):
    """Losses and gradients of three training passes."""
    found = []
    for n in range(3):
        x = torch.linspace(-1, 1 + n, 3 * WIDTH).view(3, WIDTH).requires_grad_()
        model.zero_grad()
        y = model(x)
        loss = (torch.linspace(-1, 1, y.numel()).view(y.shape) * y).sum() + kind.taken(blocks)
        loss.backward()
        parts = [x.grad, *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())]
        found.append((loss.item(), torch.cat([part.flatten() for part in parts])))
    return found


def both(kind, gradient):
    CachedById.memory.clear()
    torch.manual_seed(0)
    blocks = nn.ModuleList(kind() for _ in range(DEPTH))
    expected = passes(Plain(plain := copy.deepcopy(blocks)), plain, kind)
    CachedById.memory.clear()
    return expected, passes(ResidualStack(blocks, solver="euler", gradient=gradient), blocks, kind)


def assert_right(kind, gradient):
    for (loss, expected), (again, found) in zip(*both(kind, gradient), strict=True):
        assert abs(loss - again) < 1e-4
        assert (found - expected).norm() < (2e-3 if "bits" in gradient else 1e-5) * expected.norm()


@pytest.fixture(autouse=True)
def _module_of_python(monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE.__name__, MODULE)


@pytest.mark.parametrize("kind", KEPT)
def test_a_loss_that_is_kept_has_its_gradient_where_graphs_are_kept(kind):
    assert_right(kind, CHECKPOINT)


@pytest.mark.parametrize("gradient", OTHERS)
@pytest.mark.parametrize("kind", KEPT)
def test_and_is_refused_where_they_are_not(kind, gradient):
    with pytest.raises(GradientError, match=r"the gradient of .*keep"):
        both(kind, gradient)
    if kind is Variable:
        CONTEXT.set(None)
    OfClass.total, Store.loss = None, 0
    for place, name in ((NewOfClass, "sum"), (MODULE, "loss"), (LOCAL, "loss")):
        if name in vars(place):
            delattr(place, name)
    WEAK.clear()
    USED.clear()
    QUEUE.queue.clear()


@pytest.mark.parametrize("gradient", [CHECKPOINT, *OTHERS])
@pytest.mark.parametrize("kind", CACHED)
def test_what_a_block_computes_once_and_keeps_has_its_gradient(kind, gradient):
    assert_right(kind, gradient)


class Named(collections.namedtuple("Named", "x")):
    """A tuple that can hold an attribute, by which it is seen to live: there are no weak references to tuples."""

    def __init__(self, *_):
        self.mark = Mark()


class Mark:
    pass


@pytest.mark.parametrize("wrapped", [lambda x: x, Named], ids=["tensor", "tuple"])
@pytest.mark.parametrize("gradient", [CHECKPOINT, *OTHERS])
def test_what_a_cache_knows_by_its_id_lives_as_long_as_its_entry(gradient, wrapped):
    """Otherwise another tensor is given its `id`, and is taken for it: by chance, once in some hundred runs."""
    seen, memory = {}, {}

    class Keeping(Block):
        def forward(self, x):
            key, h = wrapped(x), torch.tanh(self.inner(x))
            seen[id(key)] = weakref.ref(key.mark if isinstance(key, Named) else key)
            memory[id(key)] = key, h
            return self.out(h)

    model = ResidualStack([Keeping() for _ in range(DEPTH)], solver="euler", gradient=gradient)
    y = model(torch.linspace(-1, 1, 3 * WIDTH).view(3, WIDTH).requires_grad_())
    for _ in range(2):
        assert memory
        assert all(seen[key]() is not None for key in memory)
        if y.requires_grad:
            y.sum().backward()
            y = y.detach()


@pytest.mark.parametrize("gradient", [CHECKPOINT, *OTHERS])
@pytest.mark.parametrize("kind", LENT)
def test_what_a_block_changes_for_the_time_of_its_run_is_put_back(kind, gradient):
    if kind is not DataMerged:
        return assert_right(kind, gradient)
    losses, found = ([loss for loss, _ in each] for each in both(kind, gradient))
    assert losses == pytest.approx(found, rel=1e-5)  # plain autograd itself reads the weights that are there later
    return None


@pytest.mark.parametrize("gradient", [CHECKPOINT, *OTHERS])
def test_a_sum_in_place_of_what_needs_a_gradient_is_refused(gradient):
    class Summed(Block):
        def keep(self, loss):
            TOTAL[0] += loss

        @classmethod
        def taken(cls, blocks):
            loss, TOTAL[0] = TOTAL[0], torch.zeros(())
            return loss

    with pytest.raises(GradientError, match=r"TOTAL\[0\] of block 0 .*adds up in place"):
        both(Summed, gradient)
    TOTAL[0] = torch.zeros(())


@pytest.mark.parametrize("gradient", [CHECKPOINT, *OTHERS])
def test_a_place_that_is_filled_anew_in_each_evaluation_is_not(gradient):
    class Scratch(Block):
        def __init__(self) -> None:
            super().__init__()
            self.scratch = [torch.zeros(3, WIDTH)]

        def forward(self, x):
            if self.scratch[0].requires_grad:
                self.scratch[0] = torch.zeros(3, WIDTH)
            self.scratch[0].copy_(self.inner(x))
            return self.out(torch.tanh(self.scratch[0]))

    assert_right(Scratch, gradient)
