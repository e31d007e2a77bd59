"""What the torch backend is called and what it can do. Nothing here imports torch."""

from __future__ import annotations

from odenet import BackendEntry, Backprop, Checkpoint, ContinuousAdjoint, DiscreteAdjoint, Gradient, Reversible
from odenet.kit import Way

_ROOM = "odenet_torch.gradients"

METHODS: dict[type[Gradient], Way] = {
    Backprop: Way(f"{_ROOM}.backprop:fixed", f"{_ROOM}.backprop:adaptive"),
    Checkpoint: Way(
        f"{_ROOM}.rounded_states:fixed",
        f"{_ROOM}.checkpoint:adaptive",
        adaptive_options=("segments", "states", "memory"),
    ),
    DiscreteAdjoint: Way(f"{_ROOM}.discrete_adjoint:fixed", f"{_ROOM}.discrete_adjoint:adaptive"),
    ContinuousAdjoint: Way(f"{_ROOM}.continuous_adjoint:fixed", f"{_ROOM}.continuous_adjoint:adaptive"),
    Reversible: Way(f"{_ROOM}.reversible:fixed"),
}
"""What is done for each gradient method; another package adds its own by `odenet.kit.Method`."""

backend = BackendEntry(
    name="torch",
    framework="torch",
    install="pip install 'odenet[torch]'",
    implementation="odenet_torch._backend:TorchBackend",
    array_modules=("torch",),
    methods=METHODS,
    families=("runge-kutta", "reversible"),
    adaptive_families=("runge-kutta",),
    networks=True,
    compiles=True,
)
