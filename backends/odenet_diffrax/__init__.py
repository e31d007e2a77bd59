"""diffrax as a backend: the reference that odenet_jax is compared with, and implicit solvers. Loads nothing.

What is used of it (release 0.7.2), at its best settings:

- Equal steps by `ConstantStepSize`, which counts them in integers; `max_steps` is their number, `throw=False`.
- Tolerances by `PIDController`, within `ClipStepSizeController` where there are `step_t` or `jump_t`.
- backprop with equal steps is `RecursiveCheckpointAdjoint(checkpoints=N)`: a state a step is kept and its stages are
  computed again. On 64 steps of Heun (32 x 64 states, tanh layer, two CPU cores) loss and gradient took 9.4 ms and
  2.2 s of compilation; `DirectAdjoint` 14.5 ms and 3.6 s, the default number of checkpoints 19.9 ms and 3.9 s. With
  tolerances it is the default number, since memory would follow `max_steps`. checkpoint:states=K is
  `RecursiveCheckpointAdjoint(checkpoints=K)`.
- continuous-adjoint is `BacksolveAdjoint`, with `adjoint_rms_seminorm` unless seminorm=no.
- Weights along depth with equal steps: a `lax.scan` over layers (or intervals), each a `diffeqsolve` whose `args` are
  that layer's weights, so that a gradient costs as much as there are layers. The adjoint starts anew in each, from the
  state that the scan keeps. With tolerances weights are read by time, the ends of piecewise layers being `jump_ts`.
- Implicit solvers find roots with their default, chord methods, to the controller's tolerances. With equal steps, where
  `VeryChord` diverged for Kvaerno's on y' = -2 t y, they have Newton's method, to 1e-10 (float64) or 1e-5 (float32).

Not offered, since it has none: discrete-adjoint, the reversible gradient (`ReversibleHeun` it has; this release no
adjoint for it), fehlberg2, kutta3, ssprk3, rk4, rk38; tolerances that differ between entries; and not offered here:
complex states (its own warning says that they may not work), ReversibleHeun with tolerances (its first order dense
output). KenCarp3/4/5 and Sil3 want the field split into two terms.
"""

from __future__ import annotations

from odenet import BackendEntry, Backprop, Checkpoint, ContinuousAdjoint, Gradient
from odenet.kit import Way
from odenet_jax import backend as jax

__all__ = ["METHODS", "backend"]

_FILE = "odenet_diffrax._solvers"

METHODS: dict[type[Gradient], Way] = {
    Backprop: Way(f"{_FILE}:backprop_fixed", f"{_FILE}:backprop_adaptive"),
    Checkpoint: Way(f"{_FILE}:checkpoint_fixed", f"{_FILE}:checkpoint_adaptive", options=("states",)),
    ContinuousAdjoint: Way(
        f"{_FILE}:backsolve_fixed", f"{_FILE}:backsolve_adaptive", options=("steps", "rtol", "atol", "seminorm")
    ),
}

_IMPLICIT = ("implicit-euler", "kvaerno3", "kvaerno4", "kvaerno5")

backend = BackendEntry(
    name="diffrax",
    framework="diffrax",
    install="pip install 'odenet[reference]'",
    implementation="odenet_diffrax._backend:DiffraxBackend",
    solvers=(
        "euler",
        "heun",
        "midpoint",
        "ralston",
        "bosh3",
        "dopri5",
        "tsit5",
        "dopri8",
        "reversible-heun",
        *_IMPLICIT,
    ),
    adaptive=("heun", "bosh3", "dopri5", "tsit5", "dopri8", *_IMPLICIT),
    methods=METHODS,
    networks=True,
    base=jax,
)


def __dir__() -> list[str]:
    return sorted(__all__)
