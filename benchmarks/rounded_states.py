"""Checkpointing with states in 8 and 16 bits beside checkpoint and the discrete adjoint, in torch and float32.

`error`: of the whole gradient, relative, against checkpoint. `certificate`: the largest relative error of a row of a
state (for the discrete adjoint its residual, which is another thing). `kept`: bytes alive after the forward pass beside
the solution, over those of one state: N for checkpoint, N/4 (N/2), scales and the rounded end for 8 (16) bits.
`seconds`: of both passes, the least of 5.

`open`, `stochastic` and `states`: what else could be kept in 8 bits, in a prototype here: increments whose errors add
up; the chain of odenet with stochastic rounding; the states themselves, rounded.

tanh: f = tanh(y A); relu: f = relu(layernorm(y) A) B; width 64, batch 64, weights drawn independently for each layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import odenet
from odenet_torch import solve
from odenet_torch.verbs.measure import LiveBytes

TITLE = "States in few bits"
METHODS = ("checkpoint", "checkpoint:bits=8", "checkpoint:bits=16", "discrete-adjoint", "discrete-adjoint:iterations=2")
WIDTH = BATCH = 64


def tanh(t: Any, y: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    """f of the tanh network."""
    return torch.tanh(y @ w[0])


def relu(t: Any, y: Tensor, w: tuple[Tensor, ...]) -> Tensor:
    """f of the pre-norm network."""
    return torch.relu(torch.nn.functional.layer_norm(y, (WIDTH,)) @ w[0]) @ w[1]


def rows() -> Iterator[dict[str, Any]]:
    """A row for each network, step, depth and method."""
    for field in (tanh, relu):
        for unit in (False, True):
            for steps in (16, 64, 256):
                yield from cells(field, steps, 1.0 if unit else 1 / steps)


def cells(field: Callable[..., Tensor], steps: int, h: float) -> Iterator[dict[str, Any]]:
    """The methods on one network."""
    generator = torch.Generator().manual_seed(steps)
    gains = (1.0,) if field is tanh else (2.0, 1.0)
    weights = tuple(
        (torch.randn(steps, WIDTH, WIDTH, generator=generator) * (gain / WIDTH) ** 0.5).requires_grad_()
        for gain in gains
    )
    y0 = torch.randn(BATCH, WIDTH, generator=generator).requires_grad_()
    exact = torch.zeros(())
    where = {"network": field.__name__, "h": "1" if h == 1 else "1/N", "N": steps}
    for method in METHODS:
        with LiveBytes() as mode:
            solution = run(field, y0, weights, method, steps, h)
        kept = (mode.live - y0.nbytes) / y0.nbytes
        found = gradient(solution, y0, weights)
        exact = found if method == "checkpoint" else exact
        yield {
            **where,
            "gradient": method,
            "error": apart(found, exact),
            "certificate": solution.stats.certificate,
            "kept": kept,
            "seconds": seconds(lambda method=method: gradient(run(field, y0, weights, method, steps, h), y0, weights)),
        }
    for name, rounded in PROTOTYPES.items():
        error = prototype(rounded, field, y0, weights, steps, h, exact)
        yield {**where, "gradient": name, "error": error, "certificate": None, "kept": None, "seconds": None}


def run(field: Any, y0: Tensor, weights: Any, method: str, steps: int, h: float) -> Any:
    """A solve by Euler's method."""
    return solve(field, y0, odenet.Depth(weights, "piecewise"), steps=steps, t1=steps * h, gradient=method)


def gradient(solution: Any, y0: Tensor, weights: Any) -> Tensor:
    """By y0 and the weights, of the mean square of the end, in one vector."""
    found = torch.autograd.grad(solution.y1.square().mean(), [y0, *weights])
    return torch.cat([part.flatten() for part in found])


def apart(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|."""
    return ((one - other).norm() / other.norm()).item()


def seconds(call: Callable[[], Any]) -> float:
    """The least of 5."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def quantised(x: Tensor, noise: float = 0.0) -> Tensor:
    """x in 8 bits with a scale a row; with noise=1 the rounding is stochastic."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return (x / scale + noise * (torch.rand_like(x) - 0.5)).round().clamp(-127, 127) * scale


def opened(ys: list[Tensor]) -> list[Tensor]:
    """The states from increments that were rounded one by one."""
    z, found = ys[-1], []
    for before, after in zip(ys[-2::-1], ys[:0:-1], strict=True):
        z = z - quantised(after - before)
        found.append(z)
    return found[::-1]


def stochastic(ys: list[Tensor]) -> list[Tensor]:
    """The states of odenet's chain, rounded stochastically."""
    chain = [ys[0]]
    for after in ys[1:-1]:
        chain.append(chain[-1] + quantised(after - chain[-1], 1.0))
    return chain


PROTOTYPES: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "open": opened,
    "stochastic": stochastic,
    "states": lambda ys: [quantised(y) for y in ys[:-1]],
}


def prototype(rounded: Any, field: Any, y0: Tensor, weights: Any, steps: int, h: float, exact: Tensor) -> float:
    """The error of the gradient whose VJPs are taken at these states."""
    layers = [tuple(w[n] for w in weights) for n in range(steps)]
    with torch.no_grad():
        ys = [y0.detach()]
        for layer in layers:
            ys.append(ys[-1] + h * field(0.0, ys[-1], layer))
        states = rounded(ys)
    g, parts = 2 * ys[-1] / ys[-1].numel(), []
    for y, layer in zip(reversed(states), reversed(layers), strict=True):
        at, of = y.detach().requires_grad_(), [w.detach().requires_grad_() for w in layer]
        part, *more = torch.autograd.grad(h * field(0.0, at, of), [at, *of], g)
        g = g + part
        parts.append(more)
    by_weight = [torch.stack(column[::-1]) for column in map(list, zip(*parts, strict=True))]
    return apart(torch.cat([part.flatten() for part in (g, *by_weight)]), exact)
