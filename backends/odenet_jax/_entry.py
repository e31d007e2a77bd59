"""What the JAX backend is called and what it can do. Nothing here imports jax."""

from __future__ import annotations

from odenet import BackendEntry, Backprop, Checkpoint, ContinuousAdjoint, DiscreteAdjoint, Gradient, Reversible
from odenet.kit import Way

_ROOM = "odenet_jax.gradients"

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
    name="jax",
    framework="jax",
    install="pip install 'odenet[jax]'",
    implementation="odenet_jax._backend:JaxBackend",
    array_modules=("jax", "jaxlib"),
    methods=METHODS,
    families=("runge-kutta", "reversible"),
    adaptive_families=("runge-kutta",),
    networks=True,
    # XLA's loader of kept programs reports at level ERROR, for each, that the processor lacks "+prefer-no-gather",
    # which is no instruction (openxla/xla issue 44565); what goes wrong in XLA is raised all the same
    environment={"TF_CPP_MIN_LOG_LEVEL": "3"},
)
