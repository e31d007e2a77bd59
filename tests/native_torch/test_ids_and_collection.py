"""What must not depend on chance: `id`s that are used again, when garbage is collected, and in which thread it runs."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from odenet import GradientError
from odenet_torch import ResidualStack, odeint_adjoint, solve
from odenet_torch.conversion.layer import decisions, kind_of
from odenet_torch.drop_in.recalled_function import Recalled
from odenet_torch.field import field
from odenet_torch.field.jumps import Watch
from odenet_torch.field.surroundings import Surroundings
from odenet_torch.field.wiring import ForwardReads, Wiring
from odenet_torch.field.written_on import sampled

pytestmark = pytest.mark.usefixtures("double")

WITHOUT_GRAPH = ("discrete-adjoint:iterations=20", "continuous-adjoint", "checkpoint:bits=16")


class Energy(nn.Module):
    """Differentiates an energy at a leaf that it makes for itself and lets go."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(3, 3)

    def energy(self, x):
        return torch.tanh(self.linear(x)).square().sum()

    def forward(self, t, y):
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            return -self.slope(x)

    def slope(self, x):
        return torch.autograd.grad(self.energy(x), x, create_graph=True)[0]


class CallsItself(Energy):
    def slope(self, x):
        def energy(n):
            return energy(n - 1) if n else self.energy(x)

        return torch.autograd.grad(energy(2), x, create_graph=True)[0]


class HoldsItself(Energy):
    def slope(self, x):
        box = [x]
        box.append(box)
        return super().slope(x)


class Catches(Energy):
    def slope(self, x):
        try:
            raise ValueError
        except ValueError as error:
            caught = error  # whose traceback holds this frame
        assert caught
        return super().slope(x)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x, ctx.several = x, (x,)
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g + 0 * ctx.x


class OnContext(Energy):
    def energy(self, x):
        return super().energy(_Doubled.apply(x) / 2)


def gradients(f, gradient):
    y0 = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()
    ys = solve(f, y0, t0=0.0, t1=1.0, steps=4, solver="euler", gradient=gradient).ys
    (torch.linspace(-1, 2, 6).view(2, 3) * ys[-1]).sum().backward()
    return torch.cat([x.grad.flatten() for x in (y0, *f.parameters())])


@pytest.mark.parametrize("gradient", WITHOUT_GRAPH)
@pytest.mark.parametrize("kind", [CallsItself, HoldsItself, Catches, OnContext])
def test_a_leaf_that_only_the_collector_lets_go_is_nobodys(kind, gradient):
    """Whether it had been collected when it was looked for was chance, and it was refused where it had not."""
    expected = gradients(Energy(), gradient)
    gc.disable()
    try:
        found = gradients(kind(), gradient)
    finally:
        gc.enable()
    torch.testing.assert_close(found, expected)


class Keeps(Energy):
    """A leaf in a place that nobody looks into, of which somebody may ask the gradient."""

    def slope(self, x):
        self.linear.weight.kept = x
        return super().slope(x)


@pytest.mark.parametrize("gradient", WITHOUT_GRAPH)
def test_one_that_is_kept_is_refused(gradient):
    with pytest.raises(GradientError, match=r"keep|were not read in step 0"):
        gradients(Keeps(), gradient)


@pytest.mark.parametrize("mode", [TorchFunctionMode, TorchDispatchMode])
def test_what_a_graph_holds_is_measured_outside_of_modes(mode):
    held = []

    class Keeping(mode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            held.append(out := func(*args, **(kwargs or {})))
            return out

        __torch_dispatch__ = __torch_function__

    expected = field._references_of_a_graph()
    with Keeping():
        assert field._references_of_a_graph.__wrapped__() == expected
    assert not held


def far_on():
    """The count of operations of this thread is where that of another one does not come to."""
    for _ in range(5000):
        torch.ones((), requires_grad=True).square()


def in_thread(run):
    """What a function returns, or raises, in a thread whose count of operations begins anew."""
    results = []

    def work():
        try:
            results.append(run())
        except Exception as error:  # whatever it is
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]


class Conditioned(Energy):
    code: Any = None

    def forward(self, t, y):
        return torch.tanh(self.linear(y) + self.code)


@pytest.mark.parametrize("gradient", WITHOUT_GRAPH)
def test_what_was_computed_in_another_thread_was_computed_outside(gradient):
    """By the count of this one, it was taken for a part of each evaluation, and its graph was gone after the first."""
    weight = torch.ones(3, requires_grad=True)

    def run():
        return gradients(f, gradient)

    far_on()
    f = Conditioned()
    f.code = torch.tanh(weight)
    with pytest.raises(GradientError, match="computed outside of it"):
        run()
    found = in_thread(run)
    assert isinstance(found, GradientError)
    assert "computed outside of it" in str(found)


def test_and_has_its_gradient_where_such_tensors_have_one():
    def run():
        weight = torch.ones(3, requires_grad=True)
        made.append(weight)
        return torch.tanh(weight)

    def solved():
        y = odeint_adjoint(f, torch.zeros(2, 3), torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.25})
        y[-1].sum().backward()
        return made[-1].grad

    f, made = Conditioned(), []
    f.code = run()
    expected = solved()
    far_on()
    f.code = run()
    torch.testing.assert_close(in_thread(solved), expected)


def test_memory_that_a_tensor_does_not_lie_in_is_not_looked_at():
    """Another tensor with the `id`, the address and the size of one that is gone, which lies in four bytes."""
    memory = bytearray(4096)
    one = torch.frombuffer(memory, dtype=torch.float32, count=1)
    whole = torch.frombuffer(memory, dtype=torch.float32)
    sampled(whole)
    del whole
    views = [one.expand(1024) for _ in range(50)]
    before = [*map(sampled, views)]
    memory[2048:2052] = b"abcd"
    assert [*map(sampled, views)] == before


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.act: Any = None

    def forward(self, x):
        return x + self.act(x)


