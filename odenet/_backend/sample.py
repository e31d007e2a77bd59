"""What a backend sees when it examines a model, and what it measures of gradient methods."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odenet._gradients.record import Gradient
from odenet._problem.depth import Kind
from odenet._solvers.names import AnySolver

if TYPE_CHECKING:
    import numpy as np

    from odenet._nets.spec import NetSpec


Place = tuple[str, int | None]
"""A parameter by name, and the row of it that is meant; None for all of it."""


@dataclass(frozen=True)
class Part:
    """A solve inside a model: a ResidualStack, a NeuralODE or an OdeNet.

    Args:
        name: its path in the model; "" for the model itself.
        solver: as solved.
        steps: of one solve.
        kind: of its weights along depth.
        layers: for each layer (or node) the place of every weight, by the weight's name within the layer. Tied layers
            have the same places. One entry for shared weights.
        certificate: of the backward pass, the largest if it is solved several times; None without one.
        solves: how often it is solved in a forward pass.
    """

    name: str
    solver: AnySolver
    steps: int
    kind: Kind
    layers: tuple[Mapping[str, Place], ...]
    certificate: float | None = None
    solves: int = 1

    def label(self, layer: int) -> str:
        """What a table calls a layer of it: "3", "encoder.3", or "field" for shared weights of `field`."""
        if self.kind == "shared":
            return self.name or "shared"
        return f"{self.name}.{layer}" if self.name else str(layer)


@dataclass(frozen=True)
class Sample:
    """One forward and backward pass of a model on a batch by one gradient method, as NumPy.

    Args:
        loss: its value.
        gradients: by name of parameter; zeros where the loss does not depend on it.
        weights: the parameters themselves.
        parts: the solves in the model, in the order in which they stand there.
        dtype: the coarsest number type of the parameters, by name.
    """

    loss: float
    gradients: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    parts: tuple[Part, ...]
    dtype: str


def places(spec: NetSpec, prefix: str = "") -> tuple[Mapping[str, Place], ...]:
    """Where the weights of each layer of a `NetSpec` network are, which stacks them; see `Part.layers`."""
    names = [name for name in spec.shapes() if name.startswith("block.")]
    return tuple({name: (prefix + name, n) for name in names} for n in range(spec.layers))


@dataclass(frozen=True)
class Profile:
    """What one gradient method takes on a model and a batch.

    Args:
        gradient: the method.
        seconds: of loss and gradient, the median; None where it was not run.
        peak_bytes: most bytes alive at once meanwhile, beyond weights and batch; gradients are among them. Where it was
            stopped since it needs too much, what it had reached by then.
        gradient_error: the relative error against the exact gradient, the largest over the parts of the model: the
            weights of each solve, and all others. The error of the whole gradient is at most that.
        certificate: see `Stats.certificate`.
        trouble: why it could not be run, or not to its end.
    """

    gradient: Gradient
    seconds: float | None = None
    peak_bytes: int | None = None
    gradient_error: float | None = None
    certificate: float | None = None
    trouble: str | None = None

    @property
    def label(self) -> str:
        """The method as a flag spells it."""
        return self.gradient.label

    def within(self, tolerance: float) -> bool:
        """Whether the gradient error is a number of at most that."""
        return self.gradient_error is not None and self.gradient_error <= tolerance

    def fits(self, memory: int | None) -> bool:
        """Whether it ran to its end within that many bytes."""
        ran = self.trouble is None and self.peak_bytes is not None
        return ran and (memory is None or (self.peak_bytes or 0) <= memory)


@dataclass(frozen=True)
class Profiles:
    """Several methods on one model and batch.

    Args:
        rows: one a method, in the order asked for.
        dtype: the coarsest number type of the model's parameters, by name.
        counted: how bytes were counted.
        zero: whether the exact gradient of the solves is zero or not finite, so that no error can be measured.
    """

    rows: tuple[Profile, ...]
    dtype: str
    counted: str
    zero: bool


@dataclass(frozen=True)
class Choices:
    """How a solve in a model is done.

    Args:
        solver, gradient: the records.
        steps: None where it is solved to a tolerance.
    """

    solver: AnySolver
    gradient: Gradient
    steps: int | None


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
