"""Converted layers that earlier passes have shown to run again as they ran: with the numbers of the plain model, and
whatever changes about such a layer is met as it is in a first pass."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from odenet import GradientError, InputError
from odenet_torch import convert
from odenet_torch.conversion.segment import Segment
from odenet_torch.field.settled import contents

WIDTH = 6
TOLERANCES = {"checkpoint": 1e-12, "discrete-adjoint:iterations=40": 1e-9, "checkpoint:bits=16": 1e-3}
METHODS = pytest.mark.parametrize("gradient", TOLERANCES)
EXACT = pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint:iterations=40"])


class Layer(nn.Module):
    """A residual layer with whatever a test switches on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale, self.noise, self.once, self.kept = 0.3, 0.0, 1.0, None
        self.slopes = torch.linspace(0.5, 1, WIDTH, dtype=torch.float64)  # no buffer

    def forward(self, x: Tensor, shift=None, seen=None, noise: float = 0.0, inside: bool = False) -> Tensor:
        scale, self.once = self.scale * self.once, 1.0
        if seen is not None:
            seen.append(len(seen))
            x = x + 0.01 * len(seen)
        if inside:
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (k,) = torch.autograd.grad(torch.tanh(self.linear(y)).square().sum(), y)
        else:
            k = torch.tanh(self.linear(x)) * self.slopes
        if self.noise or noise:
            k = k * (1 + (self.noise or noise) * torch.rand_like(k))
        if self.kept is not None:
            self.kept = k.square().mean()
        return x + scale * self.out(k if shift is None else k + shift)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor, *arguments, **named) -> Tensor:
        for layer in self.layers:
            x = layer(x, *arguments, **named)
        return x


def pair(gradient: str) -> tuple[Model, Model]:
    """A plain model, and a converted one whose layers are settled in training and in evaluation."""
    torch.manual_seed(0)
    plain = Model().double()
    model = convert(copy.deepcopy(plain), example=x(), gradient=gradient)
    for mode in (False, True):
        model.train(mode)
        for _ in range(2):
            model(x()).sum().backward()
        assert all(contents((layer,)) is not None for layer in model.layers)
    model.zero_grad()
    return plain, model


