"""odenet on PyTorch. Importing this loads no framework; torch is imported with the first name that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from odenet.kit import lazily
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

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
