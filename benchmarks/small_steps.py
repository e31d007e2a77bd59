"""Training steps of many small blocks, where Python and not the arithmetic is the cost: 64 blocks Linear(32)-Tanh on a
batch of 64, float32, one thread.

ratio: seconds of a training step over those of a hand-written loop `y = y + block(y) / N` with plain backprop, medians
of the ratios of interleaved runs in one process, in time of the thread, which other processes do not add to. Compiled
rows are over that loop compiled as a whole, 64 blocks in one graph; of a `ResidualStack` with `compile=True` 16 steps
are a graph, and their way back another, which takes as long for 64 blocks as for 16.

arithmetic: by the cost model alone. goal: what was asked for. By hand: the same recomputation, or the same reversal,
written for this network alone, without certificate, without any look at what blocks do; no library in Python is below.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import odenet_torch

TITLE = "Small steps on torch"
BLOCKS, WIDTH, BATCH, ROUNDS = 64, 32, 64, 31
GOALS = {"backprop": (1.15, 1.0), "checkpoint": (2.2, 1.4), "discrete-adjoint": (2.4, 1.8), "reversible": (2.4, 1.8)}
"""Eager and compiled."""
WAYS = (
    ("euler", "backprop", 1.0),
    ("euler", "checkpoint", 4 / 3),
    ("euler", "discrete-adjoint", 5 / 3),
    ("alf", "reversible", 1.39),
    ("reversible-heun", "reversible", 1.39),
    ("reversible:euler", "reversible", 2.67),
)


def rows() -> Iterator[dict[str, Any]]:
    """One row a way of training, eager and compiled."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, blocks = torch.randn(BATCH, WIDTH), make()
    eager: dict[str, Callable[[], object]] = {
        "by hand": trained(lambda x: by_hand(blocks, x), x),
        "by hand checkpoint": trained(lambda x: Recomputed.apply(blocks, x, *weights(blocks)), x),
        "by hand discrete-adjoint": trained(lambda x: Reversed.apply(blocks, x, *weights(blocks)), x),
    }
    eager |= {f"{solver} {gradient}": trained(stack(blocks, solver, gradient), x) for solver, gradient, _ in WAYS}
    yield from compared(eager, 0)
    loop = torch.compile(lambda x: by_hand(blocks, x), fullgraph=True)
    compiled: dict[str, Callable[[], object]] = {"by hand": trained(loop, x)}
    for solver, gradient, _ in WAYS:
        compiled[f"{solver} {gradient}"] = trained(stack(make(), solver, gradient, compile=True), x)
    yield from compared(compiled, 1)


def make() -> list[nn.Module]:
    """New blocks."""
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(BLOCKS)]


def stack(blocks: list[nn.Module], solver: str, gradient: str, *, compile: bool = False) -> odenet_torch.ResidualStack:
    """A network of these."""
    return odenet_torch.ResidualStack(blocks, solver=solver, gradient=gradient, along="piecewise", compile=compile)


def trained(net: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    """A training step."""
    return lambda: net(x).square().mean().backward()


def compared(runs: dict[str, Callable[[], object]], mode: int) -> Iterator[dict[str, Any]]:
    """The rows of runs that take turns; the first is what the others are compared with."""
    for _ in range(3):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    base, *_ = times.values()
    of = {f"{solver} {gradient}": (solver, gradient, arithmetic) for solver, gradient, arithmetic in WAYS}
    for name, each in times.items():
        solver, gradient, arithmetic = of.get(name, ("by hand", name.removeprefix("by hand").strip() or "backprop", ""))
        yield {
            "mode": ("eager", "compiled")[mode],
            "solver": solver,
            "gradient": gradient,
            "ms": 1e3 * statistics.median(each),
            "ratio": statistics.median(a / b for a, b in zip(each, base, strict=True)),
            "goal": "" if solver == "by hand" else GOALS[gradient][mode],
            "arithmetic": arithmetic,
        }


def seconds(run: Callable[[], object]) -> float:
    """Of one call, of this thread."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def by_hand(blocks: list[nn.Module], y: Tensor) -> Tensor:
    """The loop."""
    for block in blocks:
        y = y + block(y) / BLOCKS
    return y


def weights(blocks: list[nn.Module]) -> list[Tensor]:
    """Of all blocks."""
    return [p for block in blocks for p in block.parameters()]


class Recomputed(torch.autograd.Function):
    """The loop, of which the states are kept and the blocks run again."""

    @staticmethod
    def forward(ctx: Any, blocks: list[nn.Module], y: Tensor, *weights: Tensor) -> Tensor:
        ctx.blocks, ctx.states = blocks, []
        for block in blocks:
            ctx.states.append(y)
            y = y + block(y) / BLOCKS
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: list[Tensor] = []
        for block, state in zip(reversed(ctx.blocks), reversed(ctx.states), strict=True):
            y = state.detach().requires_grad_()
            with torch.enable_grad():
                z = y + block(y) / BLOCKS
            g, *of_weights = torch.autograd.grad(z, (y, *block.parameters()), g)
            found = [*of_weights, *found]
        return None, g, *found


class Reversed(torch.autograd.Function):
    """The loop, of which the last state is kept."""

    @staticmethod
    def forward(ctx: Any, blocks: list[nn.Module], y: Tensor, *weights: Tensor) -> Tensor:
        ctx.blocks, ctx.y = blocks, by_hand(blocks, y)
        return ctx.y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: list[Tensor] = []
        y = ctx.y
        for block in reversed(ctx.blocks):
            z = (y - block(y) / BLOCKS).detach().requires_grad_()
            with torch.enable_grad():
                d = block(z) / BLOCKS
            part, *of_weights = torch.autograd.grad(d, (z, *block.parameters()), g)
            y, g, found = y - d.detach(), g + part, [*of_weights, *found]
        return None, g, *found
