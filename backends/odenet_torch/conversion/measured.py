"""The error that rounded states make in the gradient, measured: a layer's VJP at the state and at the rounded one.

How far a gradient is off cannot be told from how far states are: where a layer has kinks (ReLU) or few samples to take
a variance of, states that are off by half a per cent may give gradients that are off by a half. So a layer's two VJPs
are compared, for a cotangent of signs, in its first calls and then now and again; nothing is kept for that.
"""

from __future__ import annotations

import math
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


def apart(found: list[Tensor | None], exact: list[Tensor | None]) -> Tensor:
    """The relative difference of two gradients, Euclidean, over all tensors; 0 where both are zero."""
    defect, size = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for one, other in zip(found, exact, strict=True):
        if one is not None and other is not None:
            wide = torch.promote_types(other.dtype, torch.float32)
            size = size + torch.linalg.vector_norm(other, dtype=wide).double().square().to(size.device)
            defect = defect + torch.linalg.vector_norm(one - other, dtype=wide).double().square().to(size.device)
    return torch.where(defect == 0, defect, defect / size).sqrt()


class MeasuredError:
    """The error of the whole gradient, from those of single layers, of all layers that were converted together.

    What a layer does to the cotangent of the state before it is in the gradients of all layers before, what it does to
    its own weights in these alone. The errors are as if by chance, so that their squares add up.
    """

    def __init__(self) -> None:
        self.error: float | None = None  # of the whole gradient, when it was measured last
        self._layers: list[tuple[str, tuple[Tensor, Tensor]]] = []
        self._fresh = False
        self._alarm: Alarm | None = None
        self._gradient = ""

    def note(self, layer: nn.Module, errors: tuple[Tensor, Tensor], fresh: bool, gradient: str) -> None:
        """A backward pass has gone through a layer; said when all of the pass is done.

        Args:
            layer: the layer.
            errors: of the gradients by its state and arguments, and by its weights.
            fresh: whether they were measured in this pass.
            gradient: the method, by label.
        """
        if not self._layers:
            self._alarm, self._gradient = alarm(self), gradient
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._finish)
        self._layers.append((type(layer).__name__, errors))
        self._fresh = self._fresh or fresh

    def _finish(self) -> None:
        layers, self._layers = self._layers, []
        names = [name for name, _ in reversed(layers)]
        if self._fresh or self.error is None:
            by_state, by_weights = (
                [each.to("cpu") for each in column] for column in zip(*(e for _, e in reversed(layers)), strict=True)
            )
            self.by_state = torch.stack(by_state).tolist()
            self.error = math.hypot(*self.by_state, max(torch.stack(by_weights).tolist()))
        self._fresh = False
        if self._alarm is not None:
            step = max(range(len(self.by_state)), key=self.by_state.__getitem__)
            name = names[step] if step < len(names) else ""
            self._alarm.tell(self.error, self._gradient, "euler", len(layers), step, name, measured=True)
