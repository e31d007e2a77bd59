"""odenet on JAX. Importing this loads no framework; jax is imported with the first name that needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from odenet.kit import lazily
from odenet_jax._entry import METHODS, backend

if TYPE_CHECKING:
    from odenet_jax.conversion.convert import convert, unconvert
    from odenet_jax.drop_in.odeint import odeint
    from odenet_jax.gradients.solve import solve
    from odenet_jax.nets.modules import NeuralODE, OdeNet, ResidualStack
    from odenet_jax.verbs.certificate import certified_value_and_grad

_HOMES = {
    "NeuralODE": "nets.modules",
    "OdeNet": "nets.modules",
    "ResidualStack": "nets.modules",
    "certified_value_and_grad": "verbs.certificate",
    "convert": "conversion.convert",
    "odeint": "drop_in.odeint",
    "solve": "gradients.solve",
    "unconvert": "conversion.convert",
}

__all__ = [
    "METHODS",
    "NeuralODE",
    "OdeNet",
    "ResidualStack",
    "backend",
    "certified_value_and_grad",
    "convert",
    "odeint",
    "solve",
    "unconvert",
]

__getattr__, __dir__ = lazily(__name__, __all__, _HOMES)
