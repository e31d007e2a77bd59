"""Architectures that nobody here wrote, tiny, with random weights and a batch; each names the package that it is from.

A model's own configuration is used wherever there is one; only sizes are set. An entry is a function that returns the
model and what it is called with.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, ...] | dict[str, Any]
Maker = Callable[[], tuple[nn.Module, Batch]]

CATALOGUE: dict[str, Maker] = {}
PACKAGES: dict[str, str] = {}

WORDS = 40
SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def architecture(package: str, name: str) -> Callable[[Maker], Maker]:
    def add(maker: Maker) -> Maker:
        CATALOGUE[name], PACKAGES[name] = maker, package
        return maker

    return add


def images(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3))


def words(length: int = 8) -> Tensor:
    return torch.randint(0, WORDS, (2, length), generator=torch.Generator().manual_seed(3))


def from_transformers(name: str, model: str, batch: Callable[[], Batch], **sizes: Any) -> None:
    """A class of transformers, made from its own configuration."""

    def maker() -> tuple[nn.Module, Batch]:
        transformers = importlib.import_module("transformers")
        transformers.logging.set_verbosity_error()
        cls = getattr(transformers, model)
        return cls(cls.config_class(**sizes)), batch()

    architecture("transformers", name)(maker)


def text(**more: Any) -> Callable[[], Batch]:
    return lambda: {"input_ids": words(), **more}


def pixels(size: int = 32) -> Callable[[], Batch]:
    return lambda: {"pixel_values": images(size)}


def translated() -> Batch:
    return {"input_ids": words(), "decoder_input_ids": words(6), "use_cache": False}


UNCACHED: Mapping[str, Any] = {"use_cache": False}
ENDS: Mapping[str, Any] = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
LLAMA: Mapping[str, Any] = {**SMALL, "vocab_size": WORDS, "num_key_value_heads": 2, **ENDS}
BERT: Mapping[str, Any] = {**SMALL, "vocab_size": WORDS, "max_position_embeddings": 20}
IMAGE: Mapping[str, Any] = {**SMALL, "image_size": 32, "patch_size": 8}
STAGES: Mapping[str, Any] = {"depths": [2, 3], "hidden_sizes": [8, 16]}

from_transformers(
    "gpt2",
    "GPT2LMHeadModel",
    text(**UNCACHED),
    n_embd=16,
    n_layer=4,
    n_head=2,
    vocab_size=WORDS,
    n_positions=16,
    **ENDS,
)
from_transformers("llama", "LlamaForCausalLM", text(**UNCACHED), **LLAMA)
from_transformers("mistral", "MistralForCausalLM", text(**UNCACHED), **LLAMA)
from_transformers("qwen2", "Qwen2ForCausalLM", text(**UNCACHED), **LLAMA)
from_transformers("gemma2", "Gemma2ForCausalLM", text(**UNCACHED), **LLAMA, head_dim=8)
from_transformers("phi", "PhiForCausalLM", text(**UNCACHED), **LLAMA)
from_transformers("gpt-neox", "GPTNeoXForCausalLM", text(**UNCACHED), **SMALL, vocab_size=WORDS, **ENDS)
from_transformers(
    "mixtral",
    "MixtralForCausalLM",
    text(output_router_logits=True, **UNCACHED),
    **LLAMA,
    num_local_experts=4,
    num_experts_per_tok=2,
)
from_transformers(
    "opt",
    "OPTForCausalLM",
    text(**UNCACHED),
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=2,
    ffn_dim=32,
    vocab_size=WORDS,
    word_embed_proj_dim=16,
    max_position_embeddings=20,
    pad_token_id=1,
)
from_transformers(
    "bloom", "BloomForCausalLM", text(**UNCACHED), hidden_size=16, n_layer=4, n_head=2, vocab_size=WORDS, **ENDS
)
from_transformers(
    "mamba", "MambaForCausalLM", text(**UNCACHED), hidden_size=16, num_hidden_layers=4, state_size=4, vocab_size=WORDS
)
# later layers attend to the keys and values of earlier ones, which are handed on in a dict
from_transformers(
    "gemma4",
    "Gemma4ForCausalLM",
    text(**UNCACHED),
    **LLAMA,
    head_dim=8,
    global_head_dim=8,
    num_global_key_value_heads=2,
    hidden_size_per_layer_input=4,
    vocab_size_per_layer_input=WORDS,
    num_kv_shared_layers=2,
    layer_types=["sliding_attention", "full_attention"] * 2,
)
# always with a cache
from_transformers(
    "xlm", "XLMModel", text(), emb_dim=16, n_layers=4, n_heads=2, vocab_size=WORDS, max_position_embeddings=20
)
from_transformers("bert", "BertModel", text(), **BERT)
from_transformers("roberta-prelayernorm", "RobertaPreLayerNormModel", text(), **BERT)
from_transformers("electra", "ElectraModel", text(), **BERT, embedding_size=16)
from_transformers(
    "distilbert", "DistilBertModel", text(), dim=16, n_layers=4, n_heads=2, hidden_dim=32, vocab_size=WORDS
)
from_transformers(
    "t5",
    "T5ForConditionalGeneration",
    translated,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=3,
    num_heads=2,
    vocab_size=WORDS,
)
from_transformers(
    "bart",
    "BartForConditionalGeneration",
    translated,
    d_model=16,
    encoder_layers=3,
    decoder_layers=3,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    vocab_size=WORDS,
    max_position_embeddings=20,
)
from_transformers("vit", "ViTModel", pixels(), **IMAGE)
from_transformers("deit", "DeiTModel", pixels(), **IMAGE)
from_transformers("dinov2", "Dinov2Model", pixels(), **IMAGE)
from_transformers(
    "swin",
    "SwinModel",
    pixels(),
    image_size=32,
    patch_size=4,
    embed_dim=8,
    depths=[2, 2],
    num_heads=[2, 2],
    window_size=4,
)
from_transformers("convnext", "ConvNextModel", pixels(), num_stages=2, **STAGES)
from_transformers("convnextv2", "ConvNextV2Model", pixels(), num_stages=2, **STAGES)
from_transformers("resnet", "ResNetModel", pixels(), embedding_size=8, layer_type="basic", **STAGES)
from_transformers("regnet", "RegNetModel", pixels(), embedding_size=8, groups_width=8, **STAGES)
from_transformers("bit", "BitModel", pixels(), embedding_size=8, num_groups=4, **STAGES)
from_transformers(
    "whisper",
    "WhisperModel",
    lambda: {
        "input_features": torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(3)),
        "decoder_input_ids": words(6),
        "use_cache": False,
    },
    d_model=16,
    num_mel_bins=8,
    encoder_layers=3,
    decoder_layers=3,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=32,
    decoder_ffn_dim=32,
    vocab_size=WORDS,
    max_source_positions=10,
    max_target_positions=20,
    pad_token_id=0,
    bos_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=0,
)


def from_timm(name: str, model: str, size: int = 32, **sizes: Any) -> None:
    def maker() -> tuple[nn.Module, Batch]:
        return importlib.import_module("timm").create_model(model, num_classes=10, **sizes), (images(size),)

    architecture("timm", name)(maker)


TOKENS: Mapping[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
from_timm("timm-vit", "vit_tiny_patch16_224", **TOKENS)
from_timm("timm-deit3", "deit3_small_patch16_224", **TOKENS)
from_timm("timm-cait", "cait_xxs24_224", **TOKENS)
from_timm("timm-resnetv2-50", "resnetv2_50")
from_timm("timm-nfnet", "nf_resnet26")
from_timm("timm-mobilenetv3", "mobilenetv3_small_050")
from_timm("timm-xcit", "xcit_nano_12_p16_224", img_size=32, patch_size=8, embed_dim=16, depth=4, num_heads=2)


def from_class(name: str, where: str, model: str, batch: Callable[[], Tensor] = images, **sizes: Any) -> None:
    """A class of timm or torchvision, with sizes of our own."""

    def maker() -> tuple[nn.Module, Batch]:
        return getattr(importlib.import_module(where), model)(num_classes=10, **sizes), (batch(),)

    architecture(where.split(".")[0], name)(maker)


MIXER: Mapping[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_blocks": 4}
from_class("timm-mixer", "timm.models.mlp_mixer", "MlpMixer", **MIXER)
from_class("timm-convmixer", "timm.models.convmixer", "ConvMixer", dim=16, depth=4, patch_size=4)
from_class("timm-poolformer", "timm.models.metaformer", "MetaFormer", depths=(3, 3), dims=(8, 16))
from_class(
    "timm-davit", "timm.models.davit", "DaVit", depths=(2, 2), embed_dims=(8, 16), num_heads=(2, 2), window_size=4
)
from_class("timm-focalnet", "timm.models.focalnet", "FocalNet", depths=(2, 3), embed_dim=8)
from_class(
    "torchvision-densenet",
    "torchvision.models.densenet",
    "DenseNet",
    growth_rate=4,
    block_config=(3, 3),
    num_init_features=8,
)


@architecture("timm", "timm-crossvit")
def timm_crossvit() -> tuple[nn.Module, Batch]:
    """The state is a list of two."""
    from timm.models.crossvit import CrossVit

    depth = ((1, 3, 0), (1, 3, 0))
    model = CrossVit(
        48, (1.0, 1.0), (12, 16), num_classes=10, embed_dim=(8, 16), depth=depth, num_heads=(2, 2), mlp_ratio=(2, 2, 1)
    )
    return model, (images(48),)


def from_torchvision(name: str, model: str, size: int = 32, **sizes: Any) -> None:
    def maker() -> tuple[nn.Module, Batch]:
        return getattr(importlib.import_module("torchvision.models"), model)(num_classes=10, **sizes), (images(size),)

    architecture("torchvision", name)(maker)


from_torchvision("torchvision-resnet50", "resnet50")
from_torchvision("torchvision-mobilenet", "mobilenet_v2", width_mult=0.25)


@architecture("torchvision", "torchvision-vit")
def torchvision_vit() -> tuple[nn.Module, Batch]:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10), (images(),)


@architecture("torchvision", "torchvision-swin")
def torchvision_swin() -> tuple[nn.Module, Batch]:
    from torchvision.models import SwinTransformer

    model = SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=10, stochastic_depth_prob=0.1)
    return model, (images(),)


@architecture("torchvision", "torchvision-convnext")
def torchvision_convnext() -> tuple[nn.Module, Batch]:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, 3), CNBlockConfig(16, None, 3)], num_classes=10), (images(),)


@architecture("diffusers", "diffusers-dit")
def diffusers_dit() -> tuple[nn.Module, Batch]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        norm_num_groups=4,
    )
    times, labels = torch.tensor([3, 5]), torch.tensor([1, 2])
    return model, {"hidden_states": images(8, 4), "timestep": times, "class_labels": labels}


@architecture("diffusers", "diffusers-sd3")
def diffusers_sd3() -> tuple[nn.Module, Batch]:
    """Two streams go through each layer."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        sample_size=8,
        pos_embed_max_size=16,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
    )
    words_of_text = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(4))
    pooled = torch.randn(2, 10, generator=torch.Generator().manual_seed(5))
    batch = {"hidden_states": images(8, 4), "encoder_hidden_states": words_of_text, "pooled_projections": pooled}
    return model, {**batch, "timestep": torch.tensor([3, 5])}


@architecture("diffusers", "diffusers-unet")
def diffusers_unet() -> tuple[nn.Module, Batch]:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return model, {"sample": images(8), "timestep": torch.tensor([3, 5])}


@architecture("diffusers", "diffusers-autoencoder")
def diffusers_autoencoder() -> tuple[nn.Module, Batch]:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(block_out_channels=(8,), layers_per_block=3, norm_num_groups=4)
    return model, {"sample": images(8)}


@architecture("torch", "torch-prenorm-encoder")
def torch_prenorm_encoder() -> tuple[nn.Module, Batch]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), (torch.randn(2, 6, 16),)


@architecture("torch", "torch-postnorm-encoder")
def torch_postnorm_encoder() -> tuple[nn.Module, Batch]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), (torch.randn(2, 6, 16),)


@architecture("torchvision", "torchvision-resnet-basic")
def torchvision_resnet_basic() -> tuple[nn.Module, Batch]:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [3, 3, 1, 1], num_classes=10), (images(),)
