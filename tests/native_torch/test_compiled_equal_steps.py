"""compile=True with equal steps: strides as graphs, with the results of the eager loop, or an error that says why."""

from __future__ import annotations

import copy
import dataclasses
import gc
import random
import types
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import odenet
import odenet_torch
from odenet import Depth, DtypeError, GradientError, InputError, StateError, UnsupportedError
from odenet.kit import tree_leaves
from odenet_torch.steps import strides

KIND = torch.float64


class Block(nn.Module):
    scale = 1.0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, y):
        return torch.tanh(self.linear(y)) * self.scale


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, t, y):
        return self.two(torch.tanh(self.one(y))) * (1 + t)


def by_layer(t, y, w):
    return torch.tanh(y @ w["a"] + w["b"] * t)


def blocks(kind=Block, count=2):
    torch.manual_seed(0)
    return [kind().to(KIND) for _ in range(count)]


def stack(of, gradient, compile, solver="euler"):
    return odenet_torch.ResidualStack(of, solver=solver, gradient=gradient, along="piecewise", compile=compile)


def start():
    return torch.randn(3, 4, dtype=KIND, generator=torch.Generator().manual_seed(1))


def trained(net, x, *more, **named):
    """What a training step gives: outputs and gradients."""
    for parameter in net.parameters():
        parameter.grad = None
    x = x.detach().requires_grad_()
    y = net(x, *more, **named)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in net.parameters())]


