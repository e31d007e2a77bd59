"""A small block, whose subclasses keep what they compute, or do something else with it."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 4


class KeepingBlock(nn.Module):
    """`out(tanh(inner(x)))`, of width `WIDTH`, and beside that what its subclasses do with the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.inner(x))
        self.keep(h.square().mean())
        return self.out(h)

    def keep(self, loss: torch.Tensor) -> None:
        """Where a loss goes."""
