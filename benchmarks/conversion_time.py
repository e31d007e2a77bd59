"""What `odenet_torch.convert` costs in time: a converted model beside the same model as its author wrote it, and beside
torch's own checkpointing; float32, one thread.

ratio: medians of the ratios of interleaved runs in one process, in time of the thread. Evaluation without gradients is
over the model's own forward pass; training with gradient="checkpoint" is over `torch.utils.checkpoint` around each
block (`gradient_checkpointing_enable` of transformers for Llama).

Models: 50 residual blocks Linear-Tanh of a width, batch 32; a Llama of 8 layers of width 64 on 2 x 32 tokens. And
blocks that do more than return a value, in training alone: with BatchNorm1d between the two; with a forward hook on
each block, or on the Linear in it, which keeps the detached mean of what comes out; with a loss that each keeps in an
attribute and that is added to the model's; and 10 residual blocks conv-BatchNorm2d-ReLU-conv-BatchNorm2d, of 16
channels on 4 x 8 x 8 and of 32 channels on 16 x 16 x 16 positions.
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

    def __init__(self, block: Callable[[], nn.Module], count: int = 50) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.saves = False

    def forward(self, x: Tensor) -> Tensor:
        """The last state."""
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.saves else block(x))
        return x


class Penalised(nn.Module):
    """A block that keeps a loss by the side."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear(64)

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds."""
        y = self.inner(x)
        self.loss = y.square().mean()
        return y


class Hooked(nn.Module):
    """A block with a forward hook on itself, or on the Linear in it.

    Args:
        inside: which of the two.
    """

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inner, self.means = linear(64), dict[str, Tensor]()
        (self.inner[0] if inside else self).register_forward_hook(self.look)

    def look(self, module: nn.Module, inputs: Any, y: Tensor) -> None:
        """Keep the mean of what a module returned."""
        self.means["mean"] = y.detach().mean()

    def forward(self, x: Tensor) -> Tensor:
        """What the block adds."""
        return self.inner(x)


def linear(width: int) -> nn.Sequential:
    """A plain block."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


def normed(width: int) -> nn.Sequential:
    """The same with batch norm."""
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh())


def convolutional(channels: int) -> nn.Sequential:
    """The branch of a residual block of images."""
    conv, norm = (lambda: nn.Conv2d(channels, channels, 3, padding=1, bias=False)), (lambda: nn.BatchNorm2d(channels))
    return nn.Sequential(conv(), norm(), nn.ReLU(), conv(), norm())


def rows() -> Iterator[dict[str, Any]]:
    """One row a model and a use."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for width in (64, 256):
        x = torch.randn(32, width)
        plain = Blocks(lambda w=width: linear(w))
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
    small, images = torch.randn(32, 64), (torch.randn(4, 16, 8, 8), torch.randn(16, 32, 16, 16))
    for name, x, plain in (
        ("50 blocks of width 64, BatchNorm1d", small, Blocks(lambda: normed(64))),
        ("50 blocks of width 64, hooks on blocks", small, Blocks(lambda: Hooked(inside=False))),
        ("50 blocks of width 64, hooks inside", small, Blocks(lambda: Hooked(inside=True))),
        ("50 blocks of width 64, side losses", small, Blocks(Penalised)),
        ("10 convolutional blocks, BatchNorm2d, small", images[0], Blocks(lambda: convolutional(16), 10)),
        ("10 convolutional blocks, BatchNorm2d", images[1], Blocks(lambda: convolutional(32), 10)),
    ):
        saving = copy.deepcopy(plain)
        saving.saves = True
        made = convert(copy.deepcopy(plain), example=x, gradient="checkpoint")
        value, ms = ratio(*(lambda m=m, x=x: loss(m, x).backward() for m in (made, saving)))
        yield {"model": name, "use": "training", "ms": ms, "ratio": value, "goal": GOALS["training"]}


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """A training loss, with what the blocks keep by the side."""
    out = model(x).square().mean()
    sides = [block.loss for block in model.get_submodule("blocks") if isinstance(block, Penalised)]
    return out + torch.stack(sides).sum() if sides else out


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