@pytest.mark.parametrize(
    "make", [lambda: lambda x: x, nn.Tanh, lambda: Energy().energy], ids=["code", "child", "bound"]
)
def test_a_trace_of_a_layer_is_not_that_of_another_activation(make):
    layer, keys = Layer(), set()
    for _ in range(50):  # each is gone when the next is made, and is given its `id`
        layer.act = make()
        keys.add(decisions(layer))
        layer.act = None
    assert len(keys) == 50
    layer.act = make()
    assert decisions(layer) == decisions(layer)


def test_the_same_method_is_the_same_however_often_it_is_asked_for():
    f = Energy()
    assert kind_of(f.energy) == kind_of(f.energy) != kind_of(f.slope)


def test_a_buffer_of_a_function_that_is_called_again_keeps_its_id():
    func = nn.BatchNorm1d(3)
    known = Recalled(func, torch.device("cpu"))
    before = weakref.ref(func.running_mean)
    func.running_mean = torch.zeros(3)
    assert before() is not None
    assert known._version(func.running_mean) is None


def test_what_does_not_depend_on_a_state_any_more_is_forgotten():
    y = torch.ones(3)
    with (watch := Watch((y,))):
        z = (2 * y).view(3, 1)
        assert id(z) in watch.levels
        watch.forget(z)
        assert not any(id(z) in known for known in (watch.depends, watch.levels, watch.origins))


class KeepsItsWeight(nn.Module):
    """Looks by `is` whether a number that it keeps is of the weight that it has."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.kept = {}

    def forward(self, x):
        weight = self.linear.weight
        if self.kept.get("weight") is not weight:
            self.kept |= {"weight": weight, "shape": len(weight)}
        return torch.tanh(self.kept["weight"] @ x.T).T / self.kept["shape"]


class HasWeight(KeepsItsWeight):
    def forward(self, x):
        return torch.tanh(self.linear.weight @ x.T).T / 3


@pytest.mark.parametrize("gradient", ["checkpoint", *WITHOUT_GRAPH])
def test_a_block_may_keep_its_parameter_elsewhere(gradient):
    """What stood in its place in the next pass was no parameter, but what a pass without a graph leaves."""

    def trained(kind) -> Any:
        torch.manual_seed(0)
        stack = ResidualStack([kind() for _ in range(3)], solver="euler", gradient=gradient)
        optimizer = torch.optim.SGD(stack.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            stack(torch.linspace(-1, 1, 6).view(2, 3)).square().sum().backward()
            optimizer.step()
        return stack

    one, other = trained(KeepsItsWeight), trained(HasWeight)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(block.kept["weight"] is block.linear.weight for block in one.blocks)


@pytest.mark.parametrize("kind", [weakref.WeakSet, weakref.WeakValueDictionary, weakref.WeakKeyDictionary])
def test_what_is_held_weakly_and_is_gone_was_changed_by_nobody(kind):
    """When it goes is for the collector to say: a field that a graph is to run again was refused for it."""
    block, kept = nn.Linear(3, 3), [torch.zeros(3), torch.ones(3)]
    block.seen = kind(enumerate(kept)) if kind is weakref.WeakValueDictionary else kind()
    for x in kept:
        if kind is weakref.WeakSet:
            block.seen.add(x)
        elif kind is weakref.WeakKeyDictionary:
            block.seen[x] = 1
    around, reads = Surroundings("block", block), ForwardReads(Wiring([block]), ())
    del x, kept[-1]
    reads.require_no_trace()
    kept.clear()
    reads.require_same()
    assert around.untouched()
    assert not around.differences()
    assert not block.seen


class Logs(nn.Module):
    """Keeps a loss and a constant of each evaluation, under keys that are others each time."""

    def __init__(self, key):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.key, self.losses, self.count = nn.Linear(3, 3), key, {}, 0

    def forward(self, x):
        h = torch.tanh(self.linear(x))
        self.count += 1
        if self.key is None:
            setattr(self, f"loss{self.count}", h.square().sum())
        else:
            self.losses[self.key(self.count, x)] = h.square().sum()
        self.losses[f"constant {self.count}"] = torch.full((), 2.0)
        return h

    def kept(self):
        own = [value for name, value in vars(self).items() if name.startswith("loss") and name != "losses"]
        own += [value for key, value in self.losses.items() if not isinstance(key, str)]
        return own, [value for key, value in self.losses.items() if isinstance(key, str)]


@pytest.mark.parametrize("gradient", ["discrete-adjoint:iterations=20", "checkpoint:bits=16"])
@pytest.mark.parametrize("key", [lambda n, _: n, lambda n, x: (id(x), n), None], ids=["count", "id", "name"])
def test_what_later_evaluations_keep_under_keys_of_their_own_is_not_taken_for_a_constant(key, gradient):
    """That of the first evaluation alone was looked for, so that further ones had no gradient, and nothing said so."""
    blocks = [Logs(key), Logs(key)]
    stack = ResidualStack(blocks, solver="rk4", gradient=gradient)
    y = stack(torch.linspace(-1, 1, 6).view(2, 3))
    losses, constants = blocks[0].kept()
    assert len(losses) == len(constants) > 1
    (y.sum() * sum(constants)).backward(retain_graph=True)
    for loss in losses:
        with pytest.raises(GradientError, match="kept beside"):
            (y.sum() + loss).backward(retain_graph=True)