def require_equal(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def solved(field, y0, weights=None, **choices):
    """Outputs, the gradients of all that needs one, and the certificate."""
    solution = odenet_torch.solve(field, y0, weights, **choices)
    tree = weights.tree if isinstance(weights, Depth) else weights
    modules = field.parameters() if isinstance(field, nn.Module) else ()
    leaves = [leaf for part in (y0, tree) for leaf in tree_leaves(part)]
    wanted = [x for x in (*modules, *leaves) if isinstance(x, torch.Tensor) and x.requires_grad]
    ys = [y for y in tree_leaves(solution.ys) if isinstance(y, torch.Tensor)]
    gradients = torch.autograd.grad(sum(y.abs().square().sum() for y in ys), wanted, allow_unused=True)
    return [*(y.detach() for y in ys), *gradients, torch.as_tensor(solution.stats.certificate or 0.0, dtype=KIND)]


def layers(count=4):
    torch.manual_seed(0)
    shapes = {"a": (count, 3, 3), "b": (count, 3)}
    return {name: torch.randn(shape, dtype=KIND, requires_grad=True) for name, shape in shapes.items()}


STACKS = [("euler", "backprop"), ("euler", "discrete-adjoint"), ("alf", "reversible")]


@pytest.mark.parametrize(("solver", "gradient"), STACKS)
def test_a_stack_gives_what_it_gives_without(graphs, solver, gradient):
    _, choice = graphs
    of, x = blocks(), start()
    plain, compiled = stack(of, gradient, False, solver), stack(of, gradient, choice, solver)
    require_equal(trained(plain, x), trained(compiled, x))
    assert (plain.certificate or 0.0) == pytest.approx(compiled.certificate or 0.0, rel=1e-6, abs=1e-15)
    with torch.no_grad():
        require_equal([plain(x)], [compiled(x)])


SOLVERS = ["euler", "heun", "midpoint", "rk4", "dopri5"]
ALL = [
    *((solver, gradient) for solver in SOLVERS for gradient in ("backprop", "checkpoint", "discrete-adjoint")),
    *(("euler", f"checkpoint:{option}") for option in ("segments=2", "states=3")),
    *(
        ("heun", f"discrete-adjoint:{option}")
        for option in ("correct=no", "iterations=2", "predictor=extrapolate", "anchors=2")
    ),
    *((solver, "reversible") for solver in ("alf", "reversible-heun", "reversible:euler", "reversible:heun")),
    ("reversible-heun", "backprop"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's of itself, where it compiles a graph once more
@pytest.mark.parametrize(("solver", "gradient"), ALL)
def test_every_solver_with_every_gradient_method(graphs, solver, gradient):
    _, choice = graphs
    of, x, torch_field = blocks(count=4), start(), Field().to(KIND)
    one, other = (stack(of, gradient, compile, solver) for compile in (False, choice))
    require_equal(trained(one, x), trained(other, x))
    choices = {"steps": 4, "solver": solver, "gradient": gradient}
    one, other = (odenet_torch.NeuralODE(torch_field, **choices, compile=compile) for compile in (False, choice))
    y0 = torch.randn(2, 3, dtype=KIND, requires_grad=True)
    require_equal(trained(one, y0), trained(other, y0))
    for weights in (Depth(layers(), "piecewise"), Depth(layers(3), "linear"), {k: v[0] for k, v in layers().items()}):
        results = [
            solved(by_layer, y0, weights, ts=[0.0, 0.5, 1.0], compile=compile, **choices) for compile in (False, choice)
        ]
        require_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["backprop", "checkpoint", "discrete-adjoint"])
def test_trees_half_precision_unused_and_frozen_weights(graphs, gradient):
    _, choice = graphs
    choices = {"steps": 4, "solver": "heun", "gradient": gradient}

    def spring(t, y):
        return {"p": y["q"], "q": -y["p"] * (1 + t)}

    pair = {"p": torch.ones(3, dtype=KIND, requires_grad=True), "q": torch.zeros(3, dtype=KIND)}
    require_equal(*(solved(spring, pair, compile=compile, **choices) for compile in (False, choice)))
    field = Field().to(KIND)
    field.unused = nn.Linear(2, 2)
    field.one.weight.requires_grad_(False)
    y0 = torch.ones(2, 3, dtype=KIND, requires_grad=True)
    require_equal(*(solved(field, y0, compile=compile, **choices) for compile in (False, choice)))
    half, y0 = Field().bfloat16(), torch.ones(2, 3).bfloat16().requires_grad_()
    one, other = (solved(half, y0, compile=compile, **choices) for compile in (False, choice))
    for a, b in zip(one, other, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-3)


def test_two_graphs_serve_any_number_of_blocks_and_all_passes(graphs, monkeypatch):
    seen, choice = graphs
    monkeypatch.setattr(strides, "LONGEST", 8)  # the time is that of a stride's steps, of which torch makes the graph
    counts = []
    for count in (4, 16):  # strides of 4 and of 8 steps
        seen.clear()
        net = stack(blocks(count=count), "checkpoint", choice)
        trained(net, start())
        net.t1 = 2.0
        trained(net, start())
        counts.append(len(seen))
    assert counts == [2, 2]  # the steps, and their way back


@pytest.mark.slow
def test_other_times_and_numbers_of_steps_use_the_same_graphs(graphs):
    seen, choice = graphs
    field, y0 = Field().to(KIND), torch.ones(2, 3, dtype=KIND, requires_grad=True)
    for times in ({"steps": 2}, {"steps": 4, "t1": -1.0, "ts": [-0.5, -1.0]}, {"steps": 6, "t0": 1e3, "t1": 1e3 + 1}):
        choices = {"solver": "euler", "gradient": "checkpoint", "ts": None, **times}
        if times["steps"] == 6:
            choices["ts"] = [1e3 + n / 3 for n in (1, 2, 3)]  # strides of two steps, as before
        require_equal(*(solved(field, y0, compile=compile, **choices) for compile in (False, choice)))
    assert len(seen) == 2


@pytest.mark.slow
def test_blocks_of_several_kinds_and_blocks_that_differ_in_an_attribute(graphs):
    seen, choice = graphs
    of = blocks(count=4)
    of[1].scale, of[3] = 3.0, nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()).to(KIND)
    of.append(of[0])  # tied
    require_equal(*(trained(stack(of, "checkpoint", compile), start()) for compile in (False, choice)))
    count, net = len(seen), stack(of, "checkpoint", choice)
    of[0].scale = 0.5  # a graph of its own
    require_equal(trained(stack(of, "checkpoint", False), start()), trained(net, start()))
    assert len(seen) > count


class Reader(nn.Module):
    """Reads numbers from places of many kinds."""

    def __init__(self):
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), torch.tanh
        self.scale, self.factors, self.options = 1.0, [1.0], {"shift": 0.0}
        self.config = types.SimpleNamespace(power=1)
        self.inner = nn.Identity()

    def forward(self, y):
        z = self.inner(self.act(self.linear(y))) * self.scale * self.factors[0] + self.options["shift"]
        return z**self.config.power * (1.0 if self.training else 0.5)


