"""What every solver has in common, and the families of solvers that a backend may run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

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
