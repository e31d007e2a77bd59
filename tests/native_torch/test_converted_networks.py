"""Networks of transformers' and hand-written ones, converted: the gradient is within what the method promises, or the
conversion is refused; what they return beside the last state has its gradient; what wraps a model works on it.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
import transformers
from quick import quick
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import odenet
from odenet import ConversionError
from odenet_torch import convert
from odenet_torch.conversion.attached import Attached

transformers.logging.set_verbosity_error()
IDS = torch.arange(10).view(2, 5)
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {**SMALL, "vocab_size": 50, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": None}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def of(name, batch, **sizes):
    def make():
        model = getattr(transformers, name)
        return model(model.config_class(**sizes)), batch

    return make


def text(**more):
    return {"input_ids": IDS, "use_cache": False, **more}


class Bottleneck(nn.Module):
    """He et al. 2015: an activation after the addition, a projection where the shape changes."""

    def __init__(self, before, after) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, after, 3, padding=1)
        )
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x):
        return torch.relu(self.shortcut(x) + self.inner(x))


class Dense(nn.Module):
    """Huang et al. 2017: each layer reads all states before, which come in a list that grows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Concatenating(4 + 2 * n) for n in range(3))
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        states = [x]
        for layer in self.layers:
            states.append(layer(states))
        return self.head(torch.cat(states, 1))


class Concatenating(nn.Module):
    def __init__(self, width) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, states):
        return torch.tanh(self.inner(self.norm(torch.cat(states, 1))))


def residual_network():
    return nn.Sequential(*(Bottleneck(n, 8) for n in (3, 8, 8))), (IMAGES,)


