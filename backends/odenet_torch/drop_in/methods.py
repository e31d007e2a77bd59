"""torchdiffeq's method names, and which steps of ours they are."""

from __future__ import annotations

import importlib
from fractions import Fraction
from types import ModuleType

from odenet import SOLVERS, BackendUnavailableError, Solver, UnknownNameError
from odenet.kit import Tableau, shown

_THIRD = Fraction(1, 3)
HEUN3 = Solver(
    "heun3",
    Tableau(((), (_THIRD,), (0, 2 * _THIRD)), (Fraction(1, 4), 0, Fraction(3, 4)), (0, _THIRD, 2 * _THIRD), 3),  # pyright: ignore[reportArgumentType]
    "Heun's third-order method",
    "Heun 1900",
)
ADAPTIVE: dict[str, Solver] = {
    **{name: SOLVERS[name] for name in ("dopri8", "dopri5", "bosh3", "fehlberg2")},
    "adaptive_heun": SOLVERS["heun"],
    "tsit5": SOLVERS["tsit5"],
}
FIXED: dict[str, Solver] = {
    "euler": SOLVERS["euler"],
    "midpoint": SOLVERS["midpoint"],
    "heun2": SOLVERS["heun"],
    "heun3": HEUN3,
    "rk4": SOLVERS["rk38"],
}
"""`rk4` is Kutta's 3/8 rule there."""
DELEGATED = ("explicit_adams", "implicit_adams", "fixed_adams", "scipy_solver")


def delegated(*names: str | None) -> bool:
    """Whether one of these methods is left to torchdiffeq itself.

    Raises:
        UnknownNameError: of a method.
    """
    for name in names:
        if name is not None and not (isinstance(name, str) and name in (*ADAPTIVE, *FIXED, *DELEGATED)):
            raise UnknownNameError(
                f"there is no method called {shown(name)}", ", ".join((*ADAPTIVE, *FIXED, *DELEGATED))
            )
    return any(name in DELEGATED for name in names)


def torchdiffeq() -> ModuleType:
    """The package.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("torchdiffeq")
    except ImportError as error:
        raise BackendUnavailableError(
            f"the methods {', '.join(DELEGATED)} are torchdiffeq's own, which cannot be imported ({error})",
            f"{', '.join((*ADAPTIVE, *FIXED))} without it",
            "pip install torchdiffeq",
        ) from error
