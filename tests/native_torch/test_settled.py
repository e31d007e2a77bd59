"""Blocks that earlier passes have shown to be functions of their input: called directly, with the same numbers; and
whatever changes about such a block is met as it is in a first pass."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from quick import quick
from torch import Tensor, nn

from odenet import DtypeError, GradientError, StateError
from odenet_torch import ResidualStack
from odenet_torch.steps import direct as _direct

N, WIDTH = 5, 6
METHODS = [
    ("euler", "backprop"),
    ("euler", "checkpoint"),
    ("euler", "checkpoint:segments=2"),
    ("euler", "checkpoint:states=2"),
    ("euler", "discrete-adjoint"),
    ("euler", "discrete-adjoint:anchors=2"),
    ("euler", "continuous-adjoint"),
    ("heun", "backprop"),
    ("heun", "checkpoint"),
    ("heun", "discrete-adjoint"),
    ("rk4", "discrete-adjoint"),
    ("reversible:euler", "reversible"),
    ("alf", "reversible"),
]
every = pytest.mark.parametrize(("solver", "gradient"), METHODS, ids=["-".join(pair) for pair in METHODS])
remembering = pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "discrete-adjoint"])


class Block(nn.Module):
    """A block with whatever a test switches on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.scale, self.noise, self.keeps, self.writes, self.fails = 1.0, 0.0, False, False, False
        self.loss: Tensor | None = None

    def forward(self, y: Tensor) -> Tensor:
        if self.writes:
            y.mul_(0.5)
        if self.fails:
            raise ValueError("this block fails")
        k = torch.tanh(self.linear(y)) * self.scale
        if self.noise:
            k = k * (1 + self.noise * torch.rand_like(k))
        if self.keeps:
            self.loss = k.square().mean()
        return k


class Other(Block):
    """Of the same parts."""

    def forward(self, y: Tensor) -> Tensor:
        return self.linear(y)


def stack(solver: str = "euler", gradient: str = "checkpoint", blocks=None, along: str | None = "piecewise", **choices):
    torch.manual_seed(0)
    blocks = [Block() for _ in range(N)] if blocks is None else blocks
    return ResidualStack(blocks, solver=solver, gradient=gradient, along=along, **choices).double()


def x() -> Tensor:
    return torch.linspace(-1, 1, 3 * WIDTH, dtype=torch.float64).reshape(3, WIDTH)


def passed(net, y=None):
    """Output, gradient by the input, and by the parameters, of one pass."""
    y = x() if y is None else y
    y = y.clone().requires_grad_()
    net.zero_grad()
    torch.manual_seed(1)
    out = net(y)
    out.sin().sum().backward()
    return [out.detach(), y.grad, *(p.grad for p in net.parameters())]


def primed(*arguments, **choices):
    """A stack after two passes, whose blocks are known from then on."""
    net = stack(*arguments, **choices)
    passed(net)
    passed(net)
    return net


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def is_direct(net, monkeypatch) -> bool:
    """Whether the next pass calls the blocks directly to its end."""
    met = []
    wrapped = _direct.Direct.slope
    monkeypatch.setattr(_direct.Direct, "slope", lambda *a: met.append(1) or wrapped(*a))
    forgets = []
    monkeypatch.setattr("odenet_torch.gradients.solve.forget", lambda field: forgets.append(field))
    net(x())
    return bool(met) and not forgets


@every
def test_the_third_pass_gives_the_bits_of_the_first(solver, gradient, monkeypatch):
    net = stack(solver, gradient)
    first = passed(net)
    passed(net)
    assert same(passed(net), first)
    assert is_direct(net, monkeypatch) == (gradient != "continuous-adjoint")


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint"])
def test_blocks_linear_in_depth_and_tied_ones(gradient, monkeypatch):
    for along, solver in (("linear", "heun"), ("piecewise", "euler")):
        block, other = Block(), Block()
        net = stack(solver, gradient, [block, other, block, block, other], along)
        first = passed(net)
        passed(net)
        assert same(passed(net), first)
        assert is_direct(net, monkeypatch)


@every
def test_without_gradients_and_in_evaluation(solver, gradient):
    net = stack(solver, gradient)
    with torch.no_grad():
        first = net(x())
        assert torch.equal(net(x()), first)
        net.eval()
        assert torch.equal(net(x()), first)
        assert torch.equal(net(x()), first)


