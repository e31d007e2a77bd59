"""Halves of a batch in two processes, by DistributedDataParallel and a stack sharded as a whole by fully_shard.

Run by _stages.py. Fields that are sharded by themselves are refused.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import odenet
from odenet_torch import NeuralODE, ResidualStack, odeint_adjoint

METHODS = {
    "backprop": "euler",
    "checkpoint": "euler",
    "checkpoint:states=2": "euler",
    "discrete-adjoint": "euler",
    "continuous-adjoint": "heun",
    "reversible": "alf",
}


class Block(nn.Module):
    """Two layers, and a parameter that is never read."""

    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 3)
        if unused:
            self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


def model(gradient: str, unused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(unused) for _ in range(4)]
    stack = ResidualStack(blocks, solver=METHODS[gradient], gradient=gradient, along="piecewise")
    return nn.Sequential(nn.Linear(4, 3), stack, nn.Linear(3, 2)).double()


class Timed(Block):
    def forward(self, t, x):
        return super().forward(x)


def by_blocks(gradient: str, mesh: DeviceMesh) -> nn.Module:
    network = model(gradient)
    for block in network[1].blocks:
        fully_shard(block, mesh=mesh)
    return network


def within(gradient: str, mesh: DeviceMesh) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), NeuralODE(fully_shard(Timed(False), mesh=mesh), steps=4, gradient=gradient))


class Solve(nn.Module):
    def __init__(self, gradient: str, mesh: DeviceMesh) -> None:
        super().__init__()
        self.gradient, self.field = gradient, fully_shard(Timed(False), mesh=mesh)

    def forward(self, x):
        y, times = x[:, :3].float(), torch.tensor([0.0, 1.0])
        if self.gradient == "drop-in":
            return odeint_adjoint(self.field, y, times, method="euler")
        return odenet.solve(lambda t, y: self.field(t, y), y, steps=4, gradient=self.gradient).y1


REFUSED = [*((make, way) for make in (by_blocks, within, Solve) for way in METHODS if way != "backprop")]
REFUSED = [(make, way) for make, way in REFUSED if make is by_blocks or METHODS[way] == "euler"]


def step(of: nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    """Gradients of the second of two training steps."""
    for _ in range(2):
        of.zero_grad()
        of(x).square().mean().backward()
    return [p.grad for p in of.parameters()]


def apart(found, expected) -> float:
    pairs = [(g.full_tensor() if hasattr(g, "full_tensor") else g, e) for g, e in zip(found, expected, strict=True)]
    return max(float((g - e).norm() / e.norm()) for g, e in pairs if e is not None)


def in_parallel(rank: int, mesh: DeviceMesh) -> dict[str, float]:
    """The largest difference of a parameter's gradient, relative to that of one process with the whole batch."""
    whole = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mine, found = whole[4 * rank : 4 * rank + 4], {}
    for gradient in METHODS:
        expected = step(model(gradient), whole)
        found[f"DDP {gradient}"] = apart(step(DistributedDataParallel(model(gradient)), mine), expected)
        sharded = model(gradient)
        fully_shard(sharded, mesh=mesh)
        found[f"FSDP {gradient}"] = apart(step(sharded, mine), expected)
        if gradient in ("checkpoint", "discrete-adjoint"):
            kept = DistributedDataParallel(model(gradient, unused=True), find_unused_parameters=True)
            found[f"unused {gradient}"] = apart(step(kept, mine), step(model(gradient, unused=True), whole))
    for make, gradient in (*REFUSED, (Solve, "drop-in")):
        net = make(gradient, mesh).to(mine.dtype if make is by_blocks else torch.float32)
        with pytest.raises(odenet.GradientError, match="sharded by itself"):
            net(mine if make is by_blocks else mine.float()).sum().backward()
    return found
