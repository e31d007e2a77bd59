"""Models in the variants that people train: the gradient of the converted one is the plain one's, or it is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import convert

TOLERANCES = {"checkpoint": 1e-6, "discrete-adjoint:iterations=40": 1e-4, "checkpoint:bits=16": 1e-3}
METHODS = pytest.mark.parametrize("gradient", TOLERANCES)
WIDTH = 8


class Block(nn.Module):
    """A contractive pre-norm block, dropped for whole samples in training if asked."""

    def __init__(self, drop=0.0) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.drop = drop

    def forward(self, x):
        inner = 0.2 * self.second(torch.tanh(self.first(self.norm(x))))
        if self.training and self.drop:  # stochastic depth (Huang et al. 2016)
            keep = torch.rand(x.shape[0], *(1 for _ in x.shape[1:]), device=x.device) > self.drop
            inner = inner * keep / (1 - self.drop)
        return x + inner


class Image(nn.Module):
    """A block of channels_last images, with BatchNorm and a view that needs its strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).view(-1, WIDTH)  # an error where x is not channels_last
        return x + 0.05 * torch.tanh(self.norm(self.conv(x))) * pixels.mean().tanh()


class Text(nn.Module):
    """Word vectors that are the head's, too."""

    def __init__(self, layers) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(11, WIDTH), nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Recomputing(nn.Module):
    """The same layers twice, as in ALBERT and in recurrent depth."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x):
        for _ in range(2):
            for layer in self.layers:
                x = layer(x)
        return x


def tied(one, other):
    other.first.weight, other.second.bias = one.first.weight, one.second.bias
    return [one, other]


def stack(*blocks):
    return nn.Sequential(nn.Linear(5, WIDTH), *blocks, nn.Linear(WIDTH, 3))


def frozen():
    model = stack(*(Block() for _ in range(5)))
    for p in (*model[0].parameters(), *model[2].parameters(), model[3].first.weight):
        p.requires_grad_(False)
    return model


ROWS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12).view(2, 6) % 11
PICTURES = torch.randn(2, WIDTH, 6, 6, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)

MODELS = {
    "plain": lambda: (stack(*(Block() for _ in range(4))), ROWS),
    "tied weights of two blocks": lambda: (stack(*tied(Block(), Block()), Block(), *tied(Block(), Block())), ROWS),
    "one block four times": lambda: (stack(*[Block()] * 4), ROWS),
    "word vectors that are the head": lambda: (Text(Block() for _ in range(4)), IDS),
    "layers gone through twice": lambda: (Recomputing(), torch.randn(3, WIDTH)),
    "groups of blocks": lambda: (stack(*(nn.Sequential(Block(), Block()) for _ in range(3))), ROWS),
    "drop path": lambda: (stack(*(Block(drop) for drop in (0.0, 0.2, 0.4, 0.6))), ROWS),
    "partly frozen": lambda: (frozen(), ROWS),
    "channels last": lambda: (
        nn.Sequential(*(Image() for _ in range(4))).to(memory_format=torch.channels_last),
        PICTURES,
    ),
}


def made(name, gradient):
    torch.manual_seed(0)
    plain, x = MODELS[name]()
    plain.train()
    return plain, convert(copy.deepcopy(plain), example=x, gradient=gradient), x


def total(out):
    return (
        out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    ).mean() + 0.1 * out.square().mean()


def passed(model, x, passes=1, autocast=False, scale=1.0):
    """The gradients of parameters and of a real input, after some accumulated passes."""
    model.zero_grad()
    torch.manual_seed(3)
    inputs = x.clone().requires_grad_(x.is_floating_point())
    for _ in range(passes):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = total(model(inputs).float())
        (scale * loss).backward()
    return {name: p.grad for name, p in model.named_parameters()} | {"x": inputs.grad}


def require_near(found, expected, tolerance):
    """In the whole norm; and where there is no gradient, there is none."""
    assert {name for name, g in found.items() if g is None} == {name for name, g in expected.items() if g is None}
    pairs = [(found[name].double(), g.double()) for name, g in expected.items() if g is not None]
    off = sum(float((one - other).square().sum()) for one, other in pairs) ** 0.5
    assert off <= tolerance * sum(float(other.square().sum()) for _, other in pairs) ** 0.5, off


@METHODS
@pytest.mark.parametrize("name", MODELS)
def test_a_variant(name, gradient):
    plain, model, x = made(name, gradient)
    for passes in (1, 3):
        require_near(passed(model, x, passes), passed(plain, x, passes), TOLERANCES[gradient])
    for (key, one), (_, other) in zip(plain.named_buffers(), model.named_buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=key)


@METHODS
@pytest.mark.parametrize("name", ["plain", "channels last", "drop path"])
def test_under_autocast(name, gradient):
    plain, model, x = made(name, gradient)
    scaled = passed(model, x, 2, autocast=True, scale=1024.0)
    require_near(scaled, passed(plain, x, 2, autocast=True, scale=1024.0), max(TOLERANCES[gradient], 1e-2))


@METHODS
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_weights_of_another_number_type(kind, gradient):
    torch.manual_seed(0)
    plain = stack(*(Block() for _ in range(4))).to(kind)
    x = ROWS.to(kind)
    model = convert(copy.deepcopy(plain), example=x, gradient=gradient)
    tolerance = 3e-2 if kind == torch.bfloat16 and "discrete" in gradient else TOLERANCES[gradient]
    require_near(passed(model, x), passed(plain, x), tolerance)


@METHODS
@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_a_model_that_is_compiled_as_a_whole(gradient):
    plain, model, x = made("plain", gradient)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        compiled.zero_grad()
        total(compiled(x)).backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        expected = passed(plain, x)
        expected.pop("x")
        require_near(found, expected, TOLERANCES[gradient])


@METHODS
def test_a_step_of_training_with_scaled_gradients_and_a_running_average(gradient):
    """Ten steps: the weights, and their average, stay together with those of the plain model."""
    plain, model, x = made("drop path", gradient)
    ends = []
    for each in (plain, model):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(each.parameters(), 1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        average = torch.optim.swa_utils.AveragedModel(each, use_buffers=True)
        for _ in range(10):
            optimizer.zero_grad()
            scaler.scale(total(each(x))).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(each.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            average.update_parameters(each)
        ends.append({**each.state_dict(), **average.module.state_dict(prefix="average.")})
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=2e-2, atol=2e-3, msg=name)


def test_rounded_states_take_layers_of_every_kind_and_what_they_return_beside_the_state():
    """Post-norm layers, which cannot be undone; a loss by the side; a state that is an argument, too."""

    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.gate, self.norm = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), nn.LayerNorm(WIDTH)

        def forward(self, x, first=None):
            logits = self.gate(x)
            state = self.norm(x + torch.tanh(self.linear(x)) * logits.softmax(-1)[..., :1])
            return (state if first is None else state + first.sin()), logits

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Router() for _ in range(4))

        def forward(self, x):
            first, logits = x.cos(), []
            for layer in self.layers[:3]:
                x, each = layer(x, first)
                logits.append(each)
            return torch.cat([x, *logits], -1)

    torch.manual_seed(0)
    plain, x = Whole(), torch.randn(5, WIDTH)
    for gradient in ("checkpoint:bits=8", "checkpoint:bits=16"):
        model = convert(copy.deepcopy(plain), example=x, gradient=gradient)
        run = model.layers[0].odenet_run
        run.gradient = f"{gradient}:tolerance=1e-9"
        with pytest.raises(odenet.GradientError, match=r"off by .* more than tolerance=1e-09"):
            model(x)
        run.gradient = gradient
        exact, found = passed(plain, x), passed(model, x)
        size = 20 * run.certificate
        require_near(found, exact, size)
        # both are of one size: what is measured for a cotangent of signs, and what it is for the loss's
        assert 0.2 < run.gradient_error / _off(found, exact) < 5
        assert 1e-6 < run.certificate < (1e-2 if "8" in gradient else 1e-4)


def _off(found, expected):
    pairs = [(found[name], g) for name, g in expected.items() if g is not None]
    defect = sum(float((one - other).square().sum()) for one, other in pairs)
    return (defect / sum(float(other.square().sum()) for _, other in pairs)) ** 0.5


def test_a_gradient_that_kinks_make_wrong_is_said_with_its_measured_number():
    """States are off by half a per cent, and which ReLU is open is not what it was: the gradient is off by far more."""

    class Kinks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(32, 64), nn.Linear(64, 32)
            self.norm = nn.LayerNorm(32)

        def forward(self, x):
            return torch.relu(self.norm(x + 2 * self.other(torch.relu(self.one(x)))))

    torch.manual_seed(0)
    plain, x = nn.Sequential(*(Kinks() for _ in range(16))), torch.randn(2, 32)
    model = convert(copy.deepcopy(plain), example=x, gradient="checkpoint:bits=8")
    with pytest.warns(odenet.GradientWarning, match="as measured on this batch") as record:
        found = passed(model, x)
    (warning,) = (each.message for each in record)
    off = _off(found, passed(plain, x))
    assert model[0].odenet_run.certificate < 0.02 < 0.1 < off
    assert 1 / 3 < warning.certificate / off < 3
    assert warning.gradient == "checkpoint:bits=8"
    assert warning.layer == "Kinks"
    assert warning.step in range(16)


def test_a_warning_is_read_by_its_attributes_and_is_copied_and_pickled_with_them():
    import pickle

    warning = odenet.UselessGradientWarning("text", certificate=0.7, gradient="discrete-adjoint", step=3, layer="Block")
    for twin in (copy.copy(warning), pickle.loads(pickle.dumps(warning))):
        assert str(twin) == "text"
        assert (twin.certificate, twin.gradient, twin.step, twin.layer) == (0.7, "discrete-adjoint", 3, "Block")
    assert odenet.GradientWarning("text").step is None


@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:bits=8", "discrete-adjoint"])
def test_an_empty_batch_has_gradients_of_zero(gradient):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + 0.1 * torch.tanh(self.linear(x))

    model = convert(nn.Sequential(Layer(), Layer()), example=torch.ones(2, 4), gradient=gradient)
    y = model(torch.zeros(0, 4))
    y.sum().backward()
    assert y.shape == (0, 4)
    assert all(not p.grad.any() for p in model.parameters())
