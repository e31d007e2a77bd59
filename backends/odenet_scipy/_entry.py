"""What the SciPy backend is called and what it can do. Nothing here imports SciPy."""

from __future__ import annotations

from odenet import BackendEntry, Backprop
from odenet.kit import Way

backend = BackendEntry(
    name="scipy",
    framework="scipy",
    install="pip install 'odenet[reference]'",
    implementation="odenet_scipy._backend:ScipyBackend",
    methods={Backprop: Way("odenet_scipy._solve:solve_span", "odenet_scipy._solve:solve_span")},  # solve's default
    adaptive=("bosh3", "dopri5", "dop853", "radau", "bdf", "lsoda"),
)
