"""What the diffrax backend is called and what it can do. Nothing here imports diffrax."""

from __future__ import annotations

from odenet import BackendEntry, Backprop, Checkpoint, ContinuousAdjoint, Gradient
from odenet.kit import Way
from odenet_jax import backend as jax

_FILE = "odenet_diffrax._adjoints"

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
