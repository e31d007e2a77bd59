"""Solvers that odenet has no steps for: implicit ones and others, which a backend brings from its own package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from odenet._errors import UnsupportedError


@dataclass(frozen=True)
class DelegatedSolver:
    """A solver by name, which the backends that name it in their `BackendEntry` delegate to their package.

    Args:
        name: what a user calls it.
        order: of convergence of the solution, the highest for a method that changes its order.
        summary: one line for `odenet list solvers`.
        source: where it was published.
        implicit: whether it solves equations in each step, which stiff problems need.
        aliases: other names for the same method.
    """

    name: str
    order: int
    summary: str
    source: str
    implicit: bool = True
    aliases: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The spelling that a flag takes."""
        return self.name

    @property
    def reversible(self) -> bool:
        """Whether steps can be undone exactly."""
        return False

    @property
    def tableau(self) -> NoReturn:
        """There is none: this is where a backend with steps of odenet's own finds out.

        Raises:
            UnsupportedError: always, with the backends that offer the solver.
        """
        self._refuse()

    @property
    def stages(self) -> NoReturn:
        """As `tableau`."""
        self._refuse()

    def evaluations(self, steps: int) -> NoReturn:
        """As `tableau`: how often f is evaluated is not known before the solve."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError(
            f"solver {self.label} where odenet takes the steps, for which it has no coefficients",
            f"odenet.solve(..., solver={self.name!r}, backend=...) with {' or '.join(offering(self.name)) or 'none'}",
        )


def offering(name: str) -> tuple[str, ...]:
    """The known backends that name a solver."""
    from odenet._backend.registry import known  # above this module: asked only when there is something to say

    return tuple(each.name for each in known().values() if name in (*(each.solvers or ()), *(each.adaptive or ())))


IMPLICIT_EULER = DelegatedSolver("implicit-euler", 1, "the backward Euler method", "Euler 1768", aliases=("beuler",))
KVAERNO3 = DelegatedSolver("kvaerno3", 3, "an ESDIRK 3(2) pair, L-stable", "Kvaerno 2004")
KVAERNO4 = DelegatedSolver("kvaerno4", 4, "an ESDIRK 4(3) pair, L-stable", "Kvaerno 2004")
KVAERNO5 = DelegatedSolver("kvaerno5", 5, "an ESDIRK 5(4) pair, L-stable", "Kvaerno 2004")
RADAU = DelegatedSolver("radau", 5, "Radau IIA with three stages, L-stable", "Hairer, Wanner 1996", aliases=("radau5",))
BDF = DelegatedSolver("bdf", 5, "backward differentiation of orders 1 to 5", "Shampine, Reichelt 1997")
LSODA = DelegatedSolver("lsoda", 12, "Adams or BDF, whichever the stiffness asks for", "Petzold 1983")
DOP853 = DelegatedSolver(
    "dop853", 8, "Dormand and Prince's 8(5,3) triple", "Hairer, Norsett, Wanner 1993", implicit=False
)

DELEGATED_SOLVERS: dict[str, DelegatedSolver] = {
    found.name: found for found in list(globals().values()) if isinstance(found, DelegatedSolver)
}