def x() -> Tensor:
    return torch.randn(3, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss(model, y: Tensor, *arguments, **named) -> Tensor:
    torch.manual_seed(3)
    return model(y, *arguments, **named).sin().sum()


def outcome(model, use=loss) -> list[Tensor]:
    """The loss and the gradients of a use."""
    model.zero_grad()
    y = x().requires_grad_()
    value = use(model, y)
    value.backward()
    return [value.detach(), y.grad, *(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())]


def require_alike(one: list[Tensor], other: list[Tensor], tolerance: float) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


CHANGES = {
    "nothing": lambda model: None,
    "an attribute": lambda model: setattr(model.layers[2], "scale", 0.5),
    "an attribute that the layer sets back": lambda model: setattr(model.layers[2], "once", 0.2),
    "noise that begins": lambda model: setattr(model.layers[2], "noise", 0.3),
    "a tensor": lambda model: setattr(model.layers[2], "slopes", torch.ones(WIDTH, dtype=torch.float64)),
    "a written tensor": lambda model: model.layers[2].slopes.mul_(0.5),
    "another parameter": lambda model: setattr(
        model.layers[2].linear, "weight", nn.Parameter(0.3 * torch.eye(WIDTH).double())
    ),
    "a frozen parameter": lambda model: model.layers[2].linear.weight.requires_grad_(False),
    "all frozen": lambda model: model.requires_grad_(False),
    "a written parameter": lambda model: model.layers[2].linear.weight.data.mul_(0.5),
    "an inner hook": lambda model: model.layers[2].linear.register_forward_hook(lambda module, inputs, out: 2 * out),
    "a hook": lambda model: model.layers[2].register_forward_hook(lambda module, inputs, out: 2 * out),
    "a hook on the gradient": lambda model: model.layers[2].linear.register_full_backward_hook(
        lambda module, given, out: (2 * given[0],)
    ),
    "another child": lambda model: setattr(
        model.layers[2], "linear", nn.Sequential(model.layers[2].linear, nn.Dropout(0.5))
    ),
    "batch norm": lambda model: setattr(
        model.layers[2], "linear", nn.Sequential(model.layers[2].linear, nn.BatchNorm1d(WIDTH).double())
    ),
    "evaluation": lambda model: model.eval(),
    "one in evaluation": lambda model: model.layers[1].eval(),
    "tied layers": lambda model: setattr(model.layers, "1", model.layers[0]),
    "one gone": lambda model: model.layers.__delitem__(1),
    "turned round": lambda model: setattr(model, "layers", nn.ModuleList(list(model.layers)[::-1])),
    "weight norm": lambda model: (
        nn.utils.parametrize.is_parametrized(model.layers[2].linear)
        or nn.utils.parametrizations.weight_norm(model.layers[2].linear)
    ),
}


@EXACT
@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_passes_is_met_as_in_the_plain_model(gradient, change):
    if "sets back" in change and gradient != "checkpoint":
        return  # one evaluation of several would find it
    models = pair(gradient)
    for _ in range(2):  # and becomes known
        for model in models:
            CHANGES[change](model)
        require_alike(*map(outcome, models), TOLERANCES[gradient])


USES = {
    "an argument with a gradient": lambda model, y: loss(model, y, 0.1 * y[0]),
    "a list that layers fill": lambda model, y: loss(model, y, None, []),
    "noise by an argument": lambda model, y: loss(model, y, noise=0.3),
    "two passes": lambda model, y: loss(model, y) + loss(model, 2 * y),
    "a layer twice": lambda model, y: model.layers[1](model.layers[1](y)).sin().sum(),
    "states between": lambda model, y: (model.layers[0](y) * model.layers[2](model.layers[0](y))).sum(),
    "noise between layers": lambda model, y: (
        model.layers[1](model.layers[0](y) * torch.rand(())).sum() * 0 + loss(model, y)
    ),
    "within another checkpoint": lambda model, y: checkpoint(lambda y: loss(model, y), y, use_reentrant=False),
    "within a device": lambda model, y: within_a_device(model, y),
}


def within_a_device(model, y):
    with torch.device("cpu"):
        return loss(model, y)


@METHODS
@pytest.mark.parametrize("use", USES)
def test_uses(gradient, use):
    if "another checkpoint" in use and "bits" in gradient:
        return  # which saves other tensors when it runs again, and torch's checkpoint refuses that
    models = pair(gradient)
    for _ in range(2):
        require_alike(*(outcome(model, USES[use]) for model in models), TOLERANCES[gradient])


def test_a_layer_that_goes_back_through_itself():
    models = pair("checkpoint")
    for _ in range(3):
        require_alike(*(outcome(model, lambda model, y: loss(model, y, inside=True)) for model in models), 1e-12)


def test_a_loss_kept_by_the_side_from_now_on():
    def use(model, y):
        for layer in model.layers:
            layer.kept = torch.zeros((), dtype=torch.float64)
        return loss(model, y) + sum(layer.kept for layer in model.layers)

    models = pair("checkpoint")
    require_alike(*(outcome(model, use) for model in models), 1e-12)


BETWEEN = {
    "a written parameter": (lambda model, _: model.layers[2].linear.weight.data.mul_(0.5), True),
    "a step of an optimizer": (lambda model, _: torch.optim.SGD(model.parameters(), 0.1).step(), True),
    "evaluation": (lambda model, _: model.eval(), True),
    "freezing": (lambda model, _: model.layers[2].linear.bias.requires_grad_(False), True),
    "a written tensor": (lambda model, _: model.layers[2].slopes.mul_(2), True),
    "a written argument": (lambda model, shift: shift.mul_(2), True),
    "an attribute": (lambda model, _: setattr(model.layers[2], "scale", 7.0), False),
    "another parameter": (
        lambda model, _: setattr(model.layers[2].linear, "weight", nn.Parameter(torch.eye(WIDTH))),
        False,
    ),
    "noise": (lambda model, _: torch.rand(3), False),
}


@EXACT
@pytest.mark.parametrize("change", BETWEEN)
def test_what_changes_between_forward_and_backward_is_put_back_or_refused(gradient, change):
    act, refused = BETWEEN[change]
    plain, model = pair(gradient)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    shift = torch.ones(WIDTH, dtype=torch.float64)
    before = [*model.parameters()]
    value = loss(model, x(), shift, noise=0.1)
    act(model, shift)
    if refused:
        with pytest.raises(GradientError, match="after the forward pass"):
            value.backward()
        return
    value.backward()
    loss(plain, x(), torch.ones(WIDTH, dtype=torch.float64), noise=0.1).backward()
    for p, own in zip(before, plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, own.grad + 1, rtol=1e-9, atol=1e-9)


def test_a_state_that_is_written_on_is_refused():
    _, model = pair("checkpoint")
    y = x()
    value = loss(model, y)
    y.mul_(2)
    with pytest.raises(GradientError, match="modified by an inplace operation"):
        value.backward()


@METHODS
def test_a_layer_that_writes_on_its_state_from_now_on_is_refused(gradient):
    _, model = pair(gradient)
    model.layers[1].linear.forward = lambda x: x.mul_(2)
    with pytest.raises(InputError, match="changes its input in place"):
        loss(model, x())


def test_graphs_that_are_kept_gone_back_in_parts_and_differentiated_again():
    plain, model = pair("checkpoint")
    found = []
    for each in (plain, model):
        each.zero_grad()
        y = x().requires_grad_()
        middle = each.layers[1](each.layers[0](y))
        value = each.layers[3](each.layers[2](middle)).sin().sum()
        first = torch.autograd.grad(value, middle, retain_graph=True)
        value.backward(retain_graph=True)
        (dy,) = torch.autograd.grad(value, y, create_graph=True)
        dy.square().sum().backward()
        found.append([*first, dy.detach(), y.grad, *(p.grad for p in each.parameters())])
    require_alike(*found, 1e-12)


def test_hooks_of_the_caller_see_what_is_saved():
    _, model = pair("checkpoint")
    sizes = []

    def pack(tensor):
        sizes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model, x()).backward()
    assert sizes.count((3, WIDTH)) >= len(model.layers)


