"""Whatever a program does with a converted model is as with the plain one, gradient included; or it is refused.

Each use is a function of a model and an input that returns a loss; plain model and converted one get the same.
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import weakref

import pytest
import torch
from quick import quick
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from odenet import ConversionError, GradientError, InputError, UnsupportedError
from odenet_torch import convert
from odenet_torch.conversion.attached import Attached

TOLERANCES = {"checkpoint": 1e-9, "discrete-adjoint:iterations=40": 1e-9, "checkpoint:bits=16": 1e-3}
METHODS = pytest.mark.parametrize("gradient", TOLERANCES)
WIDTH = 6


class Block(nn.Module):
    """Two residual branches, dropout in both, a loss by the side, attributes of all kinds, several results if asked."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.scale, self.drop, self.auxiliary, self.tail = number, 0.3, 0.1, None, False
        self.slopes = torch.linspace(0.5, 1, WIDTH, dtype=torch.float64)  # no buffer
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, condition=None):
        inner = self.dropout(torch.tanh(self.first(self.norm1(x)))) * self.slopes
        self.auxiliary = inner.square().mean()
        x = x + self.scale * (inner if condition is None else inner * condition)
        x = x + self.scale * nn.functional.dropout(torch.tanh(self.second(self.norm2(x))), self.drop, self.training)
        return (x, inner, {"mean": inner.mean(0)}) if self.tail else x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(n) for n in range(4))
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x, upto=None):
        for layer in self.layers[:upto]:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return self.head(x)


def pair(gradient, **choices):
    torch.manual_seed(0)
    plain = Model().double()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    return plain, convert(copy.deepcopy(plain), example=x, gradient=gradient, **choices), x


shared = functools.cache(pair)


def outcome(model, x, use):
    """Loss and gradients of a use."""
    x = x.clone().requires_grad_()
    torch.manual_seed(5)
    loss = use(model, x)
    if loss.requires_grad:
        loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), found | {"x": x.grad}


def require_alike(one, other, tolerance):
    (loss, expected), (again, found) = one, other
    rounded = tolerance > 1e-6  # and so are the gradients that some losses are made of
    torch.testing.assert_close(again, loss, rtol=tolerance if rounded else 1e-12, atol=1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradient is None or not gradient.any()) == (found[name] is None or not found[name].any()), name
        if gradient is not None and found[name] is not None:
            torch.testing.assert_close(found[name], gradient, rtol=tolerance, atol=tolerance, msg=name)


def states(model, x):
    found = [x]
    for layer in model.layers:
        found.append(layer(found[-1]))
    return found


def sliced(model, x):
    for layer in model.layers[:3]:
        x = layer(x)
    return x.square().sum()


def without_the_first(model, x):
    for layer in model.layers[1:]:
        x = layer(x)
    return x.square().sum()


def only_one_in_the_middle(model, x):
    return model.layers[2](x).square().sum()


def stopped_early(model, x):
    for layer in model.layers:
        x = layer(x)
        if x.abs().max() > 1:
            break
    return x.square().sum()


def hidden_states(model, x):
    return sum((n + 1) * state.square().sum() for n, state in enumerate(states(model, x)))


def a_feature_from_the_middle(model, x):
    return states(model, x)[2].cos().sum()


def a_feature_whose_readers_do_not_end_with_the_last(model, x):
    found = states(model, x)
    value = found[2].cos().sum()
    del found
    return value


def backward_in_changed_order(model, x):
    for layer in reversed(model.layers):
        x = layer(x)
    return x.square().sum()


def one_layer_twice(model, x):
    for n in (0, 1, 1, 2):
        x = model.layers[n](x)
    return x.square().sum()


def two_ways_on_from_a_state(model, x):
    y = model.layers[0](x)
    return (model.layers[1](y) * model.layers[2](y)).sum() + model.layers[3](model.layers[1](y)).sum()


def a_way_on_that_is_dropped(model, x):
    y = model.layers[0](x)
    model.layers[1](y)
    value = y.square().sum()
    del y
    return value


def changed_between(model, x):
    for layer in model.layers:
        x = layer(x) * 1.25 + 0.1
    return x.square().sum()


