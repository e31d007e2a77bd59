"""Seconds of functions that are run in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

BUDGET = 0.3


def seconds(functions: Sequence[Callable[[], object]], repeats: int, budget: float = BUDGET) -> list[float]:
    """Median seconds of each function, run in turn; a function returns when its work is done.

    The first round is a warm-up and counts only where it is the only one: after `budget` seconds no further round
    begins, since what takes long is little disturbed.
    """
    rounds: list[list[float]] = [[] for _ in functions]
    began = time.perf_counter()
    for done in range(repeats + 1):
        if done and time.perf_counter() - began > budget:
            break
        for function, times in zip(functions, rounds, strict=True):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:] or times) for times in rounds]
