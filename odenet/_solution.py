"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from odenet import _tree
from odenet._gradients import gradient


class Result(Enum):
    """How a solve ended; the value is the message."""

    SUCCESS = "success"
    NONFINITE = (
        "the solution is not finite: the field grew beyond the number type, or the step is too large for it; "
        "take more steps, or look at the field near the first time that is not finite"
    )


@dataclass
class Stats:
    """What a solve did.

    Args:
        backend, solver, gradient: by name, as used.
        steps: of the forward solve.
        f_evaluations: of the field in the forward solve.
        residual: set by a backward pass that rebuilds states; see `certificate`.
    """

    backend: str
    solver: str
    gradient: str
    steps: int
    f_evaluations: int
    residual: Any = None

    @property
    def certificate(self) -> float | None:
        """The reconstruction residual: over all steps, the largest `|y[n+1] - z - D(z)| / |y[n+1]|`.

        It says by how much a rebuilt state fails to step forward to the state it was rebuilt from. None before a
        backward pass, or for a gradient method that rebuilds nothing.
        """
        return None if self.residual is None else float(self.residual)

    @property
    def gradient_error_estimate(self) -> float | None:
        """The relative error `||g - g_backprop|| / ||g_backprop||` to expect of the whole gradient.

        It comes from the certificate alone (see `Gradient.estimate`) and is no bound: with the corrected discrete
        adjoint the true error was 0.16 to 2.4 times as large where f is smooth, and up to 40 times with ReLU
        (docs/how-to/diagnose-gradients.md). None where there is no certificate.
        """
        certificate = self.certificate
        return None if certificate is None else gradient(self.gradient).estimate(certificate, self.steps)


@dataclass
class Solution:
    """The solution of a solve.

    Args:
        ts: times kept, shape (T,), in the state's real number type (float32 for half precision).
        ys: the state's tree, each leaf with a leading time axis of length T.
        stats: what it took.
    """

    ts: Any
    ys: Any
    stats: Stats

    @property
    def y1(self) -> Any:
        """The state at the last time kept."""
        return _tree.map(lambda leaf: leaf[-1], self.ys)

    @property
    def result(self) -> Result:
        """Whether the solution is finite. Looked up when asked, since it reads the numbers on the host."""
        finite = all(bool((leaf - leaf == 0).all()) for leaf in _tree.leaves(self.ys))
        return Result.SUCCESS if finite else Result.NONFINITE
