"""The error that rounded states make in the gradient, measured: a layer's VJP at the state and at the rounded one.

How far a gradient is off cannot be told from how far states are: where a layer has kinks (ReLU) or few samples to take
a variance of, states that are off by half a per cent may give gradients that are off by a half. So a layer's two VJPs
are compared, for a cotangent of signs, in its first calls and then now and again; nothing is kept for that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet.kit import Alarm, alarm, signs

_FIRST, _EVERY = (0, 1, 4, 16, 64), 200


def due(calls: int) -> bool:
    """Whether the layer is looked at in the call after this many."""
    return calls in _FIRST or calls % _EVERY == 0


def watched(layer: nn.Module) -> bool:
    """Whether hooks inside of a layer would see it run for another reason than the loss."""
    return any(
        inner is not layer
        and (inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks or inner._backward_pre_hooks)
        for inner in layer.modules()
    )


def cotangent(y: Tensor) -> Tensor:
    """Signs as if by chance, of y's shape: no random numbers are drawn for it."""
    places = torch.arange(y.numel(), device=y.device)
    return signs(places).reshape(y.shape).to(y.dtype)


def square(gradients: Iterable[Tensor | None]) -> Tensor:
    """The sum of all squares, of float64 on the CPU or the device."""
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for g in gradients:
        if g is not None:
            size = torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
            total = total.to(g.device) + size.double().square()
    return total


def apart(approximate: list[Tensor | None], exact: list[Tensor | None]) -> Tensor:
    """The relative difference of two gradients, squared and Euclidean, over all tensors; 0 where both are zero."""
    pairs = [
        (approximation, truth)
        for approximation, truth in zip(approximate, exact, strict=True)
        if approximation is not None and truth is not None
    ]
    defect, size = square(approximation - truth for approximation, truth in pairs), square(truth for _, truth in pairs)
    return torch.where(defect == 0, defect, defect / size)


@dataclass(frozen=True)
class LayerErrors:
    """What a layer's rounded state does to its gradients, and how large these are in the pass that is gone back.

    Args:
        layer: its class.
        by_state: the error of the gradients by its state and arguments, relative and squared.
        by_weights: of those by its weights.
        weights: the square of the gradient by its weights.
        state: of that by its state, where the layer is the first of a chain; else 0.
    """

    layer: str
    by_state: Tensor
    by_weights: Tensor
    weights: Tensor
    state: Tensor


class MeasuredError:
    """The error of the whole gradient, from those of single layers, of all layers that were converted together.

    What a layer does to the cotangent of the state before it is in the gradients of all layers before, what it does to
    its own weights in these alone. The errors are as if by chance, so that their squares add up; each gradient counts
    as it is large. What the model computes before the first layer has the error of that layer's state.
    """

    def __init__(self) -> None:
        self.error: float | None = None  # of the whole gradient, when it was measured last
        self.worst = (0, 0, "")  # the layer that makes most of it, of how many, and its class
        self._layers: list[LayerErrors] = []
        self._told = False

    def note(self, gradient: str, errors: LayerErrors | None) -> None:
        """A backward pass has gone through a layer; what there is to say is said when all of the pass is done.

        Args:
            gradient: the method, by label.
            errors: of the layer, where they were measured in this pass.
        """
        if not self._told:
            self._told = True
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(functools.partial(self._finish, alarm(self), gradient))
        if errors is not None:
            self._layers.append(errors)

    def _finish(self, alarm: Alarm | None, gradient: str) -> None:
        layers, self._layers, self._told = self._layers, [], False
        if layers:
            self._measure(layers)
        if self.error is not None and alarm is not None:
            step, count, name = self.worst
            alarm.tell(self.error, gradient, "euler", count, step, name, "gradient")

    def _measure(self, layers: list[LayerErrors]) -> None:
        names = ("by_state", "by_weights", "weights", "state")
        columns = [torch.stack([getattr(layer, name).to("cpu") for layer in layers]).tolist() for name in names]
        later, defect, size = 0.0, 0.0, 0.0  # from the last layer to the first
        for by_state, by_weights, weights, state in zip(*columns, strict=True):
            defect += (later + by_weights) * weights
            later += by_state
            defect += later * state
            size += weights + state
        self.error = math.sqrt(defect / size) if size else 0.0
        most = max(range(len(layers)), key=columns[0].__getitem__)
        self.worst = len(layers) - 1 - most, len(layers), layers[most].layer
