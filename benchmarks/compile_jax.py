"""What XLA is given of a solve on JAX, and the processor time that tracing and compiling it take, beside diffrax.

The field is `tanh(y a + b) c + d` (32 rows, width 8, hidden 32, float32); the loss is the sum of squares of y(4), the
gradient that by state and weights (backprop). dopri5 at rtol = atol = 1e-6, and 64 equal steps. lines: of the program
as StableHLO. cpu_seconds: of all threads of the process, median of fresh compilations; over_diffrax, over_scan: medians
of the ratios of interleaved compilations, to the faster of diffrax's stage loops as in `benchmarks/adaptive_jax.py`,
and to a `lax.scan` of 64 steps written by hand. Blank where there is no such peer: diffrax has no rk4, and no scan
adapts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.adaptive_jax import T1, field, gradient, loss, ours, peer
from odenet import SOLVERS, Solver
from odenet_jax import solve
from odenet_jax.verbs.batch import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

TITLE = "Compiling solves on JAX"
STEPS = 64
ROUNDS = 3
PEERS = {"euler": diffrax.Euler, "heun": diffrax.Heun}


class Walked:
    """A state at t1 as a solution, for `loss`."""

    def __init__(self, y: Any) -> None:
        self.ys = y


def rows() -> Iterator[dict[str, Any]]:
    """One row a solver, and forward or gradient."""
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((8, 32), (32,), (32, 8), (8,))
    with enable_x64(False):
        weights = tuple(jax.random.normal(key, shape) / 4 for key, shape in zip(keys, shapes, strict=False))
        given = jax.random.normal(keys[4], (32, 8)), weights
        for solver in ("dopri5", "euler", "heun", "rk4"):
            own, peers, scan = _programs(solver)
            for what, of in (("forward", loss), ("gradient", lambda solved: gradient(loss(solved)))):
                yield {"solver": solver, "what": what, **_row(of, given, own, peers[what], scan)}


def _programs(solver: str) -> tuple[Any, dict[str, list[Any]], Any]:
    """Ours, those of diffrax for the loss and its gradient, and the scan."""
    if solver == "dopri5":
        return ours, {"forward": [peer("lax"), peer("bounded")], "gradient": [peer(), peer("bounded")]}, None

    def own(y0: Any, w: Any) -> Any:
        return solve(field, y0, w, t1=T1, steps=STEPS, solver=solver)  # pyright: ignore[reportArgumentType]

    peers = [equal_steps(PEERS[solver])] if solver in PEERS else []
    return own, {"forward": peers, "gradient": peers}, by_hand(solver)


def equal_steps(kind: Any) -> Any:
    """diffrax with equal steps, a state a step kept."""

    def solved(y0: Any, w: Any) -> Any:
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            kind(),
            0.0,
            T1,
            T1 / STEPS,
            y0,
            w,
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=STEPS),
            max_steps=STEPS,
            throw=False,
        )

    return solved


def by_hand(solver: str) -> Any:
    """A scan whose stages are written out."""
    record, h = SOLVERS[solver], T1 / STEPS
    assert isinstance(record, Solver)
    tableau = record.tableau

    def weigh(y: Any, factors: Any, slopes: list[Any]) -> Any:
        return y + h * sum(float(a) * k for a, k in zip(factors, slopes, strict=False) if a)

    def solved(y0: Any, w: Any) -> Any:
        def step(y: Any, n: Any) -> tuple[Any, None]:
            slopes: list[Any] = []
            for c, row in zip(tableau.c, tableau.a, strict=True):
                slopes.append(field(h * (n + float(c)), weigh(y, row, slopes), w))
            return weigh(y, tableau.b, slopes), None

        return Walked(lax.scan(step, y0, jnp.arange(STEPS, dtype=jnp.float32))[0])

    return solved


def _row(of: Callable[[Any], Any], given: Any, own: Any, peers: list[Any], scan: Any) -> dict[str, Any]:
    functions = [of(each) for each in (own, *peers, *([scan] if scan else []))]
    taken = [[_compiled(function, given) for function in functions] for _ in range(ROUNDS)]

    def over(place: int) -> float:
        return statistics.median(row[0][0] / row[place][0] for row in taken)

    places = range(1, 1 + len(peers))
    best = max(places, key=over, default=None)
    return {
        "lines": taken[0][0][1],
        "lines_diffrax": taken[0][best][1] if best else "",
        "lines_scan": taken[0][-1][1] if scan else "",
        "cpu_seconds": statistics.median(row[0][0] for row in taken),
        "over_diffrax": over(best) if best else "",
        "over_scan": over(len(functions) - 1) if scan else "",
    }


def _compiled(function: Any, given: Any) -> tuple[float, int]:
    """Processor seconds of tracing and compiling, and lines of the program."""
    jax.clear_caches()
    begin = time.process_time()
    lowered = jax.jit(function).lower(*given)
    lowered.compile()
    return time.process_time() - begin, len(lowered.as_text().splitlines())
