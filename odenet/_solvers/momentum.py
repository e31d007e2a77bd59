"""The momentum residual network: in the states alone a two-step recurrence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odenet._errors import InputError, shown
from odenet._solvers.two_step import TwoStep


@dataclass(frozen=True)
class Momentum(TwoStep):
    """`v' = g v + (1-g) h f(x)`, `x' = x + v'`, from v = 0: the momentum residual network.

    In x alone it is the two-step recurrence with -g. Sander, Ablin, Blondel and Peyre 2021, "Momentum residual neural
    networks", equation 3.

    Args:
        gamma: g, in (0, 1). The backward pass divides by it at every step.

    Raises:
        InputError: another gamma.
    """

    gamma: float = 0.9

    name = "momentum"
    summary = "momentum residual network: state and velocity, one evaluation a step"
    source = "Sander, Ablin, Blondel, Peyre 2021"
    aliases = ("momentumnet",)
    bits = None
    guard = False
    doubled = True  # v is 0 where x[-1] = x[0]

    def __post_init__(self) -> None:
        number = isinstance(self.gamma, (int, float)) and not isinstance(self.gamma, bool)
        if not (number and 0 < self.gamma < 1):
            raise InputError(f"gamma={shown(self.gamma)} of momentum", "a number above 0, below 1")

    @property
    def size(self) -> float:
        return self.gamma

    def sign(self, n: Any, sample: Any = 0) -> Any:
        return -1