@EXACT
def test_autocast_around_the_backward_pass_is_not_that_of_a_layer(gradient):
    plain, model = pair(gradient)
    found = []
    for each in (plain, model):
        each.float()
        for layer in each.layers:
            layer.slopes = layer.slopes.float()
        for _ in range(3):
            each.zero_grad()
            value = loss(each, x().float())
            # products of gradients are torch's own; those of an adjoint are the layer's
            with torch.autocast("cpu", torch.bfloat16, enabled=each is model or gradient == "checkpoint"):
                value.backward()
        found.append([p.grad for p in each.parameters()])
    require_alike(*found, 1e-4)


def test_what_is_saved_is_let_go_and_nothing_is_stored_for_a_layer(monkeypatch):
    _, model = pair("checkpoint")
    segments = []
    begin = Segment.__init__
    monkeypatch.setattr(
        Segment, "__init__", lambda self, *args: (begin(self, *args), segments.append(weakref.ref(self)))[0]
    )
    gc.disable()
    try:
        y = x()
        states = []
        for layer in model.layers:
            y = layer(y)
            states.append(weakref.ref(y))
        value = y.sum()
        del y
        assert len(segments) == len(model.layers)
        assert not any(segment().saved for segment in segments)
        value.backward()
        del value
        assert not any(ref() is not None for ref in (*states, *segments))
    finally:
        gc.enable()


def test_other_parameters_by_functional_call():
    plain, model = pair("checkpoint")
    found = []
    for each in (plain, model):
        other = {name: (0.5 * p.detach()).requires_grad_() for name, p in each.named_parameters()}
        torch.func.functional_call(each, other, (x(),)).sin().sum().backward()
        found.append([p.grad for p in other.values()])
    require_alike(*found, 1e-12)


@METHODS
def test_a_layer_that_hooks_its_state(gradient):
    """Under checkpoint once, though it registers the hook again; where it runs on another state it is refused."""
    models = pair(gradient)
    for model in models:
        model.layers[1].linear = Hooking(model.layers[1].linear)
    if gradient != "checkpoint":
        with pytest.raises(GradientError, match="registers a hook on its input"):
            loss(models[1], x().requires_grad_())
        return
    for _ in range(3):
        require_alike(*(outcome(model) for model in models), 1e-12)


class Hooking(nn.Module):
    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(lambda g: 2 * g)
        return self.inner(x)


def test_errors_of_layers_that_wait_for_others_are_in_the_certificate():
    """Of a backward pass that stops half way, or has gone through fewer layers than are looked at at once."""
    torch.manual_seed(0)
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    layers = nn.Sequential(*(Layer() for _ in range(11))).double()
    model = convert(layers, example=x, gradient="discrete-adjoint")
    run, certificates = model[0].odenet_run, []
    for _ in range(2):  # settled from the second pass on
        for part in ("all", "upper half"):
            states = [x.requires_grad_()]
            for layer in model:
                states.append(layer(states[-1]))
            torch.autograd.grad(states[-1].square().mean(), states[0 if part == "all" else 6])
            certificates.append(run.certificate)
    assert certificates[2:] == pytest.approx(certificates[:2], rel=1e-9)
    assert 0 < certificates[3] <= certificates[2]
