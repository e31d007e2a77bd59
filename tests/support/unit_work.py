"""Units of work that kill their worker: a module that processes, Dask's and Ray's workers can import."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from odenet import InputError


@dataclass(frozen=True)
class Numbers:
    """A plan of numbers, of which some kill the worker that squares them.

    Args:
        folder: where each call leaves a file.
        once: numbers that kill the first worker that meets them.
        always: those that kill every worker.
        refused: that raise an error of ours.
        together: how many make a unit.
    """

    folder: str
    once: tuple[int, ...] = ()
    always: tuple[int, ...] = ()
    refused: tuple[int, ...] = ()
    together: int = 1
    backends: tuple[str, ...] = ()

    def units(self, cells: Sequence[int]) -> list[tuple[int, ...]]:
        """Numbers that follow each other."""
        return [tuple(cells[first : first + self.together]) for first in range(0, len(cells), self.together)]


def squares(plan: Numbers, cells: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each number and its square."""
    for number in cells:
        met = Path(plan.folder) / f"met-{number}"
        first = not met.exists()
        met.touch()
        if number in plan.refused:
            raise InputError(f"{number} is refused")
        if number in plan.always or (first and number in plan.once):
            time.sleep(0.2)  # others are under way
            os.kill(os.getpid(), signal.SIGKILL)
        yield number, number**2


def here() -> dict[str, str]:
    """What machine this is."""
    return {"cpu": "an abacus"}