def a_state_twice(model, x):
    for layer in model.layers:
        x = layer(x)
        x = x + x.detach().mean()
    return x.square().sum()


def detached_between(model, x):
    x = model.layers[1](model.layers[0](x)).detach()
    return model.layers[3](model.layers[2](x)).square().sum()


def without_a_graph_first(model, x):
    with torch.no_grad():
        x = model.layers[0](x)
    return model.layers[2](model.layers[1](x)).square().sum()


def seen_by_nobody(model, x):
    with torch.no_grad():
        return model(x).sum()


def side_losses(model, x):
    out = model(x).square().sum()
    return out + sum((n + 1) * layer.auxiliary for n, layer in enumerate(model.layers))


def side_losses_alone(model, x):
    model(x)
    return sum((n + 1) * layer.auxiliary for n, layer in enumerate(model.layers))


def several_results(model, x):
    value = 0
    for layer in model.layers:
        layer.tail = True
        x, inner, means = layer(x)
        value = value + inner.sin().sum() + means["mean"].square().sum()
        layer.tail = False
    return value + x.square().sum()


def hooked(make, register):
    def use(model, x):
        seen = []
        handles = [register(layer, make(n, seen)) for n, layer in enumerate(model.layers)]
        try:
            value = model(x).square().sum() + sum(tensor.cos().sum() for tensor in seen)
        finally:
            for handle in handles:
                handle.remove()
        return value

    return use


def forward_hook(layer, hook):
    return layer.register_forward_hook(hook)


def inner_hook(layer, hook):
    return layer.first.register_forward_hook(hook)


def pre_hook(layer, hook):
    return layer.register_forward_pre_hook(hook)


COLLECTS = lambda n, seen: lambda module, inputs, output: seen.append(output)  # noqa: E731
CHANGES = lambda n, seen: lambda module, inputs, output: output * (1 + 0.1 * n)  # noqa: E731
ENTERS = lambda n, seen: lambda module, inputs: (inputs[0] * (1 + 0.1 * n),)  # noqa: E731


def gradient_hooks(model, x):
    double = lambda module, inputs, outputs: tuple(g * 2 for g in inputs)  # noqa: E731
    handles = [layer.register_full_backward_hook(double) for layer in model.layers]
    value = model(x).square().sum()
    for handle in handles:  # what was called has them
        handle.remove()
    return value


def tensor_hooks(model, x):
    found = states(model, x)
    found[2].register_hook(lambda g: g * 3)
    handle = model.layers[0].first.weight.register_hook(lambda g: g + 1)
    value = found[-1].square().sum()
    value.backward(retain_graph=True)
    handle.remove()
    return value


def conditioned(model, x):
    for n, layer in enumerate(model.layers):
        x = layer(x, condition=x.detach().tanh() + n if n % 2 else None)
    return x.square().sum()


def conditioned_by_an_earlier_state(model, x):
    first = model.layers[0](x)
    y = first
    for layer in model.layers[1:]:
        y = layer(y, condition=first)
    return y.square().sum()


def conditioned_by_itself(model, x):
    for layer in model.layers:
        x = layer(x, condition=x)
    return x.square().sum()


def under_another_checkpoint(model, x):
    return checkpoint(lambda x: model(x), x, use_reentrant=False).square().sum()


def twice_through(model, x):
    return model(x).square().sum() + model(1.5 * x).square().sum()


def another_shape(model, x):
    return model(x.repeat(2, 2, 1)).square().sum()


def retained(model, x):
    value = hidden_states(model, x)
    value.backward(retain_graph=True)
    return 0.5 * value


def only_some(model, x):
    found = states(model, x)
    (gradient,) = torch.autograd.grad(found[3].square().sum(), found[1], retain_graph=True)
    return found[-1].square().sum() + gradient.sum()


def parts_of_a_graph(model, x):
    found = states(model, x)
    (one,) = torch.autograd.grad(found[4].sum(), found[3], retain_graph=True)
    (other,) = torch.autograd.grad(found[2].square().sum(), found[0], retain_graph=True)
    return found[3].square().sum() + one.sum() + other.sum()