CHANGES = {
    "an attribute": lambda block: setattr(block, "scale", 0.5),
    "noise that begins": lambda block: setattr(block, "noise", 0.3),
    "a block that writes from now on": lambda block: setattr(block, "writes", True),
    "another parameter": lambda block: setattr(block.linear, "weight", nn.Parameter(torch.eye(WIDTH).double())),
    "a frozen parameter": lambda block: block.linear.weight.requires_grad_(False),
    "a written parameter": lambda block: block.linear.weight.data.mul_(0.5),
    "a hook": lambda block: block.linear.register_forward_hook(lambda module, inputs, out: 2 * out),
    "another submodule": lambda block: setattr(block, "linear", nn.Linear(WIDTH, WIDTH).double()),
    "a buffer": lambda block: block.register_buffer("more", torch.ones(1)),
    "dropout": lambda block: setattr(block, "linear", nn.Sequential(block.linear, nn.Dropout(0.5))),
    "batch norm": lambda block: setattr(block, "linear", nn.Sequential(block.linear, nn.BatchNorm1d(WIDTH).double())),
    "a class": lambda block: setattr(
        block, "__class__", type("Other", (Block,), {"forward": lambda s, y: s.linear(y)})
    ),
}


def part(cases):
    """All cases of a checkpoint and of a discrete adjoint, and of each other method every fourth, for the quick suite;
    each case is then met by several methods."""
    rows = [(*method, case) for method in METHODS for case in cases]
    most = [("euler", "checkpoint"), ("euler", "discrete-adjoint")]
    taken = [
        (*method, case)
        for i, method in enumerate(METHODS)
        for j, case in enumerate(cases)
        if method in most or (i + j) % 4 == 0
    ]
    return quick(rows, taken)


@pytest.mark.parametrize(("solver", "gradient", "change"), part(CHANGES))
def test_what_changes_between_passes_is_met_as_in_a_first_pass(solver, gradient, change):
    net = primed(solver, gradient)
    torch.manual_seed(2)
    CHANGES[change](net.blocks[2])
    fresh = copy.deepcopy(net)  # nothing is known of its blocks

    def outcome(net):
        try:
            return [torch.zeros(()) if t is None else t for t in passed(net)]
        except (GradientError, StateError) as error:
            return type(error)

    expected, found = outcome(fresh), outcome(net)
    assert same(found, expected) if isinstance(expected, list) and isinstance(found, list) else found is expected


@remembering
def test_a_loss_kept_by_the_side_from_now_on(gradient):
    net = primed("euler", gradient)
    net.blocks[1].keeps = True
    fresh = copy.deepcopy(net)

    def outcome(net):
        net.zero_grad()
        out = net(x())
        try:
            (out.sum() + net.blocks[1].loss).backward()
        except GradientError:
            return GradientError
        return [p.grad for p in net.parameters()]

    expected, found = outcome(fresh), outcome(net)
    assert same(found, expected) if isinstance(expected, list) else found is expected


class Surprising(Block):
    """A block that does something else from a moment on that nothing can see coming."""

    def __init__(self, act) -> None:
        super().__init__()
        self.act, self.begun = act, bytearray(1 << 17)  # too large to be looked at

    def forward(self, y: Tensor) -> Tensor:
        return self.act(y) if self.begun[0] else super().forward(y)


SURPRISES = {
    "another shape": lambda y: y[:1],
    "another number type": lambda y: y.to(torch.complex128),
    "no tensor": lambda y: 0.0,
    "a write on its input": lambda y: y.mul_(2.0),
}


@pytest.mark.parametrize(("solver", "gradient", "surprise"), part(SURPRISES))
def test_a_surprise_in_the_forward_pass_is_met_as_in_a_first_pass(solver, gradient, surprise):
    outcomes = []
    for known in (True, False):
        surprising = Surprising(SURPRISES[surprise])
        net = stack(solver, gradient, [Block(), surprising, Block()])
        if known:
            passed(net)
            passed(net)
        surprising.begun[0] = 1
        try:
            outcomes.append(net(x()))
        except (StateError, DtypeError) as error:
            outcomes.append(type(error))
    one, other = outcomes
    assert torch.equal(one, other) if isinstance(one, Tensor) else one is other