NETWORKS = {
    "llama": (of("LlamaForCausalLM", text(), **TEXT), True),
    "mixtral": (
        of(
            "MixtralForCausalLM",
            text(labels=IDS, output_router_logits=True),
            **TEXT,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        True,
    ),
    "opt": (
        of(
            "OPTForCausalLM",
            text(),
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            ffn_dim=32,
            vocab_size=50,
            word_embed_proj_dim=16,
            max_position_embeddings=20,
        ),
        True,
    ),
    "mamba": (
        of("MambaForCausalLM", text(), hidden_size=16, num_hidden_layers=3, state_size=4, vocab_size=50),
        True,
    ),
    "roberta-prelayernorm": (
        of("RobertaPreLayerNormModel", {"input_ids": IDS}, **SMALL, vocab_size=50, max_position_embeddings=20),
        True,
    ),
    "swin": (
        of(
            "SwinModel",
            {"pixel_values": IMAGES},
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
        True,
    ),
    "bert": (of("BertModel", {"input_ids": IDS}, **SMALL, vocab_size=50, max_position_embeddings=20), False),
    "resnet": (residual_network, False),
    "densenet": (lambda: (Dense(), (torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),)), False),
}


def functional(out):
    """Of all tensors that have a gradient."""
    if isinstance(out, Tensor):
        if not (out.is_floating_point() and out.requires_grad):
            return 0
        return (torch.linspace(-1, 1, out.numel()).view(out.shape) * out).mean() + 0.1 * out.square().mean()
    return sum(map(functional, out.values() if isinstance(out, dict) else out)) if isinstance(out, dict | tuple) else 0


def gradient(model, batch):
    model.zero_grad()
    torch.manual_seed(1)
    value = functional(model(**batch) if isinstance(batch, dict) else model(*batch))
    value.backward()
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return value.detach(), torch.cat([part.flatten() for part in parts])


def made(make, method):
    torch.manual_seed(0)
    model, batch = make()
    return model.train(), convert(copy.deepcopy(model), example=batch, gradient=method), batch


def off(one, other):
    return float((one - other).norm() / other.norm())


# those of the others that are left are language models of layers like these, and in the tests below
@pytest.mark.parametrize("name", quick(NETWORKS, ["mixtral", "mamba", "swin", "bert", "resnet", "densenet"]))
def test_checkpoint_takes_layers_of_every_kind(name):
    plain, model, batch = made(NETWORKS[name][0], "checkpoint")
    (value, expected), (again, found) = gradient(plain, batch), gradient(model, batch)
    assert torch.equal(value, again)
    assert off(found, expected) < 1e-6
    assert sum(isinstance(layer, Attached) for layer in model.modules()) >= 3
    for one, other in zip(plain.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "name",
    quick(NETWORKS, ["mixtral", "mamba", "roberta-prelayernorm", "swin", "bert", "resnet", "densenet"]),
)
def test_the_discrete_adjoint_takes_residual_layers_and_no_others(name):
    make, residual = NETWORKS[name]
    if not residual:
        with pytest.raises(ConversionError, match="no two residual layers in a row"):
            made(make, "discrete-adjoint")
        return
    plain, model, batch = made(make, "discrete-adjoint:iterations=12")
    for _ in range(2):
        (value, expected), (again, found) = gradient(plain, batch), gradient(model, batch)
        assert torch.equal(value, again)
        # a token that lies between two experts may be rebuilt on the other one's side
        assert off(found, expected) < (1e-2 if name == "mixtral" else 1e-3)


EXACT, ADJOINT = "checkpoint", "discrete-adjoint:iterations=12"
METHODS = pytest.mark.parametrize("method", [EXACT, ADJOINT])
# where the second does all that the first does, and more
ADJOINT_FIRST = pytest.mark.parametrize("method", quick([EXACT, ADJOINT], [ADJOINT]))
QUIETLY = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it


@ADJOINT_FIRST
def test_what_a_language_model_returns_beside_its_logits(method):
    """Hidden states, attentions and router logits, each once a layer and with its gradient; and it can be converted
    when it was called so before."""
    torch.manual_seed(0)
    make, _ = NETWORKS["mixtral"]
    plain, batch = make()
    plain.config._attn_implementation = "eager"
    batch = batch | {"output_hidden_states": True, "output_attentions": True}
    plain(**batch)
    model = convert(copy.deepcopy(plain), example=batch, gradient=method)
    for _ in range(2):
        one, other = plain(**batch), model(**batch)
        assert [len(other[key]) for key in ("hidden_states", "attentions", "router_logits")] == [4, 3, 3]
        assert torch.equal(one.aux_loss, other.aux_loss)
        for key in ("hidden_states", "attentions", "router_logits"):
            for a, b in zip(one[key], other[key], strict=True):
                assert torch.equal(a, b)
                assert b.requires_grad
        (_, expected), (_, found) = gradient(plain, batch), gradient(model, batch)
        assert off(found, expected) < (1e-6 if method == "checkpoint" else 1e-2)


@ADJOINT_FIRST
def test_undoing_the_conversion(method):
    plain, model, batch = made(NETWORKS["llama"][0], method)
    kinds, attributes = [type(m) for m in plain.modules()], [set(vars(m)) for m in plain.modules()]
    names = list(dict(model.named_parameters()))
    for each in (plain, model):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        gradient(each, batch)
        optimizer.step()
    parameters = list(model.parameters())
    assert odenet.unconvert(model) is model
    assert [type(m) for m in model.modules()] == kinds
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert list(dict(model.named_parameters())) == names == list(plain.state_dict())[: len(names)]
    assert off(gradient(model, batch)[1], gradient(plain, batch)[1]) < 1e-3
    convert(model, example=batch, gradient=method)  # and back again
    assert off(gradient(model, batch)[1], gradient(plain, batch)[1]) < 1e-3


def test_undoing_the_conversion_for_another_solver():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    plain, x = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(2, 4, 8)
    model = convert(copy.deepcopy(plain), example=x, solver="heun")
    model.eval()
    odenet.unconvert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert not any(m.training for m in model.modules())
    assert torch.equal(model(x), plain.eval()(x))
    assert odenet.unconvert(model) is model


@pytest.mark.parametrize("method", quick([EXACT, ADJOINT], [EXACT]))  # files of the other: test_convert has them
def test_copies_averages_and_files(method):
    plain, model, batch = made(NETWORKS["llama"][0], method)
    gradient(model, batch)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    (_, expected) = gradient(plain, batch)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False), average.module):
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
        assert all(isinstance(layer, Attached) for layer in twin.model.layers)
        assert twin.model.layers[0].odenet_run is twin.model.layers[2].odenet_run
        assert off(gradient(twin, batch)[1], expected) < 1e-4
    alone = copy.deepcopy(model.model.layers[1])
    assert isinstance(alone, Attached)
    plain.load_state_dict(model.state_dict())
    model.load_state_dict(plain.state_dict())


