"""SciPy's `solve_ivp` behind the same interface, on NumPy arrays: a reference for solutions. Loads nothing.

Tolerances only, and no gradients. RK23 is our bosh3, RK45 our dopri5; DOP853, Radau, BDF and LSODA have names
of their own. Its `rtol` and `atol` mean what odenet's do. Steps are of its own choice but for `first_step`, `max_step`
and `min_step` (LSODA alone). `jump_t` and the ends of piecewise layers are where it is started anew.
"""

from __future__ import annotations

from odenet import BackendEntry, Backprop
from odenet.kit import Way

__all__ = ["backend"]

backend = BackendEntry(
    name="scipy",
    framework="scipy",
    install="pip install 'odenet[reference]'",
    implementation="odenet_scipy._backend:ScipyBackend",
    methods={Backprop: Way("odenet_scipy._backend:solve_span", "odenet_scipy._backend:solve_span")},  # solve's default
    adaptive=("bosh3", "dopri5", "dop853", "radau", "bdf", "lsoda"),
)


def __dir__() -> list[str]:
    return sorted(__all__)
