"""odenet on PyTorch. Importing this loads no framework; torch is imported with the first name that needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from odenet import BackendEntry

if TYPE_CHECKING:
    from odenet_torch._drop_in import odeint, odeint_adjoint, odeint_dense, odeint_event
    from odenet_torch._nets import NeuralODE, OdeNet, ResidualStack
    from odenet_torch._solve import solve
    from odenet_torch.conversion.convert import convert

backend = BackendEntry(
    name="torch",
    framework="torch",
    install="pip install 'odenet[torch]'",
    implementation="odenet_torch._backend:TorchBackend",
    array_modules=("torch",),
)

_HOMES = {
    "NeuralODE": "_nets",
    "OdeNet": "_nets",
    "ResidualStack": "_nets",
    "convert": "conversion.convert",
    "odeint": "_drop_in",
    "odeint_adjoint": "_drop_in",
    "odeint_dense": "_drop_in",
    "odeint_event": "_drop_in",
    "solve": "_solve",
}

__all__ = [
    "NeuralODE",
    "OdeNet",
    "ResidualStack",
    "backend",
    "convert",
    "odeint",
    "odeint_adjoint",
    "odeint_dense",
    "odeint_event",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
