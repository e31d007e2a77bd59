"""What training costs on a GPU: forward pass, training step and peak memory of a residual network (blocks
Linear(256)-Tanh, Euler), and an adaptive solve by dopri5 beside torchdiffeq, on one CUDA device.

Run by `benchmarks/gpu.sh`. Times are medians of runs that end with a wait for the device. eager: a `ResidualStack` as
it is, in JAX a call outside of `jax.jit`; compiled: `compile=True` (for `checkpoint:bits=8` and `continuous-adjoint`,
which have none with equal steps, `stack.compile()`, of the blocks alone), and `jax.jit` of value and gradient. Peak
memory is beside weights, gradients and input; in JAX it is what XLA says that the compiled program takes for itself.
Without such a device each row says "not measured".
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
import torchdiffeq
from torch import nn

import odenet
import odenet_torch
from benchmarks.adaptive_torch import Mlp
from odenet_torch.verbs.measure import peak_bytes

TITLE = "On a GPU"
WIDTH = 256
METHODS = (
    ("euler", "backprop"),
    ("euler", "checkpoint"),
    ("euler", "checkpoint:bits=8"),
    ("euler", "discrete-adjoint"),
    ("euler", "continuous-adjoint"),
    ("alf", "reversible"),
)
BY_BLOCKS = ("checkpoint:bits=8", "continuous-adjoint")  # whose steps are not compiled
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Sizes:
    """What is run, and how often."""

    depths: tuple[int, ...] = (64, 1000)
    batches: tuple[int, ...] = (1, 256)
    repeats: int = 11


QUICK = Sizes((3, 4), (1, 2), 2)
"""To try that everything runs, on any device; no number of it says anything."""


def rows(sizes: Sizes | None = None) -> Iterator[dict[str, Any]]:
    """One row a framework, a gradient method and a size; measured where there is a device, or where sizes are given."""
    sizes, measured = sizes or Sizes(), sizes is not None or torch.cuda.is_available()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kinds = ("float32", "bfloat16")
    grid = itertools.product(sizes.depths, sizes.batches, kinds, METHODS, ("eager", "compiled"))
    for depth, batch, kind, (solver, gradient), mode in grid:
        for framework, run in (("torch", of_torch), ("jax", of_jax)):
            what = {"framework": framework, "depth": depth, "batch": batch, "dtype": kind, "solver": solver}
            what |= {"gradient": gradient, "mode": mode}
            if measured and (framework == "torch" or device == "cpu" or _jax_has_a_gpu()):
                found = tried(lambda f=run, w=what: f(device=device, repeats=sizes.repeats, **_arguments(w)))
            else:
                found = (NOT_MEASURED,) * 3
            yield what | dict(zip(("forward, ms", "training step, ms", "peak, MiB"), found, strict=True))
    for library, mode in (("odenet", "eager"), ("odenet", "compiled"), ("torchdiffeq", "eager"), ("torchdiffeq", "f")):
        what = {"framework": library, "depth": "adaptive", "batch": sizes.batches[-1], "dtype": "float32"}
        what |= {"solver": "dopri5", "gradient": "backprop", "mode": "f compiled" if mode == "f" else mode}
        measure = lambda w=what: of_dopri5(w["framework"], w["mode"], w["batch"], device, sizes.repeats)  # noqa: E731
        found = tried(measure) if measured else (NOT_MEASURED,) * 3
        yield what | dict(zip(("forward, ms", "training step, ms", "peak, MiB"), found, strict=True))


def _arguments(what: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in what.items() if name != "framework"}


def _jax_has_a_gpu() -> bool:
    return any(each.platform == "gpu" for each in jax.devices())


def tried(measure: Callable[[], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """What is measured; one cell that fails, as for want of memory, leaves the others alone and says so."""
    try:
        return measure()
    except Exception as error:
        return (f"failed: {type(error).__name__}: {str(error)[:80]}".replace("|", "/").replace("\n", " "), "", "")


def median(run: Callable[[], object], wait: Callable[[Any], object], repeats: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        wait(run())
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def of_torch(
    depth: int, batch: int, dtype: str, solver: str, gradient: str, mode: str, device: str, repeats: int
) -> tuple[float, float, float | str]:
    """Forward pass, training step, and peak memory of a `ResidualStack`."""
    torch.manual_seed(0)
    of = {"device": device, "dtype": getattr(torch, dtype)}
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH, **of), nn.Tanh()) for _ in range(depth)]
    steps_compiled = mode == "compiled" and gradient not in BY_BLOCKS
    net = odenet_torch.ResidualStack(
        blocks, solver=solver, gradient=gradient, along="piecewise", compile=steps_compiled
    )
    x = torch.randn(batch, WIDTH, **of)
    if mode == "compiled":
        torch._dynamo.reset()
        if not steps_compiled:
            net.compile()
    parameters = list(net.parameters())

    def forward() -> object:
        with torch.no_grad():
            return net(x)

    def train() -> object:
        return torch.autograd.grad(net(x).float().square().mean(), parameters)

    waited = _waited(device)
    times = median(forward, waited, repeats), median(train, waited, repeats)
    if steps_compiled and device == "cpu":  # bytes are counted there by a mode that a compiled step refuses
        return *times, NOT_MEASURED
    peak, _ = peak_bytes(train, torch.device(device))
    return *times, peak / 2**20


def of_jax(
    depth: int, batch: int, dtype: str, solver: str, gradient: str, mode: str, device: str, repeats: int
) -> tuple[float, float, Any]:
    """The same of `odenet.solve` over stacked weights."""
    one, two = jax.random.split(jax.random.key(0))
    w = {"a": jax.random.normal(one, (depth, WIDTH, WIDTH), dtype) / 16, "b": jnp.zeros((depth, WIDTH), dtype)}
    x = jax.random.normal(two, (batch, WIDTH), dtype)

    def run(w: Any) -> Any:
        weights = odenet.Depth(w, "piecewise")
        return odenet.solve(_layer, x, weights, solver=solver, gradient=gradient, backend="jax").y1

    def loss(w: Any) -> Any:
        return (run(w).astype("float32") ** 2).mean()

    forward, train = run, jax.value_and_grad(loss)
    if mode == "compiled":
        forward, train = jax.jit(run), jax.jit(train)
    waited = jax.block_until_ready
    times = median(lambda: forward(w), waited, repeats), median(lambda: train(w), waited, repeats)
    if mode == "eager":
        return *times, ""
    taken = jax.jit(jax.value_and_grad(loss)).lower(w).compile().memory_analysis()
    return *times, taken.temp_size_in_bytes / 2**20


def _layer(t: Any, y: Any, w: Any) -> Any:
    return jnp.tanh(y @ w["a"] + w["b"])


def of_dopri5(library: str, mode: str, batch: int, device: str, repeats: int) -> tuple[float, float, float | str]:
    """Forward pass, training step, and peak memory of an adaptive solve."""
    torch.manual_seed(0)
    field, y0 = Mlp(64, 256).to(device), torch.randn(batch, 64, device=device)
    tolerances = {"rtol": 1e-6, "atol": 1e-6}
    if library == "odenet":
        run = lambda: odenet_torch.solve(field, y0, t1=10.0, compile=mode == "compiled", **tolerances).y1  # noqa: E731
    else:
        f, span = torch.compile(field) if mode == "f compiled" else field, torch.tensor([0.0, 10.0], device=device)
        run = lambda: torchdiffeq.odeint(f, y0, span, method="dopri5", **tolerances)[-1]  # noqa: E731

    def forward() -> object:
        with torch.no_grad():
            return run()

    def train() -> object:
        return torch.autograd.grad(run().square().mean(), list(field.parameters()))

    waited = _waited(device)
    times = median(forward, waited, repeats), median(train, waited, repeats)
    if mode == "compiled" and device == "cpu":  # see `of_torch`
        return *times, NOT_MEASURED
    return *times, peak_bytes(train, torch.device(device))[0] / 2**20


def _waited(device: str) -> Callable[[Any], object]:
    return (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)


if __name__ == "__main__":
    for row in rows(QUICK if "--quick" in sys.argv else None):
        print(row, flush=True)
