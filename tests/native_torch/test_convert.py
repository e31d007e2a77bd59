"""Models that others wrote, converted: the same function and gradient, the same parameters; or a reason why not."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
import transformers
from quick import quick
from torch import Tensor, nn

from odenet import InputError, UnsupportedError
from odenet_torch.conversion.attached import Attached
from odenet_torch.conversion.convert import convert
from odenet_torch.conversion.converted import FirstOfRun
from odenet_torch.verbs.measure import LiveBytes

transformers.logging.set_verbosity_error()
WIDTH = 8
MASK = torch.tensor([1.0, 0.0, 0.5, 1.0])


class PreActivation(nn.Module):
    """The block of He et al. 2016, "Identity mappings in deep residual networks"."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
        self.conv1, self.conv2 = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x):
        out = self.conv1(torch.relu(self.norm1(x)))
        return x + self.conv2(torch.relu(self.norm2(out)))


class PostActivation(PreActivation):
    """He et al. 2015: a ReLU after the addition."""

    def forward(self, x):
        return torch.relu(super().forward(x))


def resnet():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 1), *(PreActivation() for _ in range(3)), nn.AvgPool2d(4)), image(8)


def encoder(norm_first=True):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), (torch.randn(2, 5, 16),)


def bit(layer_type="preactivation"):
    config = transformers.BitConfig(
        embedding_size=8, hidden_sizes=[16, 16], depths=[3, 4], num_groups=4, layer_type=layer_type, drop_path_rate=0.1
    )
    return transformers.BitModel(config), image(32)


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    return transformers.ViTModel(config), image(16)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=None
    )
    ids = torch.arange(10).view(2, 5)
    return transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids, "use_cache": False}


def image(size):
    return (torch.randn(2, 3, size, size),)


STEPS = {resnet: [3], encoder: [6], bit: [2, 3], vit: [6], gpt2: [6]}  # two branches of a transformer layer: two steps
MODELS = pytest.mark.parametrize("make", STEPS, ids=lambda make: make.__name__)
SOME = pytest.mark.parametrize("make", quick(STEPS, [resnet, gpt2]), ids=lambda make: make.__name__)


def made(make, dtype=torch.float32, **choices):
    """A model, a converted copy, and an example."""
    torch.manual_seed(0)
    model, example = make()
    model, example = model.to(dtype), cast(example, dtype)
    return model, convert(copy.deepcopy(model), example=example, **choices), example


def cast(example, dtype):
    if isinstance(example, dict):
        return example
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in example)


def call(model, example):
    """All tensors of the output, with the same random numbers every time."""
    torch.manual_seed(1)
    out = model(**example) if isinstance(example, dict) else model(*example)
    return [t for t in (out.values() if isinstance(out, dict) else [out]) if isinstance(t, Tensor)]


def gradients(model, example):
    """Of the sum of squares of all outputs, by parameter; zero where there is none."""
    model.zero_grad()
    sum(t.square().sum() for t in call(model, example)).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def off(found, expected):
    """The relative difference of gradients."""
    square = sum((found[name] - expected[name]).square().sum() for name in expected)
    return float((square / sum(g.square().sum() for g in expected.values())).sqrt())


def runs(model):
    """Those of the layers that can be undone."""
    found = {id(module.odenet_run): module.odenet_run for module in model.modules() if isinstance(module, Attached)}
    return [run for run in found.values() if run.why is None]


def stacks(model):
    return [module.stack for module in model.modules() if isinstance(module, FirstOfRun)]


@MODELS
def test_the_forward_is_the_model_s_own(make):
    model, converted, example = made(make)
    assert [run.steps for run in runs(converted)] == STEPS[make]
    for training in (False, True):
        for recorded in (False, True):
            with torch.set_grad_enabled(recorded):
                pairs = zip(call(model.train(training), example), call(converted.train(training), example), strict=True)
                for expected, found in pairs:
                    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    for one, other in zip(model.buffers(), converted.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("make", "training", "gradient"),
    quick(
        list(itertools.product(STEPS, (False, True), ("backprop", "checkpoint"))),
        [
            (resnet, True, "checkpoint"),
            (encoder, True, "backprop"),
            (bit, True, "checkpoint"),
            (vit, False, "backprop"),
            (gpt2, False, "checkpoint"),
        ],
    ),
)
def test_exact_gradients_are_the_model_s_own(make, training, gradient):
    model, converted, example = made(make, torch.float64, gradient=gradient)
    expected = gradients(model.train(training), example)
    assert off(gradients(converted.train(training), example), expected) < 1e-12
    for one, other in zip(model.buffers(), converted.buffers(), strict=True):  # a batch is counted once
        torch.testing.assert_close(one, other)


