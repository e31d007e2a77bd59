"""What every solver has in common, and the families of solvers that a backend may run; among them those that odenet has
no steps for, implicit ones and others, which a backend brings from its own package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from odenet._errors import UnsupportedError
from odenet._solvers.tableau import Tableau

Family = Literal["runge-kutta", "reversible", "delegated"]
FAMILIES: tuple[Family, ...] = ("runge-kutta", "reversible", "delegated")
"""Explicit Runge-Kutta methods; those whose steps can be undone exactly; those that a backend's own package takes."""


class AnySolver(ABC):
    """A solver as data: a record of one of the families.

    A family is known by its name. A backend names the families that it runs (`BackendEntry`), and is asked for no
    other: a solver of a family of your own is offered by the backends that name it.
    """

    name: str
    summary: str
    source: str
    aliases: tuple[str, ...]
    family: ClassVar[str]
    order: int
    """Order of convergence of the solution."""

    @property
    def label(self) -> str:
        """The spelling that a flag takes: the name, with options."""
        return self.name

    @property
    def reversible(self) -> bool:
        """Whether steps can be undone exactly."""
        return False

    @property
    def estimates_error(self) -> bool:
        """Whether it can be used with tolerances."""
        return False

    @abstractmethod
    def evaluations(self, steps: int) -> int:
        """Field evaluations of a solve in that many steps.

        Raises:
            UnsupportedError: that is not known before the solve.
        """


class StagedSolver(AnySolver):
    """A solver whose steps odenet takes itself, stage by stage."""

    stages: int
    """Field evaluations of one fixed step."""
    increments: Tableau
    """Tableau of the Runge-Kutta method whose increments its steps use; the solver's own only in its own family."""


@dataclass(frozen=True)
class DelegatedSolver(AnySolver):
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

    family = "delegated"

    @property
    def estimates_error(self) -> bool:
        """True: the package of the solver estimates the error."""
        return True

    def evaluations(self, steps: int) -> NoReturn:
        """See `AnySolver`: how often f is evaluated is not known before the solve.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"how often solver {self.label} evaluates f in {steps} steps", "what Solution.stats says after the solve"
        )


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
    record.name: record for record in list(globals().values()) if isinstance(record, DelegatedSolver)
}