def inner_of(block):
    block.inner = nn.Sigmoid().to(KIND)


def other_forward(block):
    block.forward = lambda y: 0.3 * torch.sin(block.linear(y))


def frozen(block):
    block.linear.bias.requires_grad_(False)


CHANGES = [
    lambda block: setattr(block, "scale", 0.5),
    lambda block: block.factors.__setitem__(0, 0.3),
    lambda block: block.options.update(shift=0.2),
    lambda block: setattr(block.config, "power", 2),
    lambda block: setattr(block, "act", torch.sigmoid),
    lambda block: block.eval(),
    lambda block: setattr(block.linear, "weight", nn.Parameter(0.5 * torch.ones(4, 4, dtype=KIND))),
    inner_of,
    frozen,
    other_forward,
]


@pytest.mark.parametrize("changes", [CHANGES[:5], CHANGES[5:]], ids=["values", "modules"])
@pytest.mark.parametrize(
    "gradient", ["backprop", *(pytest.param(g, marks=pytest.mark.slow) for g in ("checkpoint", "discrete-adjoint"))]
)
def test_a_block_that_is_changed_between_passes_is_another_block(graphs, gradient, changes):
    """Strides that were compared with what they were compiled for are called directly: until something changes, in
    any of them. Torch warns as it compiles, here where warnings are errors."""
    _, choice = graphs
    of, x = blocks(Reader, 17), start()  # as many strides
    eager, net = (stack(of, gradient, compile) for compile in (False, choice))
    for n, change in enumerate(changes):
        for _ in range(3):
            require_equal(trained(eager, x), trained(net, x))
        change(of[16 - n])
    require_equal(trained(eager, x), trained(net, x))


@pytest.mark.slow
def test_parameters_are_read_anew_in_each_pass(graphs):
    _, choice = graphs
    of, x = blocks(), start()
    one, other = (stack(of, "checkpoint", compile) for compile in (False, choice))
    trained(other, x)
    of[0].linear.weight = nn.Parameter(torch.randn(4, 4, dtype=KIND))
    of[1].linear.weight.data = torch.randn(4, 4, dtype=KIND)
    of[1].linear.bias.requires_grad_(False)
    require_equal(trained(one, x), trained(other, x))
    values = {name: p.detach().clone().requires_grad_() for name, p in one.named_parameters()}
    ys = [torch.func.functional_call(net, values, (x,)) for net in (one, other)]
    require_equal(*(torch.autograd.grad(y.sum(), list(values.values())) for y in ys))
    require_equal(trained(copy.deepcopy(other), x), trained(one, x))


class Drops(Block):
    def forward(self, y):
        return nn.functional.dropout(super().forward(y), 0.5, self.training)


class Counts(Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, y):
        return self.norm(super().forward(y))


class Leaves(Block):
    loss = None

    def forward(self, y):
        self.loss = y.square().mean()
        return super().forward(y)


class Draws(Block):
    def forward(self, y):
        return super().forward(y) * random.random()


class Branches(Block):
    def forward(self, y):
        return super().forward(y) if y.sum() > 0 else y


FREE = torch.ones(4, dtype=KIND, requires_grad=True)


class Captures(Block):
    def forward(self, y):
        return super().forward(y) * FREE


class Aliases(Block):
    def __init__(self):
        super().__init__()
        self.others = [self.linear.weight]

    def forward(self, y):
        return super().forward(y) + y @ self.others[0]


