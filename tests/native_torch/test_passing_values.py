"""Converted layers that are settled but for values that are others in each pass: statistics, losses by the side, what
hooks store. Under checkpoint they have the numbers of the plain model, and leave what it leaves."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from python_calls import python_calls
from torch import Tensor, nn

from odenet import GradientError
from odenet_torch import convert
from odenet_torch.field.settled import contents

WIDTH, LAYERS = 5, 3


class Layer(nn.Module):
    """A residual layer around `norm`; what a subclass keeps, tests read in `kept`."""

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.linear, self.norm, self.out = nn.Linear(WIDTH, WIDTH), norm or nn.Identity(), nn.Linear(WIDTH, WIDTH)

    def inner(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x)))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * self.out(self.inner(x))


class ReadsStatistics(Layer):
    def inner(self, x):
        y = torch.tanh(self.norm(self.linear(x)))
        return y * (self.norm.running_var + self.norm.running_mean)


class Averages(nn.Module):
    """A buffer that is read, written on, and read again."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(WIDTH, dtype=torch.float64))

    def forward(self, x):
        y = x * self.mean.clone()
        with torch.no_grad():
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return y * self.mean.clone()


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.linspace(0, 1, WIDTH, dtype=torch.float64))

    def forward(self, x):
        return x * self.mask


class SideLoss(Layer):
    kept: Tensor | None = None

    def inner(self, x):
        y = super().inner(x)
        self.kept = y.square().mean()
        return y


class Remembers(Layer):
    """What it keeps it reads in the next pass, as a factor, so that its gradient depends on it."""

    kept: Tensor | None = None

    def inner(self, x):
        y = super().inner(x)
        if self.kept is not None:
            y = y * (1 + self.kept.detach())
        self.kept = y.square().mean(0)
        return y


def hooked(inside: bool, keep) -> Layer:
    """A layer with a forward hook, on itself or inside, that keeps something of what was returned."""
    layer = Layer()

    def hook(module, inputs, out):
        return keep(layer, out)

    (layer.linear if inside else layer).register_forward_hook(hook)
    layer.seen = {}
    return layer


def stores(layer, out):
    layer.seen["out"] = out.detach()


def stores_with_graph(layer, out):
    layer.kept = out.square().mean()


def counts(layer, out):
    layer.seen["out"] = layer.seen.get("out", 0) + 1


def doubles(layer, out):
    return 2 * out


class Frozen(nn.BatchNorm1d):
    """Batch norm that stays in evaluation."""

    def train(self, mode: bool = True):
        return super().train(False)


def weight_norm() -> Layer:
    layer = Layer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # there is another one, which is looked at in full
        torch.nn.utils.weight_norm(layer.linear)
    return layer


def spectral_norm() -> Layer:
    layer = Layer()
    torch.nn.utils.spectral_norm(layer.linear)
    return layer


KINDS = {
    "batch norm": lambda: Layer(nn.BatchNorm1d(WIDTH)),
    "batch norm, averages of all": lambda: Layer(nn.BatchNorm1d(WIDTH, momentum=None)),
    "batch norm, without statistics": lambda: Layer(nn.BatchNorm1d(WIDTH, track_running_stats=False)),
    "batch norm, whose statistics are read": lambda: ReadsStatistics(nn.BatchNorm1d(WIDTH)),
    "batch norm and dropout": lambda: Layer(nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.3))),
    "batch norm that is frozen": lambda: Layer(Frozen(WIDTH).eval()),
    "averages that are read": lambda: Layer(Averages()),
    "a mask": lambda: Layer(Masked()),
    "a loss by the side": SideLoss,
    "what it kept is read": Remembers,
    "a hook inside": lambda: hooked(True, stores),
    "a hook": lambda: hooked(False, stores),
    "a hook inside, with a graph": lambda: hooked(True, stores_with_graph),
    "a hook, with a graph": lambda: hooked(False, stores_with_graph),
    "a hook that changes what is returned": lambda: hooked(True, doubles),
    "weight norm by hooks": weight_norm,
    "spectral norm by hooks": spectral_norm,
    "a hook that counts": lambda: hooked(False, counts),
}
IN_FULL = {"a hook that counts"}


