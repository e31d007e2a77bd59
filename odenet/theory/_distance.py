"""The distance of a network to its Neural ODE, with the bound of Proposition 1 (Sander, Ablin and Peyre 2022)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from odenet._literals import BackendName, SolverName
from odenet._solvers.names import AnySolver
from odenet._solvers.names import solver as solver_named
from odenet.theory._linearised import constant_given, growth, second_derivative
from odenet.theory._linearised import lipschitz as estimated
from odenet.theory._network import ByStep, Network, continued, network, sizes

RESOLVED = 1e-3
"""An error of the Neural ODE's solution below this part of the distance leaves the distance what it is."""

_MOST = 64  # steps of rk4 in each of the network's


@dataclass(frozen=True)
class Distance(ByStep):
    """How far a network's states are from its Neural ODE's, with what bounds that.

    Distances are Euclidean norms, in units of the state: of each sample (the largest is taken) or of the whole state.

    Args:
        by_step: `|y[n] - x(t[n])|`, shape (N + 1,); 0 at n = 0.
        error: the largest of the Neural ODE's own solution at these times, estimated by halving its steps.
        lipschitz: L, a lower estimate unless it was given: `max |df/dy|` at the Neural ODE's states (at 33 to 65 of
            them where there are more), by power iteration.
        second_derivative: `max |x''|`, by differences of the Neural ODE's slopes; a lower estimate, near for smooth
            fields.
        bound: `h (e^(L T) - 1) / (2 L) max |x''|` with these constants, T = |t1 - t0| and h = T / N: for T = 1 that of
            Proposition 1. As good as they are. None for solvers other than Euler, of which it does not speak.
    """

    error: float
    lipschitz: float
    second_derivative: float
    bound: float | None

    @property
    def resolved(self) -> bool:
        """Whether the Neural ODE was solved well enough to say so: its error is below a thousandth of the distance."""
        return self.error <= RESOLVED * self.largest


def distance(
    field: Callable[..., Any],
    y0: Any,
    weights: Any,
    *,
    t0: float = 0.0,
    t1: float = 1.0,
    steps: int | None = None,
    solver: SolverName | AnySolver = "euler",
    lipschitz: float | None = None,
    batched: bool = False,
    backend: BackendName | None = None,
    device: str = "cpu",
) -> Distance:
    """The distance of a network to the Neural ODE through its weights, step by step, and the bound of Proposition 1.

    The Neural ODE is `x' = field(t, x, w(t))` with weights on straight lines between the layers': layer n stands at
    the start of step n, and the last one's weights hold over the last step. Linear weights are as they are. It is
    solved by rk4, with ever shorter steps until the error that halving them shows is below a thousandth of the distance
    (see `Distance.resolved`), or 64 of them in each step of the network.

    Of a ResidualStack of either backend: `distance(stack.field, x, stack.depth, solver=stack.solver, t0=stack.t0,
    t1=stack.t1)`.

    Args:
        field: `field(t, y, w)`, as in `odenet.solve`. It is computed on `device`, wherever the arrays given are.
        y0: the state at t0, real: an array of any shape or a tree of them.
        weights: a `Depth`, or a tree that is the same at all depths.
        t0, t1: times.
        steps: N of shared weights; else the layers (piecewise) or a multiple of the intervals (linear).
        solver: of the network.
        lipschitz: L of the field in the state, at all depths, where it is known; None estimates it.
        batched: whether the first axis of every array in y0 is one of samples that have nothing to do with each other:
            norms are then of one sample, which makes the bound sharper.
        backend: as in `odenet.solve`.
        device: of the backend.

    Raises:
        InputError: a complex state, piecewise weights with several steps a layer, shared ones without `steps`.
        DepthError: layers that cannot be interpolated.

    Source: Sander, Ablin and Peyre 2022, Proposition 1.
    """
    net = network(field, y0, weights, t0=t0, t1=t1, steps=steps, backend=backend, device=device, batched=batched)
    constant_given(lipschitz)
    named = solver_named(solver)
    states = net.trajectory(net.depth, named, net.steps)
    ode, substeps, error = _solved(net, states)
    nodes = ode[::substeps]
    constant = lipschitz if lipschitz is not None else estimated(net, continued(net.depth), nodes)
    second = second_derivative(net, ode, substeps)
    return Distance(
        sizes(states - nodes),
        error,
        constant,
        second,
        abs(net.step) * growth(constant, abs(t1 - t0)) * second / 2 if named.name == "euler" else None,
    )


def _solved(net: Network, states: np.ndarray) -> tuple[np.ndarray, int, float]:
    """The Neural ODE's states, how many steps of its solve lie in one of the network's, and their error."""
    depth = continued(net.depth)
    substeps = 2
    fine = net.trajectory(depth, "rk4", net.steps * substeps)
    previous, error = np.inf, np.inf
    while True:
        coarse = fine
        substeps *= 2
        fine = net.trajectory(depth, "rk4", net.steps * substeps)
        # of order 4, so that half the steps have 16 times the error
        previous, error = error, float(sizes(coarse - fine[::2]).max()) / 15
        apart = float(sizes(states - fine[::substeps]).max())
        if error <= RESOLVED * apart or error > previous / 2 or substeps >= _MOST:  # or all that is left is rounding
            return fine, substeps, error
