"""The optimal schedule of recomputation for a known number of steps and a given number of kept states.

Griewank and Walther 2000, "Algorithm 799: Revolve", ACM Transactions on Mathematical Software 26.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import comb


@dataclass(frozen=True)
class Turn:
    """How the backward pass comes to the VJP of step `step`.

    Args:
        step: n.
        origin: the kept state to start from, `origin <= step`; the way from there takes `step - origin` evaluations.
        keep: states to be kept on that way, in order; each is kept until its own step's turn is over.
    """

    step: int
    origin: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """All of it.

    Args:
        forward: the states that the forward pass keeps, 0 first and that of the last step last: the backward pass
            starts with its VJP.
        turns: one for each step, the last step first.
    """

    forward: tuple[int, ...]
    turns: tuple[Turn, ...]


@cache
def schedule(steps: int, states: int) -> Schedule:
    """The schedule with the fewest evaluations for that many steps and states kept beside the current one at most.

    The way of the first turn is the forward pass itself.
    """
    first, *turns = _turns(0, steps, min(states, steps))
    forward = tuple(dict.fromkeys((first.origin, *first.keep, steps - 1)))
    return Schedule(forward, (Turn(steps - 1, steps - 1, ()), *turns))


def advances(steps: int, states: int) -> int:
    """How many steps forward the optimal schedule takes, VJPs not counted (Griewank and Walther 2000, theorem 1).

    `r steps - C(states + r, r - 1)` for the smallest r with `C(states + r, r) >= steps`. The forward pass to the last
    step's start is N - 1 of them.
    """
    states = min(states, steps)
    r = _repetitions(steps, states)
    return r * steps - comb(states + r, r - 1) if r else 0


def _turns(first: int, end: int, states: int) -> Iterator[Turn]:
    """The turns of steps first..end-1, where state `first` is kept and `states` counts it."""
    left = [(first, end, states)]  # pieces whose turns are still to come, the next one last
    while left:
        first, end, states = left.pop()
        origin, keep = first, []
        while end - first > 1 and states > 1:
            middle = first + _split(end - first, states)
            left.append((first, middle, states))
            keep.append(middle)
            first, states = middle, states - 1
        yield Turn(end - 1, origin, tuple(keep))
        yield from (Turn(n, first, ()) for n in reversed(range(first, end - 1)))


def _split(steps: int, states: int) -> int:
    """How far to go before the next state is kept: Algorithm 799's choice among those that are optimal."""
    r = _repetitions(steps, states)
    if steps <= _reach(states, r - 1) + _reach(states - 2, r - 1):
        return max(1, _reach(states, r - 2))
    if steps >= _reach(states, r) - _reach(states - 3, r):
        return _reach(states, r - 1)
    return steps - _reach(states - 1, r - 1) - _reach(states - 2, r - 1)


def _reach(states: int, r: int) -> int:
    """The most steps that can be turned with that many states when no step is taken forward more than r times."""
    return comb(states + r, states) if states >= 0 and r >= 0 else 0


def _repetitions(steps: int, states: int) -> int:
    r = 0
    while _reach(states, r) < steps:
        r += 1
    return r
