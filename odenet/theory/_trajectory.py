"""What is known at the ends of all steps of a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ByStep:
    """A size at the end of every step.

    Args:
        by_step: shape (N + 1,), the first at t0.
    """

    by_step: np.ndarray

    @property
    def steps(self) -> int:
        """The number of steps N."""
        return len(self.by_step) - 1

    @property
    def largest(self) -> float:
        """The largest over all steps."""
        return float(self.by_step.max())


def sizes(states: np.ndarray) -> np.ndarray:
    """The Euclidean norm at each point, the largest over samples.

    Args:
        states: shape (points, samples, entries of one).
    """
    return np.linalg.norm(states, axis=2).max(axis=1)
