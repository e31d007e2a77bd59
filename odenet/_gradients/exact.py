"""The gradient methods that are exact up to rounding: backprop, checkpointing, reversible solvers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from odenet._check import tolerance_or_none, whole
from odenet._errors import GradientError, InputError
from odenet._gradients.record import Cost, Gradient
from odenet._gradients.revolve import advances, schedule
from odenet._solvers.family import AnySolver, StagedSolver
from odenet._solvers.reversible import ReversibleSolver


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
        evaluations = solver.evaluations(steps)
        return Cost(evaluations, 0, evaluations, steps)

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """Nothing is rebuilt, so that the error is 0."""
        return 0.0


@dataclass(frozen=True)
class Checkpoint(Gradient):
    """Keep some states, compute what lies between them again: exact, equal to backprop.

    Without an option every step's state is kept and its stages are computed again, one step at a time.

    With `bits` the states are kept rounded: their increments, as whole numbers times a scale a row (Cutler 1952, delta
    modulation: what one increment loses is added to the next, so that each state is off by one rounding and errors do
    not add up). Going back starts from the rounded state at the end and takes off one increment after another. The
    error of each rounded state is known when it is kept: the largest of all is the certificate.

    Args:
        segments: keep the state at the start of each of K equal segments, and run a segment again as a whole (Chen et
            al. 2016): one more evaluation of f a step; the stages of a whole segment are alive at once.
        states: keep at most this many states, y0 among them, beside the current one, and take the schedule that
            evaluates f least often for that many (Griewank and Walther 2000, Algorithm 799 "revolve"); the stages of
            one step are alive at once.
        memory: as many states as fit in this many bytes, beside the stages of one step and the working memory of the
            backward pass.
        bits: 8 or 16, of each number of a kept state; a scale for each row (see `row`) comes on top of them.
        tolerance: with `bits`, a GradientError if the certificate is larger. Reads a number on the host in torch.

    Raises:
        InputError: more than one of the first four; other numbers of bits; a tolerance without bits.
    """

    segments: int | None = None
    states: int | None = None
    memory: int | None = dataclasses.field(default=None, metadata={"unit": "bytes"})
    bits: int | None = None
    tolerance: float | None = None

    name = "checkpoint"
    summary = "keep some states and compute the rest again"
    exactness = "exact (with bits: to their rounding)"
    formula = ("N s", "N s", "N s", "N")
    variants: ClassVar = {
        "segments=K": ("N s", "N s", "N s", "K"),
        "states=K": ("N s", "(A+1) s", "N s", "K+1"),
        "bits=B": ("N s", "N s", "N s", "2, N rounded"),
    }
    notable = ("bits=8",)

    def __post_init__(self) -> None:
        names = ("segments", "states", "memory", "bits")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for key, value in chosen.items():
            whole(key, value)
        if len(chosen) > 1:
            options = " and ".join(f"{key}={value}" for key, value in chosen.items())
            raise InputError(f"{options} of checkpoint", "one of segments, states, memory and bits")
        tolerance_or_none(self.tolerance)
        if self.bits not in (None, 8, 16):
            raise InputError(f"bits={self.bits} of checkpoint", "8 or 16")
        if self.bits is None:
            if self.tolerance is not None:
                raise InputError(
                    f"tolerance={self.tolerance} of checkpoint, which is exact", "tolerance with bits=8 or bits=16"
                )
            return
        # of this record, not of its class: without bits there is nothing to certify
        object.__setattr__(self, "certifies", True)
        object.__setattr__(self, "exactness", f"to the rounding of states to {self.bits} bits")

    def offered(self, solver: AnySolver) -> bool:
        """Of a reversible solver all that it carries is kept and computed again, in segments."""
        plain = self.states is None and self.memory is None and self.bits is None
        return super().offered(solver) or (isinstance(solver, ReversibleSolver) and plain)

    @staticmethod
    def row(shape: Sequence[int]) -> int:
        """How many of the last axes of a state are a row, the numbers that share a scale: enough for 32 numbers.

        Never the first axis of several, so that samples do not mix: (B, C) has a scale for each sample, (B, C, H, W)
        for each channel of an image. In (B, T, C) 8 numbers are enough: a class token may be a hundred times smaller
        than the other positions, and is what the loss reads.
        """
        enough, size, count = 8 if len(shape) == 3 else 32, 1, 0
        for length in reversed(shape[min(1, len(shape) - 1) :] if shape else ()):
            if count and size >= enough:
                break
            size, count = size * length, count + 1
        return count

    def off(self, certificate: float | None = None) -> GradientError:
        """The error of a certificate over the tolerance; None where its number is not known."""
        by = "" if certificate is None else f"by {certificate:.1e}, "
        more = "bits=16 keeps them 256 times as exactly, " if self.bits == 8 else ""
        return GradientError(
            f"states kept in {self.bits} bits are off {by}more than tolerance={self.tolerance}",
            "certificates up to the tolerance",
            f"{more}gradient='checkpoint' as they are; or smaller steps, or a larger tolerance",
        )

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
        """The cost of so many steps, see `Cost`.

        Raises:
            InputError: for `memory`, since how many states that is depends on their size.
        """
        if self.memory is not None:
            raise InputError(
                f"the cost of {self.label}", "segments=K or states=K", "how many states fit depends on their size"
            )
        evaluations = solver.evaluations(steps)
        if self.bits is not None:
            return Cost(evaluations, evaluations, evaluations, 2, steps)
        if isinstance(solver, ReversibleSolver):  # what it evaluates before the first step is kept
            return Cost(evaluations, steps * solver.stages, evaluations, solver.carries * len(self.parts(steps)))
        if self.states is None:
            return Cost(evaluations, evaluations, evaluations, len(self.parts(steps)))
        assert isinstance(solver, StagedSolver)  # its evaluations are known
        again = (advances(steps, self.states) - (steps - 1) + steps) * solver.stages
        return Cost(evaluations, again, evaluations, len(schedule(steps, self.states).forward))

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """0: what is computed again is what was there; a block that gives something else is found at once.

        With `bits` the certificate: how far the rounded states are off.
        """
        return 0.0 if self.bits is None else certificate


WORKING = 8
"""Working memory of the backward pass, in states: y, its gradient, an increment, and the results of adding them."""


@dataclass(frozen=True)
class Reversible(Gradient):
    """Invert the steps of a reversible solver exactly, with each VJP at a point where the inversion evaluates f anyway.

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
        evaluations = solver.evaluations(steps)
        beside = isinstance(solver, ReversibleSolver) and solver.side_bits > 0
        return Cost(evaluations, evaluations, evaluations, 2, steps if beside else 0)

    def estimate(self, certificate: float | None, steps: int) -> float | None:
        """The certificate: rounding errors, as they have grown in the backward pass."""
        return certificate
