"""Order of convergence by regression: every backend, every solver, autonomous and time-dependent fields."""

from __future__ import annotations

from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
from quick import quick

import odenet

# solver's order -> (t1, steps for the autonomous field, steps for the time-dependent one): where errors are well above
# rounding and well inside the asymptotic range
RANGES = {
    1: (4.0, (256, 512, 1024, 2048), (256, 512, 1024, 2048)),
    2: (4.0, (64, 128, 256, 512), (64, 128, 256, 512)),
    3: (4.0, (64, 128, 256, 512), (64, 128, 256, 512)),
    4: (4.0, (64, 96, 128, 256), (64, 96, 128, 256)),
    5: (4.0, (96, 128, 192, 256), (96, 128, 192, 256)),
    8: (10.0, (20, 24, 28, 32), (48, 56, 64, 80)),
}
Y0 = {"duffing": (np.asarray(1.3), np.asarray(0.4)), "forced": (np.asarray(1.3), np.asarray(0.4))}


def duffing(t: Any, y: Any) -> Any:
    """x'' = -x - x^3 / 2: autonomous."""
    return y[1], -y[0] - 0.5 * y[0] * y[0] * y[0]


def forced(t: Any, y: Any) -> Any:
    """A linear oscillator whose frequency, damping and force change with time."""
    return y[1] + 0.2 * t * t, -(1 + 0.3 * t) * y[0] + 0.1 * t * y[1]


FIELDS = {"duffing": duffing, "forced": forced}


@cache
def exact(field: str, t1: float) -> np.ndarray:
    """The solution to rounding, by SciPy's eighth-order solver: not a method of this library."""
    from scipy.integrate import solve_ivp

    found = solve_ivp(
        lambda t, y: FIELDS[field](t, y), (0, t1), [1.3, 0.4], method="DOP853", rtol=1e-13, atol=1e-15, max_step=0.02
    )
    return found.y[:, -1]


REVERSIBLE = (
    "reversible-heun",
    "alf",
    "reversible:euler",
    "reversible:midpoint",
    "reversible:kutta3",
    "reversible:rk4",
)


# each solver's coefficients are held to all conditions of order in core/test_tableau, and its steps to a loop by them
# in test_agreement: here the quick suite takes each order and each construction, where the nodes show and where not
FORCED = ("euler", "heun", "bosh3", "rk4", "dopri5", "dopri8", *("reversible-heun", "alf", "reversible:midpoint"))
AUTONOMOUS = ("rk4", "reversible-heun", "alf", "reversible:kutta3")
SOLVERS = (*odenet.SOLVERS, *REVERSIBLE)


@pytest.mark.parametrize(
    ("solver", "field"),
    quick(
        [(solver, field) for solver in SOLVERS for field in FIELDS],
        [*((solver, "forced") for solver in FORCED), *((solver, "duffing") for solver in AUTONOMOUS)],
    ),
)
def test_order(thorough: str, solver: str, field: str) -> None:
    """Of a reversible solver as of the method that it is made from; of the two-state methods two."""
    order = odenet.solver(solver).order
    t1, *ranges = RANGES[order]
    steps = ranges[list(FIELDS).index(field)]
    errors = [
        np.abs(
            cases.flat(
                thorough, odenet.solve(FIELDS[field], Y0[field], t1=t1, steps=n, solver=solver, backend=thorough).y1
            )
            - exact(field, t1)
        ).max()
        for n in steps
    ]
    fitted = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert fitted == pytest.approx(order, abs=0.15), errors
