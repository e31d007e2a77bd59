"""Figure 3b without this library: what makes training fail, the gradient or the running statistics of BatchNorm?

22 bottleneck blocks (He 2016; 64 channels, 16 inside, `nn.BatchNorm2d`, PyTorch's own initial weights) between a stem
and a linear head, with steps of 1/22 and of 1; 150 steps of SGD with momentum 0.9 at 0.1 on batches of 64. The paper's
backward pass is written by hand in plain PyTorch: from the last state, x[n] = x[n+1] - h f(x[n+1]), and f again at x[n]
to differentiate it. Its blocks run in training mode, so that each BatchNorm counts a batch twice more, at states that
are not those of the forward pass. The gradient is the same with those counts and without, and so is the training; the
test error is taken with both running statistics, and with a test batch's own. The data are CIFAR-10 in the folder that
the environment variable CIFAR10 names (10,000 images to train, 2000 to test), without it the embedded digits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odenet._jobs.data.images import Images, moments
from odenet._jobs.data.sets import image_set

TITLE = "Figure 3b in plain PyTorch: test errors in % with running statistics that the backward pass counts too"
BLOCKS, WIDTH, EXPANSION, STEPS, BATCH, RATE = 22, 16, 4, 150, 64, 0.1
TRAINING, TEST, AT_ONCE, SEEDS = 10_000, 2000, 200, (0, 1, 2)
MOMENTUM, KINDS = 0.1, ("running_mean", "running_var")  # of nn.BatchNorm2d


def rows() -> Iterator[dict[str, Any]]:
    """One row for each gradient, step size and seed."""
    folder = os.environ.get("CIFAR10")
    images = image_set("cifar10", folder) if folder else image_set("digits")
    training, test = (
        loaded(part, images.train, most) for part, most in ((images.train, TRAINING), (images.test, TEST))
    )
    for h in (1 / BLOCKS, 1.0):
        for seed in SEEDS:
            for gradient in ("backprop", "paper"):
                yield {"data": images.name, "h": "1/N" if h < 1 else "1", "seed": seed, "gradient": gradient} | trained(
                    training, test, len(images.classes), h, seed, gradient
                )


def loaded(part: Images, training: Images, most: int) -> tuple[Tensor, Tensor]:
    """The first images of a set, normalised by channel, and their labels."""
    mean, deviation = (torch.tensor(moment, dtype=torch.float32)[:, None, None] for moment in moments(training))
    first = np.arange(min(most, len(part)))
    pixels = torch.tensor(np.asarray(part.read(first)), dtype=torch.float32)
    return (pixels - mean) / deviation, torch.tensor(part.labels[first])


def trained(
    training: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, h: float, seed: int, gradient: str
) -> dict[str, Any]:
    """Train a network; the loss of the last steps, and the test errors in %."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    inputs, labels = training
    network = Network(inputs.shape[1], classes, h, by_hand=gradient == "paper")
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=0.9)
    right = statistics(network)
    losses = []
    for _ in range(STEPS):
        chosen = torch.tensor(order.integers(0, len(inputs), BATCH))
        network.train()
        before = statistics(network)
        loss = F.cross_entropy(network(inputs[chosen]), labels[chosen])
        for name, after in statistics(network).items():  # the forward pass moves `right` by what it adds to the counted
            right[name] += after - (1 - MOMENTUM) * before[name] - MOMENTUM * right[name]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    counted = error(network.eval(), test)
    own = error(network.train(), test)
    network.load_state_dict(right, strict=False)
    return {
        "loss": float(np.mean(losses[-20:])),
        "error, statistics counted in both passes": counted if gradient == "paper" else None,
        "error, statistics of the forward pass": error(network.eval(), test),
        "error, statistics of each test batch": own,
    }


def statistics(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the running means and variances."""
    return {name: value.clone() for name, value in network.named_buffers() if name.rpartition(".")[2] in KINDS}


@torch.no_grad()
def error(network: Network, test: tuple[Tensor, Tensor]) -> float:
    """The part of the test images that is classified wrong, in %; in training mode, by each batch's own statistics."""
    inputs, labels = test
    before = statistics(network)
    pieces = zip(inputs.split(AT_ONCE), labels.split(AT_ONCE), strict=True)
    wrong = sum(int((network(x).argmax(1) != y).sum()) for x, y in pieces)
    network.load_state_dict(before, strict=False)
    return 100 * wrong / len(labels)


class Network(nn.Module):
    """Stem, blocks and head.

    Args:
        channels: of an image.
        classes: of them.
        h: step of each block.
        by_hand: whether the blocks' gradient is the paper's.
    """

    def __init__(self, channels: int, classes: int, h: float, *, by_hand: bool) -> None:
        super().__init__()
        width = EXPANSION * WIDTH
        self.h, self.by_hand = h, by_hand
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.blocks = nn.ModuleList(bottleneck(width) for _ in range(BLOCKS))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.stem(x)
        if self.by_hand:
            x = PaperGradient.apply(x, self.h, list(self.blocks), *self.blocks.parameters())
        else:
            for block in self.blocks:
                x = x + self.h * block(x)
        return self.head(x.mean((2, 3)))


def bottleneck(width: int) -> nn.Module:
    """Convolutions of size 1, 3 and 1, with a quarter of the channels inside."""
    inside = width // EXPANSION
    return nn.Sequential(
        *(nn.Conv2d(width, inside, 1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
        *(nn.Conv2d(inside, inside, 3, padding=1, bias=False), nn.BatchNorm2d(inside), nn.ReLU()),
        *(nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)),
    )


class PaperGradient(torch.autograd.Function):
    """Blocks whose states are rebuilt from the last one (Sander, Ablin and Peyre 2022, section 4)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: float, blocks: list[nn.Module], *_: Tensor) -> Tensor:
        """The state behind the blocks."""
        for block in blocks:
            x = x + h * block(x)
        ctx.save_for_backward(x)
        ctx.h, ctx.blocks = h, blocks
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        """The gradient by the state and by the blocks' parameters, at states that are rebuilt."""
        (cotangent,), (x,), gradients = cotangents, ctx.saved_tensors, []
        for block in reversed(ctx.blocks):
            with torch.no_grad():
                x = x - ctx.h * block(x)
            with torch.enable_grad():
                state = x.detach().requires_grad_()
                leaves = [state, *block.parameters()]
                by_state, *by_parameters = torch.autograd.grad(block(state), leaves, ctx.h * cotangent)
            cotangent = cotangent + by_state
            gradients = [*by_parameters, *gradients]
        return cotangent, None, None, *gradients