# those of transformers, of which a conversion takes long, are held to more in test_converted_networks
@pytest.mark.parametrize("make", quick(STEPS, [resnet, encoder, bit]), ids=lambda make: make.__name__)
def test_the_adjoint_of_contractive_layers_comes_close_and_its_certificate_says_how_close(make):
    torch.manual_seed(0)
    model, example = make()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("conv2.weight", "linear2.weight", "out_proj.weight", "norm3.weight")):
                p.mul_(0.1)
    model, example = model.double().eval(), cast(example, torch.float64)
    expected = gradients(model, example)
    errors = []
    for iterations in (1, 4, 30):
        choice = f"discrete-adjoint:iterations={iterations}"
        converted = convert(copy.deepcopy(model), example=example, gradient=choice)
        errors.append(off(gradients(converted, example), expected))
        assert errors[-1] < 10 * max(run.certificate for run in runs(converted)) + 1e-13
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 1e-10


@SOME
def test_parameters_are_the_same_objects_under_the_same_names(make):
    torch.manual_seed(0)
    model, example = make()
    before = dict(model.named_parameters())
    keys, modes = list(model.state_dict()), [module.training for module in model.modules()]
    plain = copy.deepcopy(model)
    assert convert(model, example=example) is model
    assert list(before) == [name for name, _ in model.named_parameters()]
    assert all(before[name] is p for name, p in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert [module.training for module in model.modules()] == modes
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    plain.load_state_dict(model.state_dict())
    for one, other in zip(call(plain.eval(), example), call(model.eval(), example), strict=True):
        torch.testing.assert_close(one, other)
    model.load_state_dict(plain.state_dict())


@SOME
def test_copies_and_pickles_are_models_of_their_own(make):
    model, converted, example = made(make, gradient="checkpoint")
    file = io.BytesIO()
    torch.save(converted, file)
    file.seek(0)
    model.eval()
    for twin in (copy.deepcopy(converted), torch.load(file, weights_only=False)):
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in converted.parameters()}
        with torch.no_grad():
            for p in twin.parameters():
                p.mul_(1.5)
        for one, other in zip(call(converted.eval(), example), call(model, example), strict=True):
            torch.testing.assert_close(one, other)
        assert not torch.equal(call(twin.eval(), example)[0], call(model, example)[0])


def test_nothing_is_stored_for_the_layers():
    """What is alive when the forward pass has ended does not grow with depth."""
    kept = {}
    for gradient in ("backprop", "discrete-adjoint"):
        for layers in (2, 8):
            blocks = nn.Sequential(*(PreActivation() for _ in range(layers)))
            x = torch.randn(8, WIDTH, 16, 16)
            convert(blocks, example=x, gradient=gradient)
            with LiveBytes() as memory:
                y = blocks(x)
            kept[gradient, layers] = memory.live
            y.sum().backward()
    assert kept["backprop", 8] > 3 * kept["backprop", 2]
    assert kept["discrete-adjoint", 8] < 1.1 * kept["discrete-adjoint", 2]


# ---- arguments beside the state


def test_masks_go_to_every_layer():
    model, converted, (x,) = made(encoder, gradient="checkpoint")
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    padding = torch.tensor([[0.0] * 5, [0.0] * 3 + [float("-inf")] * 2])
    for training in (False, True):  # they were not in the example
        arguments = {"src": x, "mask": mask, "src_key_padding_mask": padding}
        (expected,), (found,) = (call(m.train(training), arguments) for m in (model, converted))
        torch.testing.assert_close(found, expected)
        assert not torch.equal(found, call(model, (x,))[0])


