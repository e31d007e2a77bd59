"""Training a network step by step: what a backend has to do for `odenet train`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from odenet._errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from odenet._nets.spec import NetSpec

WEIGHT, VELOCITY, OPTIMIZER = "weight.", "momentum.", "optimizer."  # how the names of a state begin


@dataclass(frozen=True)
class TrainingStep:
    """One step of training, on one batch and before the weights were changed by it.

    Args:
        loss: mean cross-entropy over the batch.
        correct: how many of the batch have their largest output at their class.
        certificate: the reconstruction residual, where the gradient method has one.
    """

    loss: float
    correct: int
    certificate: float | None


class Trainer(ABC):
    """A network with what its optimiser remembers: stochastic gradient descent with momentum, or another optimiser.

    For each weight w with gradient g of the mean loss, and a velocity v that starts at 0,

        v <- momentum v + g + weight_decay w
        w <- w - lr v

    as `torch.optim.SGD` without dampening does it. All weights that learn decay; some may have a multiple of the rate.
    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013, in the form
    where the rate multiplies the velocity.

    With an optimiser of the framework's (`Backend.trainer(optimizer=)`) the update is that optimiser's. It has a rate
    of its own, which the `lr` of a step multiplies.

    Running statistics (of batch normalisation) are moved by each step and are no weights that learn; outputs of
    `predict` are by them.

    Two trainers that are in the same state and get the same batches go through bitwise the same states on the
    same machine with the same versions and number of threads.
    """

    def begin_pass(self) -> None:
        """Called before each pass over the training images: back to training mode, where something has left it."""
        return

    @abstractmethod
    def step(self, inputs: np.ndarray, targets: np.ndarray, lr: float) -> TrainingStep:
        """Take one step.

        Args:
            inputs, targets: a batch, as `NetSpec.check_batch` allows; all batches should have one size, since
                backends that compile do so for each size anew.
            lr: rate of this step; of an optimiser of the framework's a factor of its own rate.

        Raises:
            InputError: a batch that does not fit the network.
            UnsupportedError: an optimiser that cannot take a step from gradients alone.
        """

    @abstractmethod
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs, shape (batch, classes), with the weights as they are."""

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Copies of all weights and running statistics, as `weight.NAME`, and velocities, as `momentum.NAME`, in their
        number type. What an optimiser of the framework's remembers is `optimizer.NAME`, in the place of velocities."""

    def read(self) -> dict[str, np.ndarray]:
        """Copies of all weights and running statistics, by name."""
        return {name.removeprefix(WEIGHT): w for name, w in self.state().items() if name.startswith(WEIGHT)}

    @abstractmethod
    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a state that `state` gave.

        Raises:
            InputError: names or shapes of another network.
        """

    @abstractmethod
    def peak_bytes(self) -> int | None:
        """Most bytes alive at once in a step so far, beyond weights and batch, as `Measurement`; None before one."""


def learning(names: Iterable[str], rates: Mapping[str, float] | None) -> dict[str, float]:
    """The weights that are trained, by name, with the factor of the rate of each: see `Backend.trainer`.

    Raises:
        InputError: none is, a beginning is that of no weight, or a factor is not a number above 0.
    """
    every, factors = tuple(names), {"": 1.0} if rates is None else rates
    for start, factor in factors.items():
        if not any(name.startswith(start) for name in every):
            raise InputError(
                f"a rate of {start}*, the beginning of no weight's name", f"beginnings of {', '.join(every)}"
            )
        if not 0 < factor < math.inf:
            raise InputError(f"a factor of {factor!r} for the rate of {start}*", "a number above 0")
    starts = {name: [start for start in factors if name.startswith(start)] for name in every}
    by_name = {name: float(factors[max(mine, key=len)]) for name, mine in starts.items() if mine}
    if not by_name:
        raise InputError(
            f"rates={dict(factors)!r} of a training", f"beginnings of {', '.join(every)}, and a factor for each"
        )
    return by_name


def checked_state(
    spec: NetSpec, state: Mapping[str, np.ndarray], memory: str = VELOCITY
) -> dict[str, dict[str, np.ndarray]]:
    """Weights and what the optimiser remembers of a state, each by plain name, by the beginning of their names.

    Args:
        spec: of the network.
        state: as `Trainer.state` gives it.
        memory: how names of what the optimiser remembers begin: `VELOCITY`, or `OPTIMIZER`, which is not checked here.

    Raises:
        InputError: names or shapes that are not those of the spec.
    """
    groups = {
        start: {name.removeprefix(start): array for name, array in state.items() if name.startswith(start)}
        for start in (WEIGHT, memory)
    }
    if strange := sorted(name for name in state if not name.startswith((WEIGHT, memory))):
        raise InputError(f"a state of training with {', '.join(strange)}", f"names that begin with {WEIGHT} {memory}")
    spec.check(groups[WEIGHT])
    if memory == VELOCITY:
        spec.check_named(groups[VELOCITY], spec.shapes())
    return groups