@remembering
@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_surprise_in_the_backward_pass_is_an_error_of_ours(gradient, surprise):
    if surprise == "a write on its input" and gradient != "discrete-adjoint":
        return  # what runs again with a graph at once is a leaf, and torch itself lets nobody write on it
    surprising = Surprising(SURPRISES[surprise])
    net = primed("euler", gradient, [Block(), surprising, Block()])
    out = net(x())
    surprising.begun[0] = 1
    with pytest.raises((StateError, DtypeError)):
        out.sum().backward()


BETWEEN = {
    "a written parameter": (lambda net: net.blocks[2].linear.weight.data.mul_(0.5), GradientError),
    "an optimiser's step": (lambda net: torch.optim.SGD(net.parameters(), 0.1).step(), RuntimeError),  # torch's own
    "evaluation": (lambda net: net.eval(), GradientError),
    "freezing": (lambda net: net.blocks[2].linear.bias.requires_grad_(False), GradientError),
    "an attribute": (lambda net: setattr(net.blocks[2], "scale", 7.0), None),
}


@remembering
@pytest.mark.parametrize("change", BETWEEN)
def test_what_changes_between_forward_and_backward_is_put_back_or_refused(gradient, change):
    act, error = BETWEEN[change]
    net = primed("euler", gradient)
    expected = passed(net)[2:]
    net.zero_grad()
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    out = net(x())
    act(net)
    if error is None:
        out.sin().sum().backward()
        assert same([p.grad for p in net.parameters()], expected)
    else:
        with pytest.raises(error):
            out.sin().sum().backward()


@every
def test_a_block_that_fails_raises_its_own_error(solver, gradient):
    net = primed(solver, gradient)
    net.blocks[3].fails = True
    with pytest.raises(ValueError, match="this block fails"):
        net(x())


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "checkpoint:segments=2"])
def test_second_derivatives(gradient):
    def second(net):
        y = x().requires_grad_()
        (first,) = torch.autograd.grad(net(y).sin().sum(), y, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [y, *net.parameters()])

    net = stack("heun", gradient)
    expected = second(stack("heun", "backprop"))
    for _ in range(3):
        for one, other in zip(second(net), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@remembering
def test_two_backward_passes_of_a_retained_graph(gradient):
    net = primed("euler", gradient)
    net.zero_grad()
    out = net(x()).sum()
    out.backward(retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    out.backward()
    assert same([p.grad for p in net.parameters()], [2 * g for g in once])


@remembering
def test_the_input_may_be_written_on_before_the_backward_pass(gradient):
    net = primed("euler", gradient)
    net.zero_grad()
    y = x()
    out = net(y)
    y.mul_(2)
    out.sum().backward()
    expected = stack("euler", gradient)
    expected(x()).sum().backward()
    assert same([p.grad for p in net.parameters()], [p.grad for p in expected.parameters()])


@every
def test_other_parameters_by_functional_call(solver, gradient):
    net = primed(solver, gradient)
    other = {name: (0.5 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
    torch.func.functional_call(net, other, (x(),)).sin().sum().backward()
    fresh = copy.deepcopy(net)
    fresh.load_state_dict({name: p.detach() for name, p in other.items()})
    assert same([p.grad for p in other.values()], passed(fresh)[2:])


def test_hooks_of_the_caller_see_what_is_saved():
    net, sizes = primed("euler", "checkpoint"), []

    def pack(tensor):
        sizes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x()).sum().backward()
    assert sizes.count((3, WIDTH)) >= N


@every
def test_autocast_is_no_direct_call(solver, gradient):
    net = primed(solver, gradient).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x().float())
    fresh = copy.deepcopy(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fresh(x().float()), out)


class Backwards(Block):
    """A block that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.itself = self.forward


class Owned(Block):
    """A block with something of another package, which nobody looks into and which leads back to it."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = Owner(self)


class Owner:
    """Stands for a trainer."""

    __module__ = "somewhere.else"

    def __init__(self, block: nn.Module) -> None:
        self.block = block


@every
@pytest.mark.parametrize("kind", [Block, Backwards, Owned])
def test_blocks_that_are_gone_are_not_held(solver, gradient, kind):
    net = stack(solver, gradient, [kind() for _ in range(N)])
    for _ in range(3):
        passed(net)
    gone = [weakref.ref(each) for each in (*net.blocks, *net.parameters())]
    del net
    gc.collect()
    assert not any(ref() is not None for ref in gone)
