"""What the library adds to the field's own work.

jax: gradient of a fixed-step solve by `odenet.solve` over that of a `lax.scan` written by hand, both jitted: medians of
the ratios of interleaved runs in one process, and of fresh compilations. torch: tensor operations a step beyond the
field's own, and reads of the host, counted by a dispatch mode.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch.utils._python_dispatch import TorchDispatchMode

import odenet

TITLE = "Overhead"


def rows() -> Iterator[dict[str, Any]]:
    """One row a quantity."""
    for solver in ("euler", "heun", "rk4"):
        for batch, width, steps in ((32, 32, 64), (256, 128, 64)):
            run, compiled = jax_ratios(solver, batch, width, steps)
            size = f"batch {batch}, width {width}, {steps} layers"
            yield {"what": f"jax {solver} gradient, run time over hand-written scan", "size": size, "value": run}
            yield {
                "what": f"jax {solver} gradient, compile time over hand-written scan",
                "size": size,
                "value": compiled,
            }
    for solver in ("euler", "heun", "rk4"):
        operations, reads = torch_operations(solver)
        yield {"what": f"torch {solver}, tensor operations a step beyond f", "size": "one leaf", "value": operations}
        yield {"what": f"torch {solver}, host reads", "size": "one leaf", "value": reads}


def jax_ratios(solver: str, batch: int, width: int, steps: int, rounds: int = 31) -> tuple[float, float]:
    """Run time and compile time of our gradient over the hand-written one's."""
    rng = np.random.default_rng(0)
    layers = {"a": rng.standard_normal((steps, width, width)) / width**0.5, "b": rng.standard_normal((steps, width))}
    w, y0 = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (layers, rng.standard_normal((batch, width))))

    def field(t: Any, y: Any, w: Any) -> Any:
        return jnp.tanh(y @ w["a"] + w["b"])

    def ours(y0: Any, w: Any) -> Any:
        return (odenet.solve(field, y0, odenet.Depth(w, "piecewise"), solver=solver).y1 ** 2).sum()

    def by_hand(y0: Any, w: Any) -> Any:
        h = 1 / steps

        def euler(y: Any, w: Any) -> Any:
            return y + h * field(0.0, y, w), None

        def heun(y: Any, w: Any) -> Any:
            k1 = field(0.0, y, w)
            k2 = field(0.0, y + h * k1, w)
            return y + (h / 2) * k1 + (h / 2) * k2, None

        def rk4(y: Any, w: Any) -> Any:
            k1 = field(0.0, y, w)
            k2 = field(0.0, y + (h / 2) * k1, w)
            k3 = field(0.0, y + (h / 2) * k2, w)
            k4 = field(0.0, y + h * k3, w)
            return y + (h / 6) * k1 + (h / 3) * k2 + (h / 3) * k3 + (h / 6) * k4, None

        step = {"euler": euler, "heun": heun, "rk4": rk4}[solver]
        return (lax.scan(step, y0, w)[0] ** 2).sum()

    def compiled(loss: Callable[..., Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        program = jax.jit(jax.grad(lambda y0, w: loss(y0, w), argnums=(0, 1))).lower(y0, w).compile()
        return program, time.perf_counter() - start

    compiling: list[list[float]] = [[], []]
    programs: list[Any] = [None, None]
    for _ in range(7):
        for i, loss in enumerate((ours, by_hand)):
            programs[i], seconds = compiled(loss)
            compiling[i].append(seconds)
    running: list[list[float]] = [[], []]
    for _ in range(rounds):
        for i, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program(y0, w))
            running[i].append(time.perf_counter() - start)
    ratios = [statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in (running, compiling)]
    return ratios[0], ratios[1]


class Operations(TorchDispatchMode):
    """Names of the tensor operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note and run."""
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def torch_operations(solver: str) -> tuple[float, int]:
    """Operations a step beyond the field's own (from the difference of two depths), and host reads in all."""

    def count(steps: int) -> tuple[int, int]:
        y0 = torch.ones(4, 4)
        with Operations() as seen:
            odenet.solve(lambda t, y: torch.sin(y), y0, steps=steps, solver=solver)
        reads = sum("_local_scalar_dense" in name or "item" in name for name in seen.names)
        return len(seen.names) - steps * odenet.SOLVERS[solver].stages, reads

    (few, _), (many, reads) = count(10), count(110)
    return (many - few) / 100, reads