def test_an_argument_that_needs_a_gradient_gets_it():
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True, norm_first=True, dtype=torch.float64)
    model = nn.TransformerDecoder(layer, 2)
    x, memory = (torch.randn(2, n, 16, dtype=torch.float64) for n in (5, 4))
    converted = convert(copy.deepcopy(model), example=(x, memory), gradient="checkpoint")
    assert [run.steps for run in runs(converted)] == [6]
    found = []
    for each in (model, converted):
        (out,) = call(each, (x, memory.requires_grad_()))
        found.append(torch.autograd.grad(out.square().sum(), memory)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


def test_a_cache_works_where_layers_run_once_and_is_refused_elsewhere():
    model, converted, example = made(gpt2, gradient="checkpoint:bits=16")
    ids = example["input_ids"]
    with torch.no_grad():
        words = [m.eval().generate(ids, max_new_tokens=4, do_sample=False) for m in (model, converted)]
    assert torch.equal(*words)
    with pytest.raises(InputError, match=r"called with a DynamicCache, which it may write to.*use_cache=False"):
        converted.train()(ids)


# ---- layers of all kinds


class Layer(nn.Module):
    """What the layers below are made of; `inner` is their forward, `call` calls layer i of a model."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner
        self.norm, self.linear, self.other = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale, self.shortcut, self.calls = nn.Parameter(torch.full((4,), 0.5)), nn.Identity(), 0

    def forward(self, x, mask=None):
        return self.inner(self, x, mask)

    def f(self, x):
        return self.linear(self.norm(x))


class Loop(nn.Module):
    def __init__(self, *inner, call=lambda i, layer, x: layer(x)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(each) for each in inner)
        self.call = call

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = self.call(i, layer, x)
        return x


def scaled(layer, x, mask):
    return layer.shortcut(x) + layer.scale * layer.f(x)


def parallel(layer, x, mask):
    return layer.f(x) + (layer.other(x) + x)


def added_in_place(layer, x, mask):
    out = layer.f(x)
    out += x
    return out


def masked(layer, x, mask):
    out = layer.f(x)
    return x + (out * mask if isinstance(mask, Tensor) else out)


def of_shape(layer, x, mask):
    rows, columns = x.shape
    return x + layer.f(x).view(rows, columns)


def two_branches(layer, x, mask):
    x = x + layer.f(x)
    return torch.add(x, layer.other(x))


def decided_by_data(layer, x, mask):
    assert x.abs().max() > 0
    x = x + layer.f(x)
    return x + layer.other(x)


def by_chance(layer, x, mask):
    return x + layer.f(x) if not layer.training or torch.rand(()) < 0.5 else x


def counted(layer, x, mask):
    layer.calls += 1
    out = layer.f(x)
    out += x
    return out


@pytest.mark.parametrize(
    ("inner", "steps"),
    [
        (scaled, 2),
        (parallel, 2),
        (added_in_place, 2),
        (masked, 2),
        (of_shape, 2),
        (two_branches, 4),
        (decided_by_data, 2),  # cannot be traced: one branch a layer
        (by_chance, 2),
        (counted, 2),
    ],
)
def test_a_layer_is_taken_as_it_is_written(inner, steps):
    torch.manual_seed(0)
    model = Loop(inner, inner).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    converted = convert(copy.deepcopy(model), example=x, gradient="checkpoint")
    assert [run.steps for run in runs(converted)] == [steps]
    for _ in range(3):
        expected = gradients(model, (x,))
        assert off(gradients(converted, (x,)), expected) < 1e-12
        torch.testing.assert_close(call(converted, (x,)), call(model, (x,)), rtol=1e-12, atol=1e-12)


def test_a_layer_may_return_a_tuple_and_take_its_state_by_name():
    torch.manual_seed(0)
    inner = lambda layer, x, mask: (x + mask * layer.f(x), None)  # noqa: E731
    model = Loop(inner, inner, call=lambda i, layer, x: layer(mask=MASK, x=x)[0])
    x = torch.randn(3, 4)
    expected = model(x)
    torch.testing.assert_close(convert(model, example=x)(x), expected)
    assert model.layers[0](mask=MASK, x=x)[1] is None


def test_runs_end_where_the_model_does_something_else():
    torch.manual_seed(0)
    model = Loop(*5 * [scaled], call=lambda i, layer, x: layer(x * 1.5 if i == 2 else x))
    x = torch.randn(3, 4)
    expected = model(x)
    assert [run.steps for run in runs(convert(model, example=x))] == [2, 3]
    torch.testing.assert_close(model(x), expected)


def test_only_the_named_part_is_converted():
    torch.manual_seed(0)
    model, example = bit()
    convert(model, "encoder.stages.1", example=example)
    assert [run.steps for run in runs(model)] == [3]
    assert isinstance(model.encoder.stages[1].layers[1], Attached)
    assert not isinstance(model.encoder.stages[0].layers[1], Attached)


def test_a_tied_layer_gets_the_sum_of_its_gradients():
    torch.manual_seed(0)
    one, other = Layer(scaled).double(), Layer(scaled).double()
    model = nn.Sequential(one, other, one)
    x = torch.randn(3, 4, dtype=torch.float64)
    expected = gradients(copy.deepcopy(model), (x,))
    assert off(gradients(convert(model, example=x, gradient="checkpoint"), (x,)), expected) < 1e-12


def test_a_child_that_is_replaced_afterwards_is_used():
    model, converted, example = made(vit, torch.float64, gradient="checkpoint")
    for each in (model, converted):
        torch.manual_seed(7)
        each.layers[1].mlp = nn.Sequential(each.layers[1].mlp, nn.Linear(16, 16, dtype=torch.float64))
    expected, found = (gradients(each, example) for each in (model, converted))
    assert found["layers.1.mlp.1.weight"].abs().max() > 0
    assert off(found, expected) < 1e-12


def test_another_solver_makes_another_network():
    torch.manual_seed(0)
    model = Loop(*3 * [scaled])
    x = torch.randn(3, 4)
    converted = convert(copy.deepcopy(model), example=x, solver="heun")
    f = [lambda x, layer=layer: layer.scale * layer.f(x) for layer in model.layers]
    y = x
    for each in f:
        first = each(y)
        y = y + (first + each(y + first)) / 2
    torch.testing.assert_close(converted(x), y)
    assert stacks(converted)[0].stats.f_evaluations == 6


# ---- refusals: a reason, and the model as it was


def refused(model, example, match, error=InputError, **choices):
    kinds = [type(module) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    with pytest.raises(error, match=match):
        convert(model, example=example, **choices)
    assert [type(module) for module in model.modules()] == kinds
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: (nn.Sequential(*(PostActivation() for _ in range(2))), torch.randn(2, WIDTH, 8, 8)), "is relu, not"),
        (lambda: encoder(norm_first=False), r"is LayerNorm \(norm2\), not the addition.*pre-norm layer"),
        (lambda: bit("bottleneck"), r"does is ReLU \(activation\), not the addition"),
    ],
    ids=["resnet", "encoder", "bit"],
)
def test_something_after_the_addition_is_refused(make, reason):
    torch.manual_seed(0)
    model, example = make()
    refused(model, example, reason, gradient="discrete-adjoint")


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (
            lambda layer, x, mask: layer.other(x) + layer.f(x),
            r"adds Linear \(other\) and Linear \(linear\), and neither",
        ),
        (lambda layer, x, mask: 0.5 * x + layer.f(x), "adds mul and Linear .* and neither is its own input"),
        (
            lambda layer, x, mask: torch.add(x, layer.f(x), alpha=2),
            r"adding something else than a tensor, or a multiple.*cannot be undone by trying: after 20 .* off by",
        ),
        (lambda layer, x, mask: x + layer.f(F.relu(x, inplace=True)), "changes its input in place.*inplace=False"),
        (lambda layer, x, mask: F.relu(counted(layer, x, mask), inplace=True), "is relu, not an addition to its own"),
        (lambda layer, x, mask: (x + layer.f(x)).repeat(1, 2), r"from float32 \(3, 4\) to float32 \(3, 8\)"),
    ],
    ids=["projection", "scaled", "alpha", "in-place", "relu", "shape"],
)
def test_a_layer_that_is_no_residual_block_is_refused(inner, reason):
    torch.manual_seed(0)
    model = Loop(inner, inner, call=lambda i, layer, x: layer(x)[:, :4])
    refused(model, torch.ones(3, 4), reason, gradient="discrete-adjoint")


ADJOINT = {"gradient": "discrete-adjoint"}


def test_models_without_a_run_are_refused():
    x = torch.randn(3, 4)
    refused(Loop(scaled), x, r"no two residual layers in a row in the model \(no container of two layers\)", **ADJOINT)
    refused(nn.Sequential(Layer(scaled), nn.Linear(4, 4)), x, "0 is residual, and alone", **ADJOINT)
    refused(
        Loop(scaled, scaled), x, "where='layer3', which the model does not have.*containers are layers", where="layer3"
    )
    refused(Loop(scaled, scaled), [x], "an example that is a list.*a tensor, a tuple")
    refused(
        Loop(scaled, scaled), x, "gradient 'reversible' with solver 'euler'", UnsupportedError, gradient="reversible"
    )
    between = lambda i, layer, x: layer(x.mul_(1.5))  # noqa: E731
    refused(Loop(scaled, scaled, call=between), x, "layers.1 is residual, and alone", **ADJOINT)
    converted = convert(Loop(scaled, scaled), example=x)
    refused(converted, x, "layers.0 is converted already")
    refused(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), x, "no two layers of several operations each")
    refused(nn.Sequential(nn.Identity(), nn.Identity()), x, "no two layers of several operations each")


def test_models_without_a_run_for_another_solver_are_refused():
    x, heun = torch.randn(3, 4), {"solver": "heun"}
    twice = lambda i, layer, x: layer(layer(x))  # noqa: E731
    refused(Loop(scaled, scaled, call=twice), x, "is called 2 times on the example", **heun)
    other = lambda i, layer, x: layer(x, MASK + i)  # noqa: E731
    refused(Loop(masked, masked, call=other), x, "layers.1 is called with other arguments", **heun)
    between = lambda i, layer, x: layer(x.mul_(1.5))  # noqa: E731
    refused(
        Loop(scaled, scaled, call=between), x, "layers.1 gets another state than the layer before it returned", **heun
    )
    tail = lambda layer, x, mask: (x + layer.f(x), x.mean())  # noqa: E731
    refused(Loop(tail, tail, call=lambda i, layer, x: layer(x)[0]), x, "returns more than its state", **heun)
    hooked = Loop(scaled, scaled)
    for layer in hooked.layers:
        layer.register_forward_hook(lambda *_: None)
    refused(hooked, x, "Layer has hooks, which would not be called", **heun)


def test_a_difference_is_refused():
    """This model tells its layers by their class, which is another one."""
    model = Loop(scaled, scaled, call=lambda i, layer, x: layer(x) if i == 0 or type(layer) is Layer else layer(x) + 1)
    refused(model, torch.randn(3, 4), "the model in evaluation gives an output that is off by")


def test_calls_that_the_run_cannot_answer_are_refused():
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    model = convert(Loop(*3 * [masked]), example=x, solver="heun")
    with pytest.raises(InputError, match="layer 2 of a converted run of 3 Layer was called out of turn"):
        model.layers[2](model.layers[0](x))
    with pytest.raises(InputError, match="or with another state"):
        model.layers[1](x)
    model.call = lambda i, layer, x: layer(x * 1)
    with pytest.raises(InputError, match="or that does something between them"):
        model(x)
    model.call = lambda i, layer, x: layer(x, MASK)  # a trace takes the other way at isinstance(mask, Tensor)
    with pytest.raises(InputError, match="converted, 3 Layer gives an output that is off by"):
        model(x)


class Observing(nn.Module):
    """As of quantization-aware training: a buffer that is empty until the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("largest", torch.zeros(0))

    def forward(self, x):
        if self.training and not self.largest.numel():
            self.largest.resize_(x.shape[-1])
            self.largest.copy_(x.detach().abs().amax(0))
        return x + 0.1 * torch.tanh(self.inner(x))


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint:iterations=9"])
def test_layers_whose_observers_make_room_for_their_first_batch(gradient):
    torch.manual_seed(0)
    plain, x = nn.Sequential(Observing(), Observing()), torch.randn(4, WIDTH)
    model = convert(copy.deepcopy(plain), example=x, gradient=gradient)
    assert not any(layer.largest.numel() for layer in model)  # the example left nothing
    for one in (plain, model, plain, model):
        one.zero_grad()
        one(x).square().sum().backward()
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    assert torch.equal(model[1].largest, plain[1].largest)
