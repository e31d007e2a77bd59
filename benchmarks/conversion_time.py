"""What `odenet_torch.convert` costs in time: a converted model beside the same model as its author wrote it, and beside
torch's own checkpointing; float32, one thread.

ratio: medians of the ratios of interleaved runs in one process, in time of the thread. Evaluation without gradients is
over the model's own forward pass; training with gradient="checkpoint" is over `torch.utils.checkpoint` around each
block (`gradient_checkpointing_enable` of transformers for Llama).

Models: 50 residual blocks Linear-Tanh of a width, batch 32; a Llama of 8 layers of width 64 on 2 x 32 tokens.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.small_steps import seconds
from odenet_torch import convert

TITLE = "Time of converted models"
ROUNDS = 31
GOALS = {"evaluation": 1.0, "training": 1.1}


class Blocks(nn.Module):
    """`x = x + block(x)`, as a user writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(50))
        self.saves = False

    def forward(self, x: Tensor) -> Tensor:
        """The last state."""
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.saves else block(x))
        return x


def rows() -> Iterator[dict[str, Any]]:
    """One row a model and a use."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for width in (64, 256):
        x = torch.randn(32, width)
        plain = Blocks(width)
        saving = copy.deepcopy(plain)
        saving.saves = True
        made = convert(copy.deepcopy(plain), example=x, gradient="checkpoint")
        yield from compared(
            f"50 blocks of width {width}",
            *(lambda m=m, x=x: m(x) for m in (plain, made)),
            *(lambda m=m, x=x: m(x).square().mean().backward() for m in (saving, made)),
        )
    transformers.logging.set_verbosity_error()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, use_cache=False))
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(64).view(2, 32)
    made = convert(copy.deepcopy(plain), example={"input_ids": ids}, gradient="checkpoint")
    yield from compared(
        "Llama, 8 layers of width 64",
        *(lambda m=m: m.eval()(input_ids=ids) for m in (plain, made)),
        *(lambda m=m: m.train()(input_ids=ids, labels=ids).loss.backward() for m in (saving, made)),
    )


def compared(
    model: str,
    own: Callable[[], object],
    made: Callable[[], object],
    saving: Callable[[], object],
    made_training: Callable[[], object],
) -> Iterator[dict[str, Any]]:
    """The rows of a model."""
    with torch.no_grad():
        evaluation = ratio(made, own)
    for use, (value, ms) in (("evaluation", evaluation), ("training", ratio(made_training, saving))):
        yield {"model": model, "use": use, "ms": ms, "ratio": value, "goal": GOALS[use]}


def ratio(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Of the times of two runs, and the milliseconds of the first."""
    for _ in range(3):
        one(), other()
    times = [(seconds(one), seconds(other)) for _ in range(ROUNDS)]
    return statistics.median(a / b for a, b in times), 1e3 * statistics.median(a for a, _ in times)
