"""odenet on PyTorch. Importing this loads no framework; torch is imported with the first name that needs it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from odenet_torch._entry import METHODS, backend

if TYPE_CHECKING:
    from odenet_torch.conversion.convert import convert, unconvert
    from odenet_torch.drop_in.odeint import odeint, odeint_adjoint, odeint_dense, odeint_event
    from odenet_torch.gradients.solve import solve
    from odenet_torch.nets.modules import NeuralODE, OdeNet, ResidualStack

_HOMES = {
    "NeuralODE": "nets.modules",
    "OdeNet": "nets.modules",
    "ResidualStack": "nets.modules",
    "convert": "conversion.convert",
    "odeint": "drop_in.odeint",
    "odeint_adjoint": "drop_in.odeint",
    "odeint_dense": "drop_in.odeint",
    "odeint_event": "drop_in.odeint",
    "solve": "gradients.solve",
    "unconvert": "conversion.convert",
}

__all__ = [
    "METHODS",
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
    "unconvert",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
