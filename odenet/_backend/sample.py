"""What a backend sees when it examines a model: the solves in it, and one gradient of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odenet._problem.depth import Kind
from odenet._solvers.names import AnySolver

if TYPE_CHECKING:
    import numpy as np

    from odenet._nets.spec import NetSpec

Place = tuple[str, int | None]
"""A parameter by name, and the row of it that is meant; None for all of it."""


@dataclass(frozen=True)
class Part:
    """A solve inside a model: a ResidualStack, a NeuralODE or an OdeNet.

    Args:
        name: its path in the model; "" for the model itself.
        solver: as solved.
        steps: of one solve.
        kind: of its weights along depth.
        layers: for each layer (or node) the place of every weight, by the weight's name within the layer. Tied layers
            have the same places. One entry for shared weights.
        certificate: of the backward pass, the largest if it is solved several times; None without one.
        solves: how often it is solved in a forward pass.
    """

    name: str
    solver: AnySolver
    steps: int
    kind: Kind
    layers: tuple[Mapping[str, Place], ...]
    certificate: float | None = None
    solves: int = 1

    def label(self, layer: int) -> str:
        """What a table calls a layer of it: "3", "encoder.3", or "field" for shared weights of `field`."""
        if self.kind == "shared":
            return self.name or "shared"
        return f"{self.name}.{layer}" if self.name else str(layer)


@dataclass(frozen=True)
class Sample:
    """One forward and backward pass of a model on a batch by one gradient method, as NumPy.

    Args:
        loss: its value.
        gradients: by name of parameter; zeros where the loss does not depend on it.
        weights: the parameters themselves.
        parts: the solves in the model, in the order in which they stand there.
        dtype: the coarsest number type of the parameters, by name.
    """

    loss: float
    gradients: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    parts: tuple[Part, ...]
    dtype: str


def places(spec: NetSpec, prefix: str = "") -> tuple[Mapping[str, Place], ...]:
    """Where the weights of each layer of a `NetSpec` network are, which stacks them; see `Part.layers`."""
    names = [name for name in spec.shapes() if name.startswith("block.")]
    return tuple({name: (prefix + name, n) for name in names} for n in range(spec.layers))
