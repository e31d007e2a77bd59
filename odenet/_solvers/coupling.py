"""The networks of Gal et al. 2025 beside the midpoint rule: two coupled streams, and leapfrog.

Both begin with twice the same state, and divide by nothing on the way back, so that with `bits` no side information is
kept: each state is had back bit by bit if f repeats its digits (else `guard`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from odenet._solvers.bdia import TwoStepMidpoint
from odenet._solvers.step import Leaves


@dataclass(frozen=True)
class Hamiltonian(TwoStepMidpoint):
    """`x[n+1] = x[n-1] + 2 h f(x[n])` from `x[-1] = x[0]`: two streams, of which each step adds to one what it reads of
    the other.

    With blocks attention, MLP, attention, ... it is the Hamiltonian form of Gal et al. 2025, "Reversing large language
    models for efficient training and fine-tuning" (arXiv 2512.02056): `q' = q + a attention(p)`, `p' = p + a mlp(q')`,
    a = 2 h, q and p equal at the start, p (that which the last block adds to) at the end. That is the additive coupling
    of Gomez et al. 2017, "The reversible residual network", and of Kitaev et al. 2020, "Reformer". With the same f in
    all steps it is symplectic Euler on the doubled state.

    Args:
        bits, guard: as in `TwoStepMidpoint`.
    """

    name = "hamiltonian"
    summary = "two coupled streams: each step adds to one what its block makes of the other"
    source = "Gomez et al. 2017; Gal et al. 2025"
    aliases = ("additive-coupling",)
    doubled = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """1, since the second stream begins a step early."""
        return 1


@dataclass(frozen=True)
class Leapfrog(TwoStepMidpoint):
    """`x[n+1] = 2 x[n] - x[n-1] + h^2 f(x[n])` from `x[-1] = x[0]`: a network of y'' = f from rest.

    It does not solve y' = f, of which its order is 0; its error against the solution of y'' = f with y' = 0 at t0 falls
    as h. Chang et al. 2018, "Reversible architectures for arbitrarily deep residual neural networks", the second-order
    network; the leapfrog form of Gal et al. 2025 (arXiv 2512.02056).

    Args:
        bits, guard: as in `TwoStepMidpoint`.
    """

    name = "leapfrog"
    summary = "leapfrog, a network of y'' = f from rest (it does not solve y' = f)"
    source = "Chang et al. 2018; Gal et al. 2025"
    aliases = ("verlet",)
    doubled = True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """0: it solves another equation."""
        return 0

    def sign(self, n: Any, sample: Any = 0) -> Any:
        """See `TwoStep`."""
        return -1

    def _push(self, signs: Any, h: float, leaves: Leaves) -> Leaves:
        return tuple(h * h * leaf for leaf in leaves)