@ADJOINT_FIRST
def test_mixed_precision(method):
    plain, model, batch = made(NETWORKS["llama"][0], method)
    found = []
    for each in (plain, model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            each.zero_grad()
            value = functional(each(**batch))
        value.backward()
        found.append(torch.cat([p.grad.flatten() for p in each.parameters()]))
    assert off(found[1], found[0]) < 0.02
    assert not torch.equal(found[0], gradient(plain, batch)[1])


@METHODS
def test_a_hidden_state_that_a_generation_reads(method):
    plain, model, _ = made(NETWORKS["llama"][0], method)
    words = [each.eval().generate(IDS, max_new_tokens=4, do_sample=False) for each in (plain, model)]
    assert torch.equal(*words)


@METHODS
@QUIETLY
def test_torch_compile_breaks_its_graph_around_converted_layers(method):
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 8, 0.0, norm_first=True) for _ in range(2))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    plain, x = Small(), torch.randn(4, 2, 8)
    model = convert(copy.deepcopy(plain), example=x, gradient=method)
    compiled = torch.compile(model, backend="eager")
    for each, parameters in ((plain, plain), (compiled, model)):
        parameters.zero_grad()
        each(x).square().sum().backward()
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x))


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("name", ["llama", "mixtral"])
@QUIETLY
def test_torch_compile_of_a_language_model(name, method):
    plain, model, batch = made(NETWORKS[name][0], method)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        (_, expected), (_, found) = gradient(plain, batch), gradient(eager, batch)
        model.zero_grad()
        functional(compiled(**batch)).backward()
        again = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
        torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-7)  # the graph breaks around converted layers
        # a token between two experts, whose choice is a jump of the layer, may be rebuilt on the other side of it:
        # that the certificate knows
        known = 0.0 if method == "checkpoint" else eager.model.layers[0].odenet_run.certificate
        assert known < (0.05 if name == "mixtral" else 1e-3)
        assert off(again, expected) < 1e-5 + known


def test_a_converted_model_in_data_parallel_training(tmp_path):
    plain, model, batch = made(NETWORKS["llama"][0], "discrete-adjoint:iterations=12")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        assert off(gradient(parallel, batch)[1], gradient(plain, batch)[1]) < 1e-4
    finally:
        torch.distributed.destroy_process_group()


def test_hooks_inside_of_layers_whose_pass_keeps_no_graph_are_refused():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 4, 8)
    convert(model, example=x, solver="heun", gradient="discrete-adjoint")
    model(x).sum().backward()
    model.layers[1].linear1.register_forward_hook(lambda *_: None)
    with pytest.raises(ConversionError, match=r"forward hooks on linear1 of a converted TransformerEncoderLayer"):
        model(x)
    with torch.no_grad():
        model(x)


def test_a_run_s_certificate_is_said_once_with_the_layer_and_by_every_pass_where_the_gradient_is_useless():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    plain, x = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), torch.randn(2, 5, 16)
    for p in plain.parameters():
        p.data.mul_(2)
    model = convert(plain, example=x, gradient="discrete-adjoint")
    where = r"through 8 steps of euler is .*in step \d of 8, TransformerEncoderLayer"
    for _ in range(2):
        with pytest.warns(odenet.UselessGradientWarning, match=where) as record:
            model(x).square().sum().backward()
        assert len(record) == 1
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.05)
    model(x).square().sum().backward()  # nothing to say
    assert model.layers[0].odenet_run.certificate < 0.1
