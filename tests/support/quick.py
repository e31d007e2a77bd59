"""Which cases of a table the quick suite takes; the others are marked slow, so that `make test-slow` takes them all."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pytest


def quick(cases: Iterable[Any], taken: Collection[Any]) -> list[Any]:
    """Parameters, those that are not taken marked slow.

    Args:
        cases: all of them; a tuple stands for several parameters.
        taken: those of the quick suite. One that is no case is a `ValueError`: it would be taken by no suite.
    """
    every = list(cases)
    if unknown := [case for case in taken if case not in every]:
        raise ValueError(f"no cases: {unknown}")
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in taken else pytest.mark.slow)
        for case in every
    ]


def pairs(case: Sequence[Any]) -> Iterator[tuple[tuple[int, Any], ...]]:
    """The values of any two factors in a case."""
    return itertools.combinations(enumerate(case), 2)


def pairwise(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameters, of which the quick suite takes so many that any two values which meet in a case meet in one of them.

    A fault that one or two of the parameters make is found by them as by all. Greedy, the earlier case first where two
    bring as many new pairs, so that the choice is the same in each run.
    """
    every = list(cases)
    missing = {pair for case in every for pair in pairs(case)}
    taken = []
    while missing:
        best = max(every, key=lambda case: len(missing.intersection(pairs(case))))
        taken.append(best)
        missing.difference_update(pairs(best))
    return quick(every, taken)
