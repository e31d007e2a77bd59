"""BDIA, and the two-step midpoint rule, its largest gamma: with states on a grid both are undone bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odenet._check import whole, yes_or_no
from odenet._errors import InputError, shown
from odenet._solvers.two_step import TwoStep

_PRIME = 32749  # so that no product leaves 32 bits, which is what JAX counts steps in


@dataclass(frozen=True)
class BDIA(TwoStep):
    """`x[n+1] = g x[n-1] + (1-g) x[n] + (1+g) h f(x[n])`, from `x[1] = x[0] + h f(x[0])`: bidirectional integration.

    Zhang, Lewis and Kleijn 2025, "On exact bit-level reversible transformers without changing architectures"
    (arXiv 2407.09093): g = 0.5 or -0.5 in training, the sign drawn for each block and sample (see `seed`); in
    inference 0, the expectation, which is the plain residual network with its states rounded. See `inference`.

    Args:
        gamma: g, in (-1, 1]. With `bits` 0, or 1, 1/2, 1/4 or 1/8 with either sign (but -1, which reads f not at all).
        bits: see `TwoStep`; the paper has 9. None rounds nothing: undoing a step then multiplies rounding errors by
            1/|g|, so that 0.5 can be undone for some 20 steps in float32. Flags spell it `bits=no`.
        guard: keep one bit a number and step more as side information than the paper, so that states are had back bit
            by bit although f may come out otherwise in its last digits when it is evaluated again (fused programs,
            GPUs, other kernels with a gradient than without).
        seed: of the signs of g, drawn for each step and sample; None leaves the sign as it is. They depend on the seed,
            the step and the place in the batch alone, so that every pass over a batch has the same ones, and a sample
            others when it comes at another place, as in a shuffled epoch.
        shared: whether all samples of a step share a sign. Else each has its own; samples are the entries along the
            first axis of each leaf of the state.

    Raises:
        InputError: another gamma; bits that are no whole number from 1 to 48.
    """

    gamma: float = 0.5
    bits: int | None = 12  # pyright: ignore[reportIncompatibleVariableOverride]
    guard: bool = True  # pyright: ignore[reportIncompatibleVariableOverride]
    seed: int | None = None
    shared: bool = False

    name = "bdia"
    summary = "BDIA, quantised: a two-step residual network, undone bit by bit with two bits a number and step"
    source = "Zhang, Lewis, Kleijn 2025"

    def __post_init__(self) -> None:
        number = isinstance(self.gamma, (int, float)) and not isinstance(self.gamma, bool)
        if not (number and -1 < self.gamma <= 1):
            raise InputError(f"gamma={shown(self.gamma)} of bdia", "a number above -1, at most 1")
        yes_or_no("guard", self.guard)
        yes_or_no("shared", self.shared)
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**31 - 1)
            if abs(self.gamma) == 1:
                raise InputError(f"signs drawn for gamma={self.gamma} of bdia", "gamma below 1, since -1 reads no f")
        if self.bits is not None:
            whole("bits", self.bits, 1, 48)
            if abs(self.gamma) not in (0, 1, 0.5, 0.25, 0.125):
                raise InputError(
                    f"gamma={shown(self.gamma)} of bdia with bits={self.bits}",
                    "0, 1, 0.5, 0.25 or 0.125, with either sign",
                    "take one of these, or bits=None (bits=no), where steps are undone up to rounding",
                )

    @property
    def size(self) -> float:
        return abs(self.gamma)

    def sign(self, n: Any, sample: Any = 0) -> Any:
        if self.seed is None:
            return 1 if self.gamma >= 0 else -1
        # the same whole numbers in Python, in torch and where JAX traces n
        mixed = (n % _PRIME * 2837 + self.seed % _PRIME) % _PRIME
        mixed = (mixed * mixed + 7 * mixed + self.seed // _PRIME % _PRIME) % _PRIME
        if not self.shared:
            mixed = (mixed + sample % _PRIME * 5077) % _PRIME
            mixed = (mixed * mixed + 11 * mixed + sample // _PRIME) % _PRIME
            mixed = (mixed * mixed + 3 * mixed + 1) % _PRIME
        return 1 - 2 * ((mixed >> 3) & 1)

    def _signs(self, f: Any, n: Any, x: Any) -> Any:
        drawn = not (self.shared or self.seed is None)
        return f.of_samples(lambda sample: self.sign(n, sample), x) if drawn else self.sign(n)

    @property
    def inference(self) -> BDIA:
        """The same with gamma = 0, the expectation over signs: Euler's method, its states rounded as in training."""
        return BDIA(0.0, self.bits)


@dataclass(frozen=True)
class TwoStepMidpoint(TwoStep):
    """`x[n+1] = x[n-1] + 2 h f(x[n])`, from Euler's `x[1]`: the explicit midpoint rule of two steps (Nystrom).

    The midpoint form of Gal et al. 2025, "Reversing large language models for efficient training and fine-tuning"
    (arXiv 2512.02056). Stable on the imaginary axis alone, up to |h lambda| = 1: where y' = f contracts, an oscillation
    from step to step grows as fast as the solution decays.

    Args:
        bits: see `TwoStep`; None rounds nothing.
        guard: as in `BDIA`; without it no side information is kept at all.
    """

    bits: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    guard: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    name = "two-step-midpoint"
    summary = "the explicit midpoint rule over two steps: each step is undone by a subtraction"
    source = "Nystrom 1925; Gal et al. 2025"
    aliases = ("nystrom",)

    def __post_init__(self) -> None:
        yes_or_no("guard", self.guard)
        if self.bits is not None:
            whole("bits", self.bits, 1, 48)

    @property
    def size(self) -> float:
        return 1.0
