"""Adaptive solves beside diffrax, in one process: medians of the ratios of interleaved runs, by the wall clock, and of
fresh compilations, in processor time.

dopri5 at rtol = atol = 1e-6 from t=0 to 4 on `tanh(y a + b) c + d`, float32, one thread; the loss is the sum of squares
of y(t1). diffrax as its FAQ advises: `PIDController`, `throw=False`, one `jax.jit` around loss and gradient, both kinds
of its stage loop (`scan_kind`), forward and with `RecursiveCheckpointAdjoint` of its default and of as many checkpoints
as there are steps. Each ratio is that to the best of these; tried steps are beside it, since the two libraries' error
estimates of dopri5 differ (Dormand and Prince's own here, Shampine's there): `benchmarks/equal_error.py` compares
evaluations at equal error.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from odenet_jax import solve
from odenet_jax.verbs.batch import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

TITLE = "Adaptive solves on JAX"
SIZES = ((32, 8, 32, 60), (256, 64, 256, 12))  # batch, width, hidden, rounds
COMPILATIONS = 3
T1, TOLERANCE = 4.0, 1e-6
Loss = Callable[[Any, Any], Any]


def rows() -> Iterator[dict[str, Any]]:
    """One row a size and quantity."""
    with enable_x64(False):
        for batch, width, hidden, rounds in SIZES:
            yield from _rows(batch, width, hidden, rounds)


def _rows(batch: int, width: int, hidden: int, rounds: int) -> Iterator[dict[str, Any]]:
    keys = jax.random.split(jax.random.key(0), 5)
    y0 = jax.random.normal(keys[4], (batch, width))
    shapes = ((width, hidden), (hidden,), (hidden, width), (width,))
    scales = (2 / width**0.5, 0.1, 2 / hidden**0.5, 0.1)
    given = (y0, tuple(s * jax.random.normal(k, shape) for k, shape, s in zip(keys, shapes, scales, strict=False)))
    stats = jax.jit(ours)(*given).stats
    tried = int(jax.jit(peer())(*given).stats["num_steps"])
    size = {"batch": batch, "width": width, "hidden": hidden, "steps": int(stats.steps + stats.rejected)}
    size["steps_diffrax"] = tried
    forward = [loss(peer(kind)) for kind in ("lax", "bounded")]
    backward = [peer(kind, count) for kind in (None, "bounded") for count in (None, tried + 2)]
    for what, own, others in (
        ("forward", loss(ours), forward),
        ("gradient", gradient(loss(ours)), [gradient(loss(other)) for other in backward]),
    ):
        run, compiled, seconds = compared(own, others, given, rounds)
        yield {**size, "what": what, "seconds": seconds, "run_over_diffrax": run, "compile_over_diffrax": compiled}


def field(t: Any, y: Any, w: Any) -> Any:
    """A multilayer perceptron."""
    return jnp.tanh(y @ w[0] + w[1]) @ w[2] + w[3]


def ours(y0: Any, w: Any) -> Any:
    """This library."""
    return solve(field, y0, w, t1=T1, rtol=TOLERANCE, atol=TOLERANCE)


def peer(kind: str | None = None, checkpoints: int | None = None) -> Loss:
    """diffrax, with choices of its own."""
    chosen: Any = {} if kind is None else {"scan_kind": kind}

    def solved(y0: Any, w: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(**chosen),
            0.0,
            T1,
            None,
            y0,
            w,
            stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE),
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=checkpoints),
            throw=False,
        )

    return solved


def loss(solved: Loss) -> Loss:
    """The sum of squares of y(t1)."""
    return lambda y0, w: jnp.sum(solved(y0, w).ys ** 2)


def gradient(of: Loss) -> Loss:
    """With respect to state and weights."""
    return jax.grad(of, argnums=(0, 1))


def compared(own: Loss, others: list[Loss], given: Any, rounds: int) -> tuple[float, float, float]:
    """Run and compile time (that of the processor) over those of the best of the others, and seconds of a run."""
    programs, compiling = [], []
    for _ in range(COMPILATIONS):
        made = [_compiled(function, given) for function in (own, *others)]
        programs = [program for program, _ in made]
        compiling.append([seconds for _, seconds in made])
    for program in programs:
        jax.block_until_ready(program(*given))
    running = [[_seconds(program, given) for program in programs] for _ in range(rounds)]

    def best(times: list[list[float]]) -> float:
        columns = range(1, len(times[0]))
        return max(statistics.median(row[0] / row[i] for row in times) for i in columns)

    return best(running), best(compiling), statistics.median(row[0] for row in running)


def _compiled(function: Loss, given: Any) -> tuple[Any, float]:
    jax.clear_caches()
    begin = time.process_time()  # of a machine that others use, too, the wall clock measures these
    program = jax.jit(function).lower(*given).compile()
    return program, time.process_time() - begin


def _seconds(program: Any, given: Any) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(program(*given))
    return time.perf_counter() - begin
