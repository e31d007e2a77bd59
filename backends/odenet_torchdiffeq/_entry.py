"""What the torchdiffeq backend is called and what it can do. Nothing here imports torchdiffeq."""

from __future__ import annotations

from odenet import BackendEntry, Backprop, ContinuousAdjoint, Gradient
from odenet.kit import Way
from odenet_torch import backend as torch

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
