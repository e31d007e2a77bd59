"""Language models of transformers, converted and used in ways that call layers otherwise: as before, or refused.

Against the plain model on the same weights, batch and random numbers, after several passes: the loss, and the gradient
within what the method promises, or with a warning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from judge import functional
from quick import quick
from torch import Tensor, nn

import odenet
from odenet_torch import convert

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of somebody else's code

METHODS = {"checkpoint": 1e-6, "checkpoint:bits=8": 0.1, "discrete-adjoint": 0.1, "auto": 1e-2}
IDS = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(3))
EXAMPLE = {"input_ids": IDS, "use_cache": False}


def llama() -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, **sizes))


def opt(layerdrop: float = 0.0) -> nn.Module:
    sizes = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = transformers.OPTConfig(
        vocab_size=40, max_position_embeddings=32, word_embed_proj_dim=16, layerdrop=layerdrop, **sizes
    )
    return transformers.OPTForCausalLM(config)


def plain(model: Any) -> Tensor:
    return functional(model(**EXAMPLE).logits)


def generated(model: Any, **options: Any) -> Tensor:
    tokens = model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, **options)
    return plain(model) + tokens.float().sum() / 100


def generated_in_inference_mode(model: Any) -> Tensor:
    model.eval()
    with torch.inference_mode():
        tokens = float(model.generate(IDS, max_new_tokens=5, num_beams=2, do_sample=False, pad_token_id=0).sum())
    model.train()
    return plain(model) + tokens / 100


def cached(model: Any) -> Tensor:
    """The loss reads the keys and values of all layers, too."""
    out = model(input_ids=IDS, use_cache=True)
    assert out.past_key_values.get_seq_length() == IDS.shape[1]
    kept = [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]
    return functional(out.logits) + sum(((tensor**2).mean() for tensor in kept), torch.zeros(()))


def in_chunks(model: Any) -> Tensor:
    """The second chunk attends to the first, whose keys and values have gradients."""
    first = model(input_ids=IDS[:, :5], use_cache=True)
    return functional(model(input_ids=IDS[:, 5:], past_key_values=first.past_key_values, use_cache=True).logits)


def stopped(model: Any) -> Tensor:
    """A hook on the third layer ends the forward pass; then one to the end."""
    states: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)
        raise StopIteration

    handle = model.model.layers[2].register_forward_hook(stop)
    with pytest.raises(StopIteration):
        model(**EXAMPLE)
    handle.remove()
    return functional(states[0]) + plain(model)


def parallel(model: Any) -> Tensor:
    return plain(nn.DataParallel(model))


def with_copies(model: Any) -> Tensor:
    copies = [copy.deepcopy(model).to(torch.bfloat16), copy.deepcopy(model).double()]
    with torch.no_grad():
        sums = [float(other(**EXAMPLE).logits.float().sum()) / 100 for other in copies]
    return plain(model) + sum(sums)


def tied(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.weight = model.model.layers[0].mlp.down_proj.weight


def shared(model: Any) -> None:
    model.model.layers[2] = model.model.layers[1]


def hooked(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)


USES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], Tensor], Callable[[Any], Any]]] = {
    "generate": (llama, generated, lambda model: None),
    "generate in inference mode": (llama, generated_in_inference_mode, lambda model: None),
    "a cache with gradients": (llama, cached, lambda model: None),
    "chunks": (llama, in_chunks, lambda model: None),
    "a pass that stops": (llama, stopped, lambda model: None),
    "LayerDrop": (lambda: opt(0.5), plain, lambda model: None),
    "LayerDrop set later": (opt, plain, lambda model: setattr(model.model.decoder, "layerdrop", 0.5)),
    "gradient_checkpointing_enable": (llama, plain, lambda model: model.gradient_checkpointing_enable()),
    "DataParallel": (llama, parallel, lambda model: None),
    "copies of other number types": (llama, with_copies, lambda model: None),
    "another number type": (llama, lambda model: plain(model).float(), lambda model: model.to(torch.bfloat16)),
    "weights tied later": (llama, plain, tied),
    "a layer shared later": (llama, plain, shared),
    "a hook inside a layer": (llama, plain, hooked),
}
FAST = [  # each kind of use, by methods that run layers again as they were and from what they returned
    ("generate in inference mode", "discrete-adjoint"),
    ("a cache with gradients", "checkpoint"),
    ("a cache with gradients", "discrete-adjoint"),
    ("LayerDrop set later", "checkpoint:bits=8"),
    ("a layer shared later", "checkpoint"),
    ("a layer shared later", "discrete-adjoint"),
]
CACHES = ("a cache with gradients", "chunks")


def last_gradient(model: nn.Module, use: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    loss = torch.zeros(())
    for seed in (1, 2, 3):
        model.zero_grad()
        torch.manual_seed(seed)
        loss = use(model)
        loss.backward()
    leaves = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return loss.detach(), torch.cat([g.double().flatten() for g in leaves])


CELLS = quick([(name, method) for name in USES for method in METHODS], FAST)


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_a_converted_model_is_used_as_the_plain_one(name: str, method: str) -> None:
    make, use, later = USES[name]
    torch.manual_seed(0)
    own = make().train()
    other = copy.deepcopy(own)
    later(own)
    loss, gradient = last_gradient(own, use)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        convert(other, example=EXAMPLE, gradient=method)
        later(other)
        if name in CACHES and method in ("checkpoint:bits=8", "discrete-adjoint"):
            with pytest.raises(odenet.ConversionError, match=r"LlamaDecoderLayer .*a DynamicCache.*may write to"):
                use(other)
            return
        found, found_gradient = last_gradient(other, use)
    assert (found - loss).abs() <= 1e-5 * loss.abs()
    alarmed = any(isinstance(warning.message, odenet.GradientWarning) for warning in said)
    assert alarmed or (found_gradient - gradient).norm() <= METHODS[method] * gradient.norm()