def skipped_by_chance(model, x):
    for layer in model.layers:
        if torch.rand(()) < 0.6:
            x = layer(x)
    return x.square().sum() + 0 * sum(p.sum() for p in model.parameters())


def under_inference_between(model, x):
    y = model.layers[0](x)
    with torch.inference_mode():
        model(x)
    return model.layers[1](y).square().sum()


USES = [
    sliced,
    without_the_first,
    only_one_in_the_middle,
    stopped_early,
    hidden_states,
    a_feature_from_the_middle,
    a_feature_whose_readers_do_not_end_with_the_last,
    backward_in_changed_order,
    one_layer_twice,
    two_ways_on_from_a_state,
    a_way_on_that_is_dropped,
    changed_between,
    a_state_twice,
    detached_between,
    without_a_graph_first,
    seen_by_nobody,
    side_losses,
    side_losses_alone,
    several_results,
    *(hooked(COLLECTS, register) for register in (forward_hook, inner_hook)),
    *(hooked(CHANGES, register) for register in (forward_hook, inner_hook)),
    hooked(ENTERS, pre_hook),
    gradient_hooks,
    tensor_hooks,
    conditioned,
    conditioned_by_an_earlier_state,
    conditioned_by_itself,
    under_another_checkpoint,
    twice_through,
    another_shape,
    retained,
    only_some,
    parts_of_a_graph,
    skipped_by_chance,
    under_inference_between,
]


@METHODS
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__qualname__.partition(".")[0])
def test_a_use_of_the_model(use, gradient):
    plain, converted, x = shared(gradient)
    for model in (plain, converted):
        model.zero_grad()
    require_alike(outcome(plain, x, use), outcome(converted, x, use), TOLERANCES[gradient])


# ---- changes after the conversion


class Added(nn.Module):
    """A linear layer and a low-rank one beside it."""

    def __init__(self, base) -> None:
        super().__init__()
        self.base = base
        draw = lambda *shape: nn.Parameter(torch.linspace(-0.5, 0.5, WIDTH * 2, dtype=torch.float64).view(*shape))  # noqa: E731
        self.one, self.other = draw(WIDTH, 2), draw(2, WIDTH)

    def forward(self, x):
        return self.base(x) + x @ self.one @ self.other


def every(change):
    def changed(model):
        for layer in model.layers:
            change(layer)

    return changed


def set_to(name, value):
    return every(lambda layer: setattr(layer, name, value))


def adapted(model):
    for p in model.parameters():
        p.requires_grad_(False)
    every(lambda layer: setattr(layer, "second", Added(layer.second)))(model)


def replaced(model):
    torch.manual_seed(9)
    model.layers[2] = Block(7).double()


def appended(model):
    torch.manual_seed(9)
    model.layers.append(Block(7).double())


CHANGES_AFTER = {
    "an attribute": set_to("scale", 0.4),
    "a drop rate": set_to("drop", 0.5),
    "a tensor": set_to("slopes", torch.linspace(-1, 1, WIDTH, dtype=torch.float64)),
    "a rate of one": lambda model: setattr(model.layers[1], "drop", 0.6),
    "one in eval": lambda model: model.layers[1].eval(),
    "the first in eval": lambda model: model.layers[0].eval(),
    "a child in eval": lambda model: model.layers[2].dropout.eval(),
    "all in eval": lambda model: model.eval(),
    "the last one gone": lambda model: model.layers.__delitem__(3),
    "the first one gone": lambda model: model.layers.__delitem__(0),
    "a slice": lambda model: setattr(model, "layers", model.layers[1:3]),
    "turned round": lambda model: setattr(model, "layers", nn.ModuleList(list(model.layers)[::-1])),
    "another one": replaced,
    "one more": appended,
    "some frozen": lambda model: [p.requires_grad_(False) for p in model.layers[:2].parameters()],
    "low rank": adapted,
    "weight norm": every(lambda layer: nn.utils.parametrizations.weight_norm(layer.first)),
    "pruned": every(lambda layer: prune.l1_unstructured(layer.first, "weight", 0.5)),
    "its forward": lambda model: setattr(model.layers[2], "forward", lambda x: x.sin() + x),
    "a child's forward": lambda model: setattr(model.layers[2].first, "forward", lambda x: x.sin()),
    "its class's forward": lambda model: None,
    "no second branch": every(lambda layer: setattr(layer, "second", nn.Identity())),
    "loaded": lambda model: model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()}),
    "assigned": lambda model: model.load_state_dict({k: 1.1 * v for k, v in model.state_dict().items()}, assign=True),
}


