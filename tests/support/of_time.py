"""A block as a field, and as a residual layer."""

from __future__ import annotations

from torch import nn


class OfTime(nn.Module):
    """`f(t, y) = block(y)`, in torch."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, t, y):
        return self.block(y)


class Layer(nn.Module):
    """`x + block(x)`."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return x + self.block(x)
