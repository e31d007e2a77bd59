"""What `odenet solve` checks before it solves, with equal steps and with tolerances."""

from __future__ import annotations

from collections.abc import Sequence

from odenet._backend.registry import backend, entry, require
from odenet._gradients.names import Backprop
from odenet._solvers.names import AnySolver


def require_offered(
    backends: Sequence[str], solvers: Sequence[AnySolver], dtype: str, device: str, *, adaptive: bool = False
) -> None:
    """Raises whatever is wrong with the choices, before the first of them is solved.

    Args:
        backends, solvers: all of them, each with each.
        dtype, device: of the state.
        adaptive: whether steps follow a tolerance.

    Raises:
        OdenetError: a backend that is not there, does not offer a solver, or has no such number type or device.
    """
    for name in backends:
        for solver in solvers:
            require(entry(name), solver, Backprop(), adaptive=adaptive)
        with backend(name).prepare(dtype, device):
            pass