# each change by one method, and each method with a third of them: what runs layers again is the same code
TURNS = [(name, [*TOLERANCES][n % 3]) for n, name in enumerate(CHANGES_AFTER)]


@pytest.mark.parametrize(("name", "gradient"), quick(list(itertools.product(CHANGES_AFTER, TOLERANCES)), TURNS))
def test_a_change_after_the_conversion(name, gradient):
    change = CHANGES_AFTER[name]
    plain, converted, x = pair(gradient)
    use = lambda model, x: model(x).square().sum()  # noqa: E731
    for before in (True, False):  # it was trained, or not
        for model in (plain, converted):
            if not before:
                change(model)
            model.zero_grad()
        require_alike(outcome(plain, x, use), outcome(converted, x, use), TOLERANCES[gradient])


@METHODS
def test_a_layer_that_becomes_no_residual_one(gradient):
    """Without its addition it cannot be undone; the certificate says so."""
    plain, converted, x = pair(gradient)
    for model in (plain, converted):
        model.layers[1].register_forward_hook(lambda module, inputs, output: torch.relu(output))
    use = lambda model, x: model(x).square().sum()  # noqa: E731
    require_alike(outcome(plain, x, use), outcome(converted, x, use), TOLERANCES[gradient])


# ---- what is let go, and what is refused


@METHODS
def test_nothing_is_kept_when_a_graph_is_let_go(gradient):
    _, model, x = pair(gradient)
    gc.collect()
    gc.disable()
    try:
        found = states(model, x.requires_grad_())
        value = sum(state.square().sum() for state in found)
        kept = [weakref.ref(state) for state in found[1:]]
        nodes = [weakref.ref(state.grad_fn.link) for state in found[1:] if hasattr(state.grad_fn, "link")]
        del found
        value.backward()
        del value
        for layer in model.layers:
            layer.auxiliary = None  # whose graph is the layer's own
        assert not any(reference() is not None for reference in (*kept, *nodes))
    finally:
        gc.enable()


def test_a_second_way_back_is_refused_as_torch_does():
    _, model, x = pair("discrete-adjoint")
    value = model(x).square().sum()
    value.backward()
    with pytest.raises(RuntimeError):
        value.backward()


def test_a_second_derivative_is_refused_or_right():
    plain, model, x = pair("discrete-adjoint")
    with pytest.raises(UnsupportedError, match="second derivative through gradient='discrete-adjoint'"):
        torch.autograd.grad(model(x.requires_grad_()).sum(), x, create_graph=True)
    _, model, _ = pair("checkpoint")
    second = []
    for each in (plain.eval(), model.eval()):
        (first,) = torch.autograd.grad(each(x).square().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*second)


def test_a_state_that_is_written_on_between_is_refused():
    _, model, x = pair("discrete-adjoint")
    y = model.layers[0](x)
    z = model.layers[1](y.mul_(2))
    with pytest.raises(GradientError, match=r"a state between two converted layers.*inplace"):
        z.sum().backward()
    y = model.layers[0](x)
    z = model.layers[1](y).sum()
    with torch.no_grad():
        y.mul_(2)
    z.backward()  # rebuilt from the states after it


def test_a_state_that_is_written_on_between_is_right_under_checkpoint():
    plain, model, x = pair("checkpoint")
    use = lambda model, x: model.layers[1](model.layers[0](x).mul_(2)).square().sum()  # noqa: E731
    require_alike(outcome(plain, x, use), outcome(model, x, use), 1e-12)


class Reading(Block):
    """Reads a tensor that the model sets."""

    def forward(self, x, condition=None):
        return super().forward(x) * 1 + torch.zeros_like(x) * self.read.sum() if condition else x + self.read.sin()


def reading(gradient):
    torch.manual_seed(0)
    plain = Model().double()
    plain.layers = nn.ModuleList(Reading(n).double() for n in range(3))
    for layer in plain.layers:
        layer.read = torch.ones((), dtype=torch.float64)
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    return plain, convert(copy.deepcopy(plain), example=x, gradient=gradient), x