@pytest.mark.parametrize("gradient", ["checkpoint", pytest.param("discrete-adjoint", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [Counts, Leaves, Draws, Branches, Captures, Aliases])
def test_what_no_graph_can_run_again_is_refused_and_leaves_no_trace(graphs, kind, gradient):
    _, choice = graphs
    of = blocks(kind)
    before = [buffer.clone() for block in of for buffer in block.buffers()]
    with pytest.raises(UnsupportedError, match="leave out compile"):
        trained(stack(of, gradient, choice), start())
    assert all(map(torch.equal, before, [buffer for block in of for buffer in block.buffers()]))
    assert not any("loss" in vars(block) for block in of)


@pytest.mark.parametrize("kind", [Drops, Counts])
def test_what_runs_once_is_as_without(graphs, kind):
    _, choice = graphs
    results = []
    for compile in (False, choice):
        net = stack(blocks(kind), "backprop", compile)
        torch.manual_seed(0)
        results.append([*trained(net, start()), *net.buffers()])
    require_equal(*results)


@pytest.mark.slow
def test_hooks_are_refused_whenever_they_come(graphs):
    _, choice = graphs
    net = stack(blocks(), "backprop", choice)
    trained(net, start())
    for register in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        handle = getattr(net.blocks[1].linear, f"register_{register}_hook")(lambda *_: None)
        with pytest.raises(UnsupportedError, match="hooks"):
            net(start())
        handle.remove()
    trained(net, start())


def test_errors_of_the_field_are_those_of_the_eager_loop(graphs):
    _, choice = graphs

    def run(f):
        return odenet_torch.solve(f, torch.ones(3), steps=2, gradient="checkpoint", compile=choice)

    with pytest.raises(StateError, match="shape"):
        run(lambda t, y: y[:2])
    with pytest.raises(DtypeError, match="float64"):
        run(lambda t, y: y.double())
    with pytest.raises(KeyError):
        run(lambda t, y: {}["a"])


@pytest.mark.parametrize(
    ("choices", "error"),
    [
        ({"gradient": "continuous-adjoint"}, UnsupportedError),
        ({"gradient": "checkpoint:bits=8"}, UnsupportedError),
        ({"gradient": "checkpoint:memory=100000"}, UnsupportedError),
        ({"gradient": "discrete-adjoint:tolerance=1e-3"}, UnsupportedError),
        ({"compile": {"fullgraph": False}}, InputError),
        ({"t1": torch.ones((), requires_grad=True)}, UnsupportedError),
        ({"ts": [torch.ones((), requires_grad=True)]}, UnsupportedError),
    ],
)
def test_what_is_not_compiled_is_refused_by_name(choices, error):
    with pytest.raises(error, match="compile"):
        odenet_torch.solve(lambda t, y: -y, torch.ones(3), **{"steps": 2, "compile": True, **choices})


def test_a_reversible_solver_whose_steps_may_differ_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Alternating(odenet.AsynchronousLeapfrog):
        """Its step reads its number, which a stride does not know."""

        def step(self, f, n, h, steps, pair):
            return super().step(f, n, h if n % 2 else h / 2, steps, pair)

    with pytest.raises(UnsupportedError, match="by their number"):
        odenet_torch.solve(lambda t, y: -y, torch.ones(3), steps=2, solver=Alternating(), compile=True)


def test_auto_and_transforms_are_refused():
    with pytest.raises(UnsupportedError, match="auto"):
        stack(blocks(), "auto", True)(start())
    with pytest.raises(UnsupportedError, match="transform"):
        torch.func.vmap(stack(blocks(), "backprop", True))(start()[None])


@pytest.mark.slow
def test_what_changes_between_the_passes_is_said(graphs):
    _, choice = graphs
    net = stack(blocks(), "checkpoint", choice)
    changes = [
        lambda: net.blocks[1].linear.weight.data.add_(1),
        lambda: setattr(net.blocks[1], "scale", 2.0),
        net.eval,
    ]
    for change in changes:
        y = net(start().requires_grad_())
        change()
        with pytest.raises(GradientError, match="after the forward pass"):
            y.sum().backward()


@pytest.mark.slow
def test_a_graph_is_gone_back_through_twice_and_not_differentiated_again(graphs):
    _, choice = graphs
    for gradient in ("backprop", "checkpoint"):
        net = stack(blocks(), gradient, choice)
        loss, weights = net(start()).sum(), list(net.parameters())
        once = torch.autograd.grad(loss, weights, retain_graph=True)
        require_equal(once, torch.autograd.grad(loss, weights, retain_graph=True))
        with pytest.raises(UnsupportedError, match="second derivative"):
            torch.autograd.grad(loss, weights, create_graph=True)


@pytest.mark.slow
def test_extra_arguments_and_autocast(graphs):
    _, choice = graphs

    class Scaled(Block):
        def forward(self, y, by, bias=None):
            return super().forward(y) * by + bias

    of, by = blocks(Scaled), torch.full((4,), 2.0, dtype=KIND, requires_grad=True)
    results = []
    for compile in (False, choice):
        by.grad = None
        results.append([*trained(stack(of, "checkpoint", compile), start(), by, bias=start()[0]), by.grad])
    require_equal(*results)
    of, x, results = [block.float() for block in blocks()], start().float(), []
    for compile in (False, choice):
        net = stack(of, "checkpoint", compile)
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net(x)
        y.sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
    require_equal(*results)


READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__")


class Reads(TorchDispatchMode):
    """Counts operations that wait for a number of a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kinds = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        self.count += func in kinds
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradient", [pytest.param("checkpoint", marks=pytest.mark.slow), "discrete-adjoint"])
def test_compiled_steps_read_no_number_on_the_host(monkeypatch, gradient):
    """Neither within a graph, nor between graphs: a CUDA graph could hold them."""
    torch._dynamo.reset()
    mode, outside = Reads(), []

    def backend(graph, inputs):
        def run(*arguments):
            with mode:
                return graph.forward(*arguments)

        return run

    net = stack(blocks(count=6), gradient, {"backend": backend})
    trained(net, start())  # what compiles reads
    mode.count = 0
    x = start().requires_grad_()
    for name in READS:
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *more, own=own, name=name: (outside.append(name), own(self, *more))[1]
        )
    y = net(x)
    assert not outside
    y.sum().backward()
    assert mode.count == 0
    # the certificate, at the end, by what says it: on CUDA when the device has it (`certificate.certify`)
    assert outside == (["tolist"] if gradient == "discrete-adjoint" else [])
    monkeypatch.undo()
    assert torch.ones(2).sum().item() == 2
    with mode:
        torch.ones(2).sum().item()
    assert mode.count == 1  # it sees one
    torch._dynamo.reset()


def test_a_mode_that_sees_each_operation_is_refused():
    with Reads(), pytest.raises(UnsupportedError, match="Dispatch"):
        stack(blocks(), "backprop", True)(start())


@pytest.mark.slow
def test_memory_does_not_grow_with_depth(graphs):
    """What the discrete adjoint keeps: the state at the end, whatever the number of blocks."""
    _, choice = graphs
    kept = []
    for count in (2, 16):
        net = stack(blocks(count=count), "discrete-adjoint", choice)
        own = {p.data_ptr() for p in net.parameters()}
        saved = []

        def pack(tensor, own=own, saved=saved):
            if tensor.data_ptr() not in own:
                saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = net(start().requires_grad_())
        kept.append(sum(saved))
        y.sum().backward()
    assert kept[0] == kept[1] > 0


@pytest.mark.slow
def test_a_network_is_let_go(graphs):
    _, choice = graphs
    net = stack(blocks(), "checkpoint", choice)
    trained(net, start())
    held = weakref.ref(net.blocks[0].linear.weight)
    del net
    gc.collect()
    assert held() is None


@pytest.mark.slow
def test_inductor_gives_the_same():
    torch._dynamo.reset()
    of, x = blocks(count=3), start()
    for gradient in ("backprop", "checkpoint", "discrete-adjoint"):
        one, other = (stack(of, gradient, compile) for compile in (False, True))
        require_equal(trained(one, x), trained(other, x))
    torch._dynamo.reset()
