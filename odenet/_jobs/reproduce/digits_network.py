"""A small network on digits, trained by backpropagation to take gradients of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._gradients.names import Backprop, Gradient
from odenet._jobs.data.digits import batch
from odenet._jobs.reproduce.methods import BLOCKS, Errors, built, errors
from odenet._nets.spec import NetSpec
from odenet._problem.depth import Depth
from odenet.theory import smoothness

BATCH = 64  # digits
_WIDTH = 32
_RATE, _MOMENTUM, _DECAY = 0.1, 0.9, 5e-4
_SEEDS = 1000  # batches of one seed; the last of them is not trained on


@dataclass(frozen=True)
class DigitsNetwork:
    """A small network on digits, blocks `w2 relu(w1 y + b1) + b2` of width 32, to be trained and differentiated.

    Args:
        backend, device: by which, and where; in float64.
        solver, along: names of the solver and of how weights go along depth.
        depth: steps.
        seed: of the batches.
    """

    backend: str
    device: str
    solver: str
    along: Any
    depth: int
    seed: int

    @property
    def spec(self) -> NetSpec:
        """What its weights are, and their shapes."""
        return NetSpec("mlp", self.depth, width=_WIDTH, hidden=_WIDTH, along=self.along)

    @property
    def tied(self) -> DigitsNetwork:
        """The same network with one block for all depths."""
        return replace(self, along="shared")

    def descend(self, weights: Mapping[str, np.ndarray], steps: int) -> Descended:
        """Train by backpropagation and gradient descent with momentum, each step on a batch of its own.

        Args:
            weights: to start from.
            steps: at least one.
        """
        trainer = _registry.backend(self.backend).trainer(
            self._built(weights, Backprop()), momentum=_MOMENTUM, weight_decay=_DECAY
        )
        loss = correct = float("nan")
        for step in range(steps):
            done = trainer.step(*batch(BATCH, _SEEDS * self.seed + step), _RATE)
            loss, correct = done.loss, done.correct
        return Descended(trainer.read(), loss, correct / BATCH)

    def errors(self, weights: Mapping[str, np.ndarray], methods: Mapping[str, Gradient]) -> dict[str, Errors]:
        """The errors of each method's gradient of one batch, by name of the method."""
        examples = batch(BATCH, _SEEDS * self.seed + _SEEDS - 1)
        return errors(self.backend, self.device, self.spec, weights, self.solver, examples, methods)

    def smoothness(self, weights: Mapping[str, np.ndarray]) -> float:
        """How smooth the weights of the blocks are in depth, see `odenet.theory.smoothness`."""
        return smoothness(Depth({name: w for name, w in weights.items() if name.startswith(BLOCKS)}, self.along))

    def _built(self, weights: Mapping[str, np.ndarray], method: Gradient) -> Any:
        return built(self.backend, self.device, self.spec, weights, self.solver, method, "float64")


@dataclass(frozen=True)
class Descended:
    """Where training went.

    Args:
        weights: in the end.
        loss, accuracy: of the last batch, before the step on it.
    """

    weights: dict[str, np.ndarray]
    loss: float
    accuracy: float
