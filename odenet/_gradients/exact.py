"""The gradient methods that are exact up to rounding: backprop, checkpointing, reversible solvers."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import ClassVar

from odenet._check import whole
from odenet._errors import InputError
from odenet._gradients.record import Cost, Gradient
from odenet._gradients.revolve import advances, schedule
from odenet._solvers.family import AnySolver, StagedSolver


@dataclass(frozen=True)
class Backprop(Gradient):
    """Reverse-mode differentiation through the solver's own operations: exact, and every stage is kept."""

    name = "backprop"
    summary = "differentiate through the solver; the framework keeps every stage"
    exactness = "exact"
    formula = ("N s", "0", "N s", "N")

    def offered(self, solver: AnySolver) -> bool:
        """Every solver can be differentiated through."""
        return True

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """See `Cost`."""
        evaluations = solver.evaluations(steps)
        return Cost(evaluations, 0, evaluations, steps)

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """0: nothing is rebuilt."""
        return 0.0


@dataclass(frozen=True)
class Checkpoint(Gradient):
    """Keep some states, compute what lies between them again: exact, equal to backprop.

    Without an option every step's state is kept and its stages are computed again, one step at a time.

    Args:
        segments: keep the state at the start of each of K equal segments, and run a segment again as a whole (Chen et
            al. 2016): one more evaluation of f a step; the stages of a whole segment are alive at once.
        states: keep at most this many states, y0 among them, beside the current one, and take the schedule that
            evaluates f least often for that many (Griewank and Walther 2000, Algorithm 799 "revolve"); the stages of
            one step are alive at once.
        memory: as many states as fit in this many bytes beside the stages of one step and what the way back works on.

    Raises:
        InputError: more than one of them.
    """

    segments: int | None = None
    states: int | None = None
    memory: int | None = dataclasses.field(default=None, metadata={"unit": "bytes"})

    name = "checkpoint"
    summary = "keep some states and compute the rest again"
    exactness = "exact"
    formula = ("N s", "N s", "N s", "N")
    variants: ClassVar = {"segments=K": ("N s", "N s", "N s", "K"), "states=K": ("N s", "(A+1) s", "N s", "K+1")}

    def __post_init__(self) -> None:
        given = {key: value for key, value in vars(self).items() if value is not None}
        for key, value in given.items():
            whole(key, value)
        if len(given) > 1:
            options = " and ".join(f"{key}={value}" for key, value in given.items())
            raise InputError(f"{options} of checkpoint", "one of segments, states and memory")

    def parts(self, steps: int) -> list[tuple[int, int]]:
        """The segments as (first step, last step + 1), of lengths that differ by at most one; every step if none."""
        count = min(self.segments or steps, steps)
        bounds = [n * steps // count for n in range(count + 1)]
        return list(itertools.pairwise(bounds))

    def affordable(self, state: int, stages: int) -> int:
        """How many states the budget holds.

        Args:
            state: bytes of one state.
            stages: bytes that one recorded step keeps for its VJP.

        Raises:
            InputError: not even one.
        """
        assert self.memory is not None
        working = stages + WORKING * state
        count = (self.memory - working) // state
        if count < 1:
            raise InputError(
                f"memory={self.memory} bytes of checkpoint; one state takes {state} and one step's stages {stages}",
                f"at least {working + state} bytes",
                "give more, take a smaller batch, or gradient='discrete-adjoint', which keeps one state",
            )
        return count

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """See `Cost`.

        Raises:
            InputError: for `memory`, since how many states that is depends on their size.
        """
        if self.memory is not None:
            raise InputError(
                f"the cost of {self.label}", "segments=K or states=K", "how many states fit depends on their size"
            )
        evaluations = solver.evaluations(steps)
        if self.states is None:
            return Cost(evaluations, evaluations, evaluations, len(self.parts(steps)))
        assert isinstance(solver, StagedSolver)  # its evaluations are known
        again = (advances(steps, self.states) - (steps - 1) + steps) * solver.stages
        return Cost(evaluations, again, evaluations, len(schedule(steps, self.states).forward))

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """0: what is computed again is what was there; a block that gives something else is found at once."""
        return 0.0


WORKING = 8
"""States that the way back works on beside those kept: y, its gradient, an increment, and what adding them makes."""


@dataclass(frozen=True)
class Reversible(Gradient):
    """Step a reversible solver back exactly, and take each VJP at the point where the way back evaluates f anyway.

    Kidger et al. 2021 (reversible Heun); Zhuang et al. 2021 (MALI); McCallum and Foster 2024.
    """

    name = "reversible"
    summary = "step a reversible solver back, exactly; memory independent of depth"
    exactness = "exact up to rounding, reversible solvers only"
    formula = ("N s + e", "N s + e", "N s + e", "2")
    certifies = True

    def offered(self, solver: AnySolver) -> bool:
        """Solvers that can be stepped back exactly."""
        return solver.reversible

    def cost(self, solver: AnySolver, steps: int) -> Cost:
        """See `Cost`."""
        evaluations = solver.evaluations(steps)
        return Cost(evaluations, evaluations, evaluations, 2)

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """The certificate: rounding errors, as they have grown on the way back."""
        return certificate
