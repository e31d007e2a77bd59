"""What a field does may depend on what it is made with: each variant of its code is looked at, and draws are seen."""

import enum
import functools
import itertools
import random
import threading
import weakref

import numpy as np
import pytest
import torch
from quick import pairwise
from torch import nn

import odenet
from odenet import ConversionError, GradientError, InputError, PIDController, UnsupportedError
from odenet_torch import NeuralODE, ResidualStack, convert, odeint, odeint_adjoint, solve

GRADIENTS = ["checkpoint", "checkpoint:states=2", "discrete-adjoint:tolerance=1e-11", "continuous-adjoint"]
Y = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
HIDDEN = {
    "python": lambda: __import__("random").random(),
    "numpy": lambda: __import__("numpy").random.rand(),
    "late": lambda: __import__("random").random(),
}


class Mode(enum.Enum):
    PLAIN, NOISY = range(2)


def field(t, y, w, on, draw):
    k = torch.tanh(y * w)
    return k * (0.5 + HIDDEN[draw]()) if on else k


class Held:
    def __init__(self, on, draw):
        self.on, self.draw = on, draw

    def method(self, t, y, w):
        return field(t, y, w, self.on, self.draw)

    def __call__(self, t, y, w):
        return field(t, y, w, self.on, self.draw)


class Slotted(Held):
    __slots__ = ("draw", "on")


class Switched(nn.Module):
    def __init__(self, on, draw):
        super().__init__()
        self.on, self.draw = on, draw

    def forward(self, t, y, w):
        return field(t, y, w, self.on, self.draw)


def by_enum(on, draw):
    mode = Mode.NOISY if on else Mode.PLAIN
    return lambda t, y, w: field(t, y, w, mode is Mode.NOISY, draw)


def by_list(on, draw):
    settings = {"noise": [on]}
    return lambda t, y, w: field(t, y, w, settings["noise"][0], draw)


def by_tensor(on, draw):
    flag = torch.tensor(float(on))
    return lambda t, y, w: field(t, y, w, flag > 0, draw)


def by_function(on, draw):
    factor = (lambda: 0.5 + HIDDEN[draw]()) if on else (lambda: 1.0)
    return lambda t, y, w: torch.tanh(y * w) * factor()


def by_builtin(on, draw):
    factor = {"python": random.random, "numpy": np.random.rand, "late": random.random}[draw] if on else float
    return lambda t, y, w: torch.tanh(y * w) * factor()


FACTORIES = {
    "closure": lambda on, draw: lambda t, y, w: field(t, y, w, on, draw),
    "default": lambda on, draw: lambda t, y, w, on=on: field(t, y, w, on, draw),
    "partial": lambda on, draw: functools.partial(field, on=on, draw=draw),
    "method": lambda on, draw: Held(on, draw).method,
    "object": Held,
    "slots": Slotted,
    "module": lambda on, draw: (lambda m: lambda t, y, w: m(t, y, w))(Switched(on, draw)),
    "enum": by_enum,
    "list": by_list,
    "tensor": by_tensor,
    "function": by_function,
    "builtin": by_builtin,
    "time": lambda on, draw: lambda t, y, w: field(t, y, w, on and t > 0.6, draw),  # in the last step alone
}


@pytest.mark.parametrize("draw", ["python", "numpy"])
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_second_variant_of_the_same_code_that_draws_is_refused(factory, draw, gradient):
    def run(on):
        w = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
        return solve(FACTORIES[factory](on, draw), Y.clone().requires_grad_(), w, steps=4, gradient=gradient).y1

    run(False)
    with pytest.raises(GradientError, match="draws random numbers from Python or NumPy"):
        run(True)


def test_a_field_that_seeds_the_generator_itself_is_not():
    def run(gradient):
        def seeded(t, y):
            random.seed(3)
            return torch.tanh(y) * HIDDEN["python"]()

        y0 = Y.clone().requires_grad_()
        solve(seeded, y0, steps=4, gradient=gradient).y1.square().sum().backward()
        return y0.grad

    torch.testing.assert_close(run("checkpoint:states=2"), run("backprop"))


