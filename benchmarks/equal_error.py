"""Field evaluations for the same error at t = 20, beside the peers' implementation of the same method, on DETEST.

From the runs in detest.csv (`python -m benchmarks detest`), float64, tolerances 1e-3 to 1e-9. For each of odenet's runs
the evaluations that a peer needs for that run's error are interpolated between the peer's runs (log against log).
ratio: odenet's evaluations over those; the mean is geometric, over all problems and tolerances whose error the peer
reaches, too. torchdiffeq is run where JAX tries at most 500 steps, diffrax 20 000.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from benchmarks.detest import RESULTS, SOLVERS, Key, Run, read
from odenet._test_problems.detest import DETEST

TITLE = "Evaluations at equal error"
PEERS = ("torchdiffeq", "diffrax")


def rows() -> Iterator[dict[str, Any]]:
    """A row for each solver and peer, and one against the better of them."""
    runs = read(RESULTS)
    for solver in SOLVERS:
        for peers in (*((peer,) for peer in PEERS), PEERS):
            ratios = [ratio for problem in DETEST for ratio in _ratios(runs, problem, solver, peers)]
            if ratios:
                yield {
                    "solver": solver,
                    "peer": " or ".join(peers) + (", the better" if len(peers) > 1 else ""),
                    "points": len(ratios),
                    "mean ratio": math.exp(statistics.fmean(map(math.log, ratios))),
                    "median ratio": statistics.median(ratios),
                    "10 %": statistics.quantiles(ratios, n=10)[0] if len(ratios) > 1 else ratios[0],
                    "90 %": statistics.quantiles(ratios, n=10)[-1] if len(ratios) > 1 else ratios[0],
                }


def _ratios(runs: dict[Key, Run], problem: str, solver: str, peers: tuple[str, ...]) -> Iterator[float]:
    curves = [_curve(runs, peer, problem, solver) for peer in peers]
    for error, evaluations in _curve(runs, "jax", problem, solver):
        known = [found for curve in curves if (found := interpolated(curve, error)) is not None]
        if known:
            yield math.exp(evaluations - min(known))


def _curve(runs: dict[Key, Run], by: str, problem: str, solver: str) -> list[tuple[float, float]]:
    """(log error, log evaluations), from loose to tight."""
    mine = [run for run in runs.values() if (run.by, run.problem, run.solver) == (by, problem, solver)]
    return [(math.log(run.error), math.log(run.f_evaluations)) for run in mine if run.error and run.f_evaluations]


def interpolated(curve: list[tuple[float, float]], error: float) -> float | None:
    """Log evaluations at a log error: the least that the curve shows."""
    found = []
    for (e0, n0), (e1, n1) in pairwise(curve):
        if min(e0, e1) <= error <= max(e0, e1) and e0 != e1:
            found.append(n0 + (n1 - n0) * (error - e0) / (e1 - e0))
    return min(found, default=None)
