"""Seconds of a training step (loss and gradient) over those of plain backprop, medians of ratios of interleaved runs.

float32, one thread. torch: residual blocks conv3x3-ReLU-conv3x3 of 64 channels on 16 images of 16 x 16, 24 blocks,
against a hand-written loop `x = x + block(x) / N`; peers on the same blocks: `torch.utils.checkpoint` around each step,
and memcnn's `InvertibleModuleWrapper` around each step with the reversed step as its inverse (the paper's method;
memcnn 1.5.2, which is measured where it can be imported: `pip install --no-deps memcnn`). jax: blocks
`tanh(y a + b) c` of width 384 on a batch of 256, 24 layers, against `lax.scan` written by hand; peer: `jax.checkpoint`
around its body.

arithmetic: by the cost model alone, where a VJP costs two evaluations of f beside the one that it contains.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import odenet
from odenet_torch import ResidualStack

TITLE = "Time of a training step"
LAYERS = 24
ROUNDS = 5
METHODS = (
    ("euler", "backprop"),
    ("euler", "checkpoint"),
    ("euler", "checkpoint:segments=5"),
    ("euler", "checkpoint:states=5"),
    ("euler", "discrete-adjoint"),
    ("euler", "discrete-adjoint:correct=no"),
    ("euler", "discrete-adjoint:iterations=2"),
    ("euler", "discrete-adjoint:predictor=extrapolate"),
    ("euler", "continuous-adjoint"),
    ("reversible-heun", "reversible"),
    ("alf", "reversible"),
    ("reversible:euler", "reversible"),
)
Step = Callable[[], object]


def rows() -> Iterator[dict[str, Any]]:
    """One row a method and peer."""
    for backend, steps in (("torch", torch_steps()), ("jax", jax_steps())):
        yield from _rows(backend, steps)


def _rows(backend: str, steps: dict[tuple[str, str], Step]) -> Iterator[dict[str, Any]]:
    for step in steps.values():
        step()
    taken: dict[tuple[str, str], list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - start)
    plain = taken["by hand", "backprop"]
    for (solver, method), seconds in taken.items():
        ratios = [mine / base for mine, base in zip(seconds, plain, strict=True)]
        yield {
            "backend": backend,
            "solver": solver,
            "gradient": method,
            "ms": 1e3 * statistics.median(seconds),
            "over plain backprop": statistics.median(ratios),
            "arithmetic": _arithmetic(solver, method),
        }


def _arithmetic(solver: str, method: str) -> float | str:
    if solver in ("by hand", "peer"):
        return ""
    cost = odenet.gradient(method).cost(odenet.solver(solver), LAYERS)
    return (cost.f_forward + cost.f_backward + 2 * cost.vjp) / (3 * LAYERS)


class Plain(nn.Module):
    """The network as one writes it."""

    def __init__(self, blocks: list[nn.Module], wrap: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Tensor:
        """The state after the last block."""
        for block in self.blocks:
            x = self.wrap(lambda y, block=block: y + block(y) / LAYERS, x)
        return x


class Undoable(nn.Module):
    """A residual step with the paper's inverse, as memcnn wants it."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """The step."""
        return x + self.block(x) / LAYERS

    def inverse(self, y: Tensor) -> Tensor:
        """The reversed step."""
        return y - self.block(y) / LAYERS


def torch_steps() -> dict[tuple[str, str], Step]:
    """Training steps on the same blocks."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
        for _ in range(LAYERS)
    ]
    given = torch.randn(16, 64, 16, 16)
    models: dict[tuple[str, str], nn.Module] = {
        ("by hand", "backprop"): Plain(blocks, lambda step, x: step(x)),
        ("peer", "torch.utils.checkpoint"): Plain(blocks, lambda step, x: checkpoint(step, x, use_reentrant=False)),
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from memcnn import InvertibleModuleWrapper  # pyright: ignore[reportMissingImports]
        models["peer", "memcnn"] = nn.Sequential(
            *(InvertibleModuleWrapper(Undoable(block), keep_input=False) for block in blocks)
        )
    except ImportError:
        pass
    for solver, method in METHODS:
        models[solver, method] = ResidualStack(blocks, solver=solver, gradient=method, along="piecewise")

    def step(model: nn.Module) -> Step:
        def run() -> None:
            # a clone, which memcnn may free
            model(given.clone().requires_grad_().clone()).square().mean().backward()
            for p in model.parameters():
                p.grad = None

        return run

    return {name: step(model) for name, model in models.items()}


def jax_steps() -> dict[tuple[str, str], Step]:
    """Compiled training steps on the same weights."""
    rng = np.random.default_rng(0)
    width = 384
    shapes = {"a": (LAYERS, width, width), "b": (LAYERS, width), "c": (LAYERS, width, width)}
    w = {name: jnp.asarray(rng.standard_normal(shape) / width**0.5, jnp.float32) for name, shape in shapes.items()}
    given = jnp.asarray(rng.standard_normal((256, width)), jnp.float32)

    def field(t: Any, y: Any, w: Any) -> Any:
        return jnp.tanh(y @ w["a"] + w["b"]) @ w["c"]

    def by_hand(wrap: Callable[[Any], Any]) -> Callable[..., Any]:
        body = wrap(lambda y, w: (y + field(0.0, y, w) / LAYERS, None))
        return lambda y, w: (lax.scan(body, y, w)[0] ** 2).mean()

    def ours(solver: str, method: str) -> Callable[..., Any]:
        def loss(y: Any, w: Any) -> Any:
            return (odenet.solve(field, y, odenet.Depth(w, "piecewise"), solver=solver, gradient=method).y1 ** 2).mean()

        return loss

    losses = {("by hand", "backprop"): by_hand(lambda body: body), ("peer", "jax.checkpoint"): by_hand(jax.checkpoint)}
    losses |= {(solver, method): ours(solver, method) for solver, method in METHODS}

    def step(loss: Callable[..., Any]) -> Step:
        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(given, w).compile()
        return lambda: jax.block_until_ready(program(given, w))

    return {name: step(loss) for name, loss in losses.items()}