class Moody(nn.Module):
    """A block whose attribute turns a branch on."""

    def __init__(self):
        super().__init__()
        self.inner, self.mode, self.kept, self.count, self.log = nn.Linear(4, 4), "plain", None, 0, []

    def forward(self, x):
        k = torch.tanh(self.inner(x)) * 0.5
        match self.mode:
            case "kept":
                self.kept = k.square().mean()
            case "detached":
                self.kept = k.square().mean().detach()
            case "history":
                self.log.append(k.detach())
                k = k + 0.1 * sum(self.log)
            case "counts":
                self.count += 1
                k = k * (1 + 0.3 * self.count)
            case "rrelu":
                k = nn.functional.rrelu(k, 0.1, 0.9, self.training)
            case "dropout":
                k = nn.functional.dropout(k, 0.5, self.training)
            case "written":
                x.mul_(0.5)
        return k


class Layer(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class Timed(Layer):
    def forward(self, t, x):
        return self.branch(x)


def contained(container, blocks, gradient):
    if container == "stack":
        return ResidualStack(blocks, t1=3.0, gradient=gradient)
    if container == "node":
        return NeuralODE(Timed(blocks[0]), t1=3.0, steps=3, solver="euler", gradient=gradient)
    model = nn.Sequential(*map(Layer, blocks))
    return convert(model, example=Y.clone(), gradient=gradient) or model


MODES = ("kept", "history", "counts", "rrelu", "dropout", "written")


@pytest.mark.parametrize(
    ("container", "before", "mode"),
    pairwise(itertools.product(("stack", "node", "convert"), ("plain", "detached"), MODES)),
)
def test_a_block_whose_attribute_turns_a_branch_on_is_right_or_refused(container, before, mode):
    def results(gradient):
        torch.manual_seed(0)
        blocks = [Moody().double() for _ in range(3)]
        model = contained(container, blocks, gradient)
        for _ in range(2):
            for block in blocks:
                block.mode = before
            model(Y.clone().requires_grad_().clone()).sum().backward()
        for block in blocks:
            block.mode, block.kept = mode, None
        model.zero_grad()
        torch.manual_seed(5)
        y0 = Y.clone().requires_grad_()
        out = model(y0 * 1)
        loss = out.square().sum() + (blocks[0].kept if mode == "kept" else 0)
        loss.backward()
        return [out, y0.grad, *(p.grad for p in blocks[0].parameters())]

    expected = None if mode == "written" else results("backprop")
    for gradient in GRADIENTS[:3]:
        try:
            ours = results(gradient)
        except (GradientError, InputError):
            continue
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


WRITES = {
    "state": lambda y, a: (y * y * a, y.add_(1.0))[0],
    "entry": lambda y, a: (y * y * a, y.__setitem__(0, 0.0))[0],
    "own": lambda y, a: (lambda z: (z * z * a, z.add_(1.0))[0])(y.clone()),
    "result": lambda y, a: torch.exp(y * a).add_(1.0),
}


class Writing(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.kind = nn.Parameter(torch.tensor(0.3, dtype=torch.float64)), kind

    def forward(self, *arguments):
        return WRITES[self.kind](arguments[-1], self.a)


USES = {
    "solve": lambda f, g: lambda y: solve(lambda t, y: f(y), y, steps=4, gradient=g).y1,
    "heun": lambda f, g: lambda y: solve(f, y, steps=4, solver="heun", gradient=g).y1,
    "adaptive": lambda f, g: lambda y: solve(f, y, rtol=1e-4, gradient=g).y1,
    "stack": lambda f, g: ResidualStack([f] * 4, gradient=g),
    "node": lambda f, g: NeuralODE(f, steps=4, gradient=g),
    "convert": lambda f, g: contained("convert", [f] * 3, g),
}
ONCE = {
    "per_sample": lambda f: lambda y: solve(f, y, control=PIDController(rtol=1e-4, per_sample=True)).y1,
    "odeint": lambda f: lambda y: odeint(f, y, torch.tensor([0.0, 1.0]), rtol=1e-4)[-1],
    "odeint_adjoint": lambda f: lambda y: odeint_adjoint(f, y, torch.tensor([0.0, 1.0]), rtol=1e-4)[-1],
}


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("use", [*USES, *ONCE])
def test_writing_on_what_autograd_has_saved_is_refused_by_name(use, kind):
    for gradient in ["backprop", *GRADIENTS] if use in USES else ["backprop"]:
        if use == "convert" and gradient in ("backprop", "continuous-adjoint"):  # the model's own code, run as it is
            continue

        def run(gradient=gradient):
            run = USES[use](Writing(kind), gradient) if use in USES else ONCE[use](Writing(kind))
            run(Y.clone().requires_grad_() * 1).square().sum().backward()

        with pytest.raises((GradientError, InputError), match="in place"):
            run()


@pytest.mark.parametrize("gradient", ["checkpoint:states=2", "discrete-adjoint:tolerance=1e-11", "continuous-adjoint"])
@pytest.mark.parametrize("use", ["solve", "adaptive", "odeint_adjoint", "convert"])
def test_numbers_that_another_thread_draws_are_not_the_field_s(use, gradient):
    """One that draws at times, as one that loads data does: without a pause, nobody can tell whose numbers they are."""
    inner = nn.Linear(4, 4).double()
    with torch.no_grad():
        inner.weight.mul_(0.4)
    tanh = nn.Sequential(inner, nn.Tanh())

    class Timed(nn.Module):
        def forward(self, *arguments):
            return tanh(arguments[-1])

    def gradients():
        f = Timed()
        run = contained("convert", [f] * 3, gradient) if use == "convert" else {**USES, **ONCE}[use]
        if use != "convert":
            run = run(f, gradient) if use in USES else run(f)
        y0 = Y.clone().requires_grad_()
        run(y0 * 1).square().sum().backward()
        return y0.grad

    if use == "convert" and gradient == "continuous-adjoint":
        pytest.skip("conversion has no continuous adjoint")
    expected, over = gradients(), threading.Event()

    def draw():
        while not over.is_set():
            torch.rand(3)
            random.random()
            np.random.rand()
            over.wait(0.02)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        torch.testing.assert_close(gradients(), expected)
    finally:
        over.set()
        thread.join()


class Cached(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner, self.kind = nn.Linear(4, 4), kind
        self.weak, self.strong = weakref.WeakValueDictionary(), []

    @functools.lru_cache  # noqa: B019
    def scaled(self):
        return self.inner.weight * 1.1

    @functools.cached_property
    def held(self):
        return self.inner.weight * 1.1

    def forward(self, x):
        match self.kind:
            case "weak":
                weight = self.weak.get("w")
                if weight is None:
                    weight = self.weak["w"] = self.inner.weight * 1.1
                    self.strong.append(weight)
            case "lru_cache":
                weight = self.scaled()
            case _:
                weight = self.held
        return torch.tanh(x @ weight.T)


@pytest.mark.parametrize("gradient", GRADIENTS[:3])
@pytest.mark.parametrize("kind", ["weak", "lru_cache", "property"])
@pytest.mark.parametrize("container", ["stack", "convert"])
def test_weights_in_caches_have_their_gradient(container, kind, gradient):
    def results(method):
        torch.manual_seed(0)
        blocks = [Cached(kind).double() for _ in range(3)]
        with torch.no_grad():
            for block in blocks:
                block.inner.weight.mul_(0.3)
        model = contained(container, blocks, method)
        Cached.scaled.cache_clear()
        for block in blocks:
            block.strong.clear()
            block.__dict__.pop("held", None)
        y0 = Y.clone().requires_grad_()
        model(y0 * 1).square().sum().backward()
        return [y0.grad, *(block.inner.weight.grad for block in blocks)]

    expected = results("backprop")
    assert all(part is not None for part in expected)
    try:
        ours = results(gradient)
    except ConversionError:  # it reads what was computed outside of it
        return
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("use", ["solve", "adaptive", "stack", "convert"])
def test_a_gradient_that_is_retained_in_a_field_that_runs_again_is_refused(use):
    class Retains(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4).double()

        def forward(self, *arguments):
            self.kept = torch.tanh(self.inner(arguments[-1])) * 0.3
            if self.kept.requires_grad:
                self.kept.retain_grad()
            return self.kept * 1

    for gradient in GRADIENTS[1:3]:
        with pytest.raises(GradientError, match="retain_grad"):
            USES[use](Retains(), gradient)(Y.clone().requires_grad_() * 1).sum().backward()


def test_hooks_on_what_a_field_computes_are_called_once_a_step():
    for gradient in GRADIENTS[:3]:
        seen = []

        class Hooked(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(4, 4).double()

            def forward(self, t, y, seen=seen):
                k = torch.tanh(self.inner(y)) * 0.3
                k.register_hook(lambda g: seen.append(g))
                return k

        NeuralODE(Hooked(), steps=4, solver="euler", gradient=gradient)(Y.clone().requires_grad_()).sum().backward()
        assert len(seen) == 4


@pytest.mark.parametrize("kind", [list, dict])
def test_a_tree_that_holds_itself_is_refused(kind):
    tree = [Y] if kind is list else {"a": Y}
    tree.append(tree) if kind is list else tree.update(b=tree)
    for call in (
        lambda: solve(lambda t, y: y, tree, steps=2),
        lambda: solve(lambda t, y, w: y, Y, tree, steps=2),
        lambda: solve(lambda t, y: y, tree, rtol=1e-3),
        lambda: ResidualStack([nn.Identity()] * 2)(Y, tree),
    ):
        with pytest.raises(InputError, match="holds itself"):
            call()


def test_dense_output_at_no_times_is_empty():
    solution = odenet.solve(lambda t, y: {"a": -y["a"]}, {"a": Y}, rtol=1e-4, dense=True)
    assert solution.at([])["a"].shape == (0, 3, 4)
    assert solution.at(torch.zeros(2, 0))["a"].shape == (2, 0, 3, 4)


HOLDERS = {
    "closure": lambda m: lambda t, y: torch.tanh(m(y)),
    "list": lambda m: (lambda held: lambda t, y: torch.tanh(held[0](y)))([m]),
    "partial": lambda m: functools.partial(lambda m, t, y: torch.tanh(m(y)), m),
    "cells": lambda m: (lambda w, b: lambda t, y: torch.tanh(nn.functional.linear(y, w, b)))(m.weight, m.bias),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("use", ["backprop", "odeint"])
def test_half_precision_weights_that_a_function_holds_are_summed_in_float32(use, holder):
    torch.manual_seed(0)
    module = nn.Linear(4, 4).bfloat16()
    y0 = torch.randn(3, 4).bfloat16()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, t, y):
            return torch.tanh(self.inner(y))

    def gradients(f):
        module.zero_grad()
        if use == "odeint":
            out = odeint(
                f, y0.clone().requires_grad_(), torch.tensor([0.0, 1.0]), method="euler", options={"step_size": 1 / 400}
            )[-1]
        else:
            out = solve(f, y0.clone().requires_grad_(), steps=200, solver="euler", gradient=use).y1
        out.backward(torch.ones_like(out))
        return torch.cat([p.grad.double().flatten() for p in module.parameters()])

    ours, expected = gradients(HOLDERS[holder](module)), gradients(Whole())
    assert (ours - expected).norm() <= 0.01 * expected.norm()


MIXING = {
    "mean": lambda t, y: y - y.mean(0),
    "detached": lambda t, y: y - y.detach().mean(0),
    "attention": lambda t, y: torch.softmax(y @ y.T, -1) @ y,
    "distances": lambda t, y: torch.exp(-torch.cdist(y, y)) @ y,
    "sort": lambda t, y: torch.sort(y, 0).values - y,
    "roll": lambda t, y: torch.roll(y, 1, 0) * 0.5,
    "einsum": lambda t, y: torch.einsum("bd,cd->b", y, y)[:, None] * y * 0.1,
    "groups": lambda t, y: nn.functional.group_norm(y.reshape(1, len(y), 4), 1).reshape(-1, 4),
    "statistics": lambda t, y: nn.functional.batch_norm(y, None, None, training=True),
    "later": lambda t, y: torch.tanh(y) + t.reshape(-1, 1) * y.mean(0),  # nothing of it at t = 0
    "in the end": lambda t, y: torch.tanh(y) + (t.reshape(-1, 1) > 0.5) * y.mean(0),
    "times": lambda t, y: torch.tanh(y) * t.mean(),
    "first time": lambda t, y: torch.tanh(y) * t.reshape(-1)[0],
}


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("mixing", MIXING)
def test_rows_with_their_own_steps_that_read_each_other_are_refused(mixing, rows):
    y0 = (
        torch.linspace(-1, 2, rows * 4, dtype=torch.float64).sin().reshape(rows, 4) * torch.arange(1, rows + 1)[:, None]
    )
    with pytest.raises(UnsupportedError, match="rows read each other"):
        solve(MIXING[mixing], y0, control=PIDController(rtol=1e-8, atol=1e-9, per_sample=True))


ALONE = {
    "layer norm": lambda t, y: nn.functional.layer_norm(y, (4,)),
    "groups": lambda t, y: nn.functional.group_norm(y, 2),
    "instances": lambda t, y: nn.functional.instance_norm(y.reshape(-1, 2, 2)).reshape(-1, 4),
    "softmax": lambda t, y: torch.softmax(y, 1) * t.reshape(-1, 1),
}


@pytest.mark.parametrize("alone", ALONE)
def test_rows_that_are_normalized_each_by_itself_are_right(alone):
    y0 = torch.linspace(-1, 2, 24, dtype=torch.float64).sin().reshape(6, 4) * torch.arange(1, 7)[:, None]
    control = PIDController(rtol=1e-8, atol=1e-9, per_sample=True)
    together = solve(ALONE[alone], y0, control=control).y1
    each = [solve(lambda t, y: ALONE[alone](t, y[None])[0], row, rtol=1e-8, atol=1e-9).y1 for row in y0]
    torch.testing.assert_close(together, torch.stack(each), rtol=1e-6, atol=1e-8)


class ComparedByEntry:
    """Compares as arrays of NumPy, and data frames, do; its attributes are asked for by one name alone."""

    def __init__(self, scale):
        object.__setattr__(self, "T", scale)

    def __eq__(self, other):
        return np.array([True, False])

    def __getattr__(self, name):
        raise ValueError(name)

    __hash__ = object.__hash__


ARRAY = np.diag([0.3, 0.4, 0.5, 0.6])
ODD = ComparedByEntry(0.3)


class OfClass(nn.Module):
    odd = ODD

    def forward(self, t, y):
        return torch.tanh(y) * self.odd.T


def of_global_array(t, y):
    return torch.tanh(y @ torch.from_numpy(ARRAY.T))


def of_global_object(t, y):
    return torch.tanh(y) * ODD.T


@pytest.mark.parametrize("grid", [{"steps": 8, "solver": "rk4"}, {"rtol": 1e-8, "atol": 1e-8}])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("read", [of_global_array, of_global_object, OfClass()])
def test_attributes_of_what_compares_by_entry_are_read(read, gradient, grid):
    """`ARRAY.T` in a field: whether that is a module of random numbers is no question to the array."""
    expected, got = (
        torch.autograd.grad(solve(read, y := Y.clone().requires_grad_(), gradient=g, **grid).y1.square().sum(), y)[0]
        for g in ("backprop", gradient)
    )
    assert torch.allclose(got, expected, rtol=1e-3)
