"""torchdiffeq behind the same interface: the reference that odenet_torch is compared with. Nothing is loaded here.

What is used of it (release 0.2.5), at its best settings:

- Equal steps by `grid_constructor` with times counted in integers, since `step_size=1/N` in floats takes N+1 steps for
  some N. Theirs are `euler`, `midpoint`, `heun2` (our heun) and `rk4`, which is the 3/8 rule: our rk38.
- Tolerances by `adaptive_heun` (our heun), `fehlberg2`, `bosh3`, `dopri5`, `dopri8`; times in float64, as is its
  default, whatever the state's type is.
- Steps end at the times that are kept (`step_t`): its default steps over them and interpolates to order 4, which costs
  dopri8 most of its digits.
- backprop is `odeint`. continuous-adjoint is `odeint_adjoint` with every tensor that f reads as `adjoint_params`, and
  with `adjoint_options={"norm": "seminorm"}` (its documentation's advice for speed) unless seminorm=no.
- Weights along depth are read by step and stage with equal steps, told by `callback_step`, and by time with
  tolerances, the ends of piecewise layers being `jump_t`. Its backward Euler step reads time and weights where it
  starts, at t[n+1]; odenet's reads those of the layer, at t[n].

Not offered, since it has none: checkpoint, discrete-adjoint, reversible; dense output (but of dopri5, for one tensor);
directions and tolerances of events (located to within `atol`); proportional and derivative control; steps of a sample.
"""

from __future__ import annotations

from odenet import BackendEntry, Backprop, ContinuousAdjoint, Gradient
from odenet.kit import Way
from odenet_torch import backend as torch

__all__ = ["METHODS", "backend"]

_FILE = "odenet_torchdiffeq._integrals"

METHODS: dict[type[Gradient], Way] = {
    Backprop: Way(f"{_FILE}:backprop_fixed", f"{_FILE}:backprop_adaptive"),
    ContinuousAdjoint: Way(
        f"{_FILE}:adjoint_fixed", f"{_FILE}:adjoint_adaptive", options=("steps", "rtol", "atol", "seminorm")
    ),
}

backend = BackendEntry(
    name="torchdiffeq",
    framework="torchdiffeq",
    install="pip install 'odenet[reference]'",
    implementation="odenet_torchdiffeq._backend:TorchdiffeqBackend",
    solvers=("euler", "heun", "midpoint", "rk38"),
    adaptive=("heun", "fehlberg2", "bosh3", "dopri5", "dopri8"),
    methods=METHODS,
    networks=True,
    base=torch,
)


def __dir__() -> list[str]:
    return sorted(__all__)