def computed(model, x):
    for layer in model.layers:
        layer.read = x.mean() * 2
    return model(x).square().sum()


def test_a_tensor_that_a_layer_reads_by_the_side():
    plain, model, x = reading("checkpoint")
    require_alike(outcome(plain, x, computed), outcome(model, x, computed), 1e-12)
    plain, model, x = reading("discrete-adjoint:iterations=40")
    with pytest.raises(ConversionError, match=r"Reading \(.*\) reads a tensor that was computed.*'checkpoint'"):
        outcome(model, x, computed)
    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = []
    for each in (plain, model):
        for layer in each.layers:
            layer.read = leaf
        found.append(torch.autograd.grad(each(x).square().sum(), leaf)[0])
    torch.testing.assert_close(*found)


@METHODS
def test_a_written_input_is_refused(gradient):
    class Writing(Block):
        def forward(self, x):
            return super().forward(x.mul_(1.01) if self.tail else x)

    torch.manual_seed(0)
    model = nn.Sequential(*(Writing(n).double() for n in range(3)))
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    convert(model, example=x, gradient=gradient)
    for layer in model:
        layer.tail = True
    with pytest.raises(InputError, match="Writing changes its input in place"):
        model(x.clone())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@METHODS
def test_forward_differentiation_needs_no_memory_and_works(gradient):
    plain, model, x = pair(gradient)
    tangents = [torch.func.jvp(each.eval(), (x,), (torch.ones_like(x),))[1] for each in (plain, model)]
    torch.testing.assert_close(*tangents)
    with pytest.raises(UnsupportedError, match=r"inside a transform of torch.func"):
        torch.func.grad(lambda x: model(x).sum())(x)


def test_the_method_of_a_run_may_be_changed():
    plain, model, x = pair("checkpoint")
    (run,) = {id(layer.odenet_run): layer.odenet_run for layer in model.layers}.values()
    use = lambda model, x: model(x).square().sum()  # noqa: E731
    for gradient in ("discrete-adjoint:iterations=40", "backprop", "checkpoint", "discrete-adjoint:anchors=1"):
        run.gradient = gradient
        model.zero_grad()
        plain.zero_grad()
        require_alike(outcome(plain, x, use), outcome(model, x, use), 1e-9)
        assert (run.certificate is not None) == gradient.startswith("discrete")
    with pytest.raises(UnsupportedError, match="gradient='continuous-adjoint' for converted layers"):
        run.gradient = "continuous-adjoint"


def test_layers_that_cannot_be_undone_keep_their_exact_method():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = convert(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), example=torch.randn(2, 4, 8))
    assert all(isinstance(layer, Attached) for layer in model.layers)
    with pytest.raises(ConversionError, match="is LayerNorm"):
        model.layers[0].odenet_run.gradient = "discrete-adjoint"


def test_layers_may_differentiate_with_torch_func():
    class Potential(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return x - 0.1 * torch.func.grad(lambda x: torch.tanh(self.inner(x)).square().sum())(x)

    torch.manual_seed(0)
    plain = nn.Sequential(*(Potential() for _ in range(3))).double()
    x = torch.randn(3, WIDTH, dtype=torch.float64)
    for gradient in ("checkpoint", "discrete-adjoint:iterations=40"):
        model = convert(copy.deepcopy(plain), example=x, gradient=gradient)
        for _ in range(2):
            plain.zero_grad()
            model.zero_grad()
            use = lambda model, x: model(x).square().sum()  # noqa: E731
            require_alike(outcome(plain, x, use), outcome(model, x, use), 1e-9)


def test_random_numbers_that_are_not_torch_s_are_refused():
    import random

    class Chance(Block):
        def forward(self, x):
            return x + random.random() * self.first(x)

    model = nn.Sequential(Chance(0), Chance(1)).double()
    with pytest.raises((GradientError, InputError), match="Python or NumPy"):
        convert(model, example=torch.randn(3, WIDTH, dtype=torch.float64))
    assert not any(isinstance(layer, Attached) for layer in model)