class Model(nn.Module):
    def __init__(self, layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def pair(kind: str) -> tuple[Model, Model]:
    """A plain model, and the same converted."""
    models = []
    for _ in range(2):  # a hook of a copy would keep what it keeps in the original
        torch.manual_seed(0)
        models.append(Model(KINDS[kind]).double())
    return models[0], convert(models[1], example=x(), gradient="checkpoint")


def x(seed: int = 1) -> Tensor:
    return torch.randn(4, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def loss(model: Model, y: Tensor) -> Tensor:
    value = model(y).sin().sum()
    sides = [getattr(layer, "kept", None) for layer in model.layers]
    return value + sum(0.7 * side.sum() for side in sides if side is not None)


def outcome(model: Model, use=loss) -> list[Tensor]:
    """The loss, the gradients, and what is left: buffers, and what layers keep."""
    torch.manual_seed(3)
    y = x().requires_grad_()
    model.zero_grad()
    value = use(model, y)
    value.backward()
    left = [x for layer in model.layers for x in held(layer)]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [value.detach(), y.grad, *gradients, *(b.clone() for b in model.buffers()), *left]


def held(layer: nn.Module) -> list[Tensor]:
    values = [getattr(layer, "kept", None), *getattr(layer, "seen", {}).values()]
    return [x.detach().clone() for x in values if isinstance(x, Tensor)]


def require_alike(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def settled(model: Model) -> list[bool]:
    return [any(contents((layer,), passing=passing) is not None for passing in (False, True)) for layer in model.layers]


def step(model: Model) -> None:
    """Of an optimizer."""
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_the_plain_model(kind):
    models = pair(kind)
    for n in range(5):
        require_alike(*map(outcome, models))
        assert n < 3 or settled(models[1]) == [kind not in IN_FULL] * LAYERS
        for model in models:
            step(model)


USES = {
    "two passes": lambda model, y: loss(model, y) + loss(model, 2 * y),
    "a layer twice": lambda model, y: model.layers[1](model.layers[1](y)).sin().sum(),
    "the losses alone": lambda model, y: loss(model, y) - model(y).sin().sum(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", KINDS)
def test_uses(kind, use):
    models = pair(kind)
    for _ in range(3):
        require_alike(*(outcome(model, USES[use]) for model in models))


@pytest.mark.parametrize("kind", ["batch norm", "averages that are read", "what it kept is read"])
def test_a_graph_that_is_gone_back_through_twice(kind):
    models = pair(kind)
    for _ in range(3):
        results = []
        for model in models:
            y = x().requires_grad_()
            value = loss(model, y)
            first = torch.autograd.grad(value, y, retain_graph=True)
            (dy,) = torch.autograd.grad(value, y, create_graph=True)
            results.append([*first, *torch.autograd.grad(dy.square().sum(), y), *(b.clone() for b in model.buffers())])
        require_alike(*results)


CHANGES = {
    "a kept value is taken away": lambda layer: setattr(layer, "kept", None),
    "another one is put there": lambda layer: setattr(layer, "kept", torch.ones(WIDTH, dtype=torch.float64)),
    "it is deleted": lambda layer: vars(layer).pop("kept", None),
    "an attribute": lambda layer: setattr(layer, "note", "new"),
    "another parameter": lambda layer: setattr(layer.out, "weight", nn.Parameter(torch.eye(WIDTH).double())),
    "another buffer": lambda layer: [
        inner._buffers.update({key: b + 1}) for inner in layer.modules() for key, b in inner._buffers.items()
    ],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["batch norm", "what it kept is read", "a loss by the side"])
def test_what_is_changed_before_the_backward_pass_stands_after_it(kind, change):
    models = pair(kind)
    for one in models:
        for _ in range(3):
            outcome(one)
    results = []
    for model in models:
        before = [*model.parameters()]
        for p in before:
            p.grad = None
        value = loss(model, x())
        CHANGES[change](model.layers[1])
        value.backward()
        after = [x for layer in model.layers for x in held(layer)]
        results.append([*(p.grad for p in before), *(b.clone() for b in model.buffers()), *after])
    require_alike(*results)
    assert vars(models[0].layers[1]).keys() == vars(models[1].layers[1]).keys() - {
        "odenet_run",
        "_odenet_ways",
        "_odenet_known",
    }


WRITTEN = {
    "what it kept is read": lambda model: [x.mul_(2) for x in model.earlier],
    "a mask": lambda model: model.layers[1].norm.mask.mul_(2),
    "averages that are read": lambda model: model.layers[1].linear.weight.data.mul_(2),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_a_layer_read_and_is_written_on_is_refused(kind):
    _, model = pair(kind)
    for _ in range(3):
        outcome(model)
    model.earlier = [layer.kept.detach() for layer in model.layers if hasattr(layer, "kept")]
    value = loss(model, x())
    WRITTEN[kind](model)
    with pytest.raises(GradientError, match="modified by an inplace operation"):
        value.backward()


LATER = {
    "something else is left": lambda layer: setattr(layer, "linear", Leaves(layer.linear)),
    "it goes back through itself": lambda layer: setattr(layer, "linear", Differentiates(layer.linear)),
    "a list is left": lambda layer: setattr(layer, "linear", Lists(layer.linear)),
    "another hook": lambda layer: layer.linear.register_forward_hook(lambda module, inputs, out: 2 * out),
    "evaluation": lambda layer: layer.eval(),
}


class Inner(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.state = inner, {"calls": 0}

    def forward(self, x):
        y = self.inner(x)
        return y if x.detach().sum() < 0 else self.other(x, y)

    def other(self, x, y):
        return y


class Leaves(Inner):
    def other(self, x, y):
        self.state["calls"] += 1
        return y


class Differentiates(Inner):
    def other(self, x, y):
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(torch.tanh(self.inner(z)).square().sum(), z)
        return y + g


class Lists(Inner):
    def other(self, x, y):
        self.state["out"] = [y.detach()]
        return y


@pytest.mark.parametrize("later", LATER)
@pytest.mark.parametrize("kind", ["batch norm", "averages that are read", "a loss by the side", "what it kept is read"])
def test_a_settled_layer_that_does_something_else_is_looked_at_again(kind, later):
    """By data alone: nothing stands elsewhere before it runs. Statistics are counted once all the same."""
    models = pair(kind)
    for model in models:
        LATER[later](model.layers[1])
    signs = iter([-1, -1, -1, 1, 1, -1, 1])
    for sign in signs:

        def use(model, y, sign=sign):
            return loss(model, sign * y.abs())

        require_alike(*(outcome(model, use) for model in models))


def test_the_graphs_of_earlier_passes_are_let_go():
    for kind in ("a loss by the side", "a hook, with a graph", "a hook inside, with a graph"):
        _, model = pair(kind)
        for _ in range(3):
            outcome(model)
        kept = [weakref.ref(layer.kept) for layer in model.layers]
        gc.disable()
        try:
            loss(model, x())
            assert not any(ref() is not None for ref in kept), kind
        finally:
            gc.enable()


def test_a_settled_layer_is_compared_in_few_calls():
    """Of Python, in a training step a layer: what a layer looked at in full takes is above a thousand."""
    for kind in ("batch norm", "a loss by the side", "a hook", "a hook inside"):
        _, model = pair(kind)
        for _ in range(4):
            outcome(model)
        calls = python_calls(lambda model=model: loss(model, x()).backward())
        assert calls < 500 * LAYERS, (kind, calls)
