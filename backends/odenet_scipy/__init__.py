"""SciPy's `solve_ivp` behind the same interface, on NumPy arrays: a reference for solutions. Loads nothing.

Tolerances only, and no gradients. RK23 is our bosh3, RK45 our dopri5; DOP853, Radau, BDF and LSODA have names
of their own. Its `rtol` and `atol` mean what odenet's do. Steps are of its own choice but for `first_step`, `max_step`
and `min_step` (LSODA alone). `jump_t` and the ends of piecewise layers are where it is started anew.
"""

from __future__ import annotations

from odenet_scipy._entry import backend

__all__ = ["backend"]


def __dir__() -> list[str]:
    return sorted(__all__)
