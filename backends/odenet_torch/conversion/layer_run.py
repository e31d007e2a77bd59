"""Layers that were converted together: how their gradient is taken, and what that took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from odenet import Backprop, Checkpoint, ConversionError, DiscreteAdjoint, Gradient, InputError, Stats, UnsupportedError
from odenet.kit import AnySolver
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named

_EULER = solver_named("euler")


def layerwise(gradient: Gradient) -> bool:
    """Whether a method can be followed from layer to layer, each of which computes its own output."""
    if isinstance(gradient, DiscreteAdjoint):
        return not gradient.extrapolates
    return isinstance(gradient, Backprop) or gradient == Checkpoint()


class LayerRun:
    """The layers that were converted together: how their gradient is taken, and what that took.

    Args:
        gradient: a record: backprop, checkpoint without an option, or a discrete adjoint that does not extrapolate.
        steps: how many residual branches the layers have together; for exact methods, how many layers.
        tolerance: how far the sum of a layer's branches may be from what the layer returns.
        why: why the layers cannot be undone; None where they can.
    """

    along = "piecewise"

    def __init__(self, gradient: Gradient, steps: int, tolerance: float, why: InputError | None = None) -> None:
        self.steps, self.tolerance, self.why = steps, tolerance, why
        self.gradient = gradient

    @property
    def gradient(self) -> Gradient:
        """The method; another one may be set."""
        return self._gradient

    @gradient.setter
    def gradient(self, gradient: Gradient | str) -> None:
        record = gradient_named(gradient)
        if not layerwise(record):
            raise UnsupportedError(
                f"gradient={record.label!r} for converted layers that compute their own outputs",
                "backprop, checkpoint without an option, discrete-adjoint without predictor=extrapolate",
                f"unconvert the model, and convert it with gradient={record.label!r}",
            )
        if self.why is not None and isinstance(record, DiscreteAdjoint):
            raise ConversionError(self.why.given, self.why.allowed, "take gradient='checkpoint' for these layers")
        self._gradient = record
        self.stats = Stats("torch", _EULER.label, record.label, self.steps, self.steps)

    @property
    def solver(self) -> AnySolver:
        """Euler's method: the model itself."""
        return _EULER

    @solver.setter
    def solver(self, solver: AnySolver) -> None:
        if solver.label != _EULER.label:
            raise UnsupportedError(
                f"solver={solver.label!r} for converted layers that compute their own outputs",
                "euler",
                f"unconvert the model, and convert it with solver={solver.label!r}",
            )

    def forget(self) -> None:
        """A chain of layers begins."""
        self.stats = dataclasses.replace(self.stats, residual=None)

    def note(self, stats: Stats) -> None:
        """A layer was gone back through."""
        before = self.stats.residual
        if stats.residual is not None:
            self.stats.residual = stats.residual if before is None else torch.maximum(before, stats.residual)

    @property
    def certificate(self) -> float | None:
        """The largest reconstruction residual since the first layer was called last (see `odenet.Stats`)."""
        return self.stats.certificate

    def __repr__(self) -> str:
        return f"LayerRun(gradient={self.gradient.label}, steps={self.steps})"


class ConvertedRun:
    """Converted layers that compute their own outputs, looked at as one solve.

    Args:
        run: what they share.
    """

    along = "piecewise"

    def __init__(self, run: LayerRun) -> None:
        self.run = run
        self.blocks: list[nn.Module] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["run"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("gradient", "solver", "stats"):
            setattr(self.run, name, value)
        else:
            super().__setattr__(name, value)

    def register_forward_hook(self, hook: Callable[..., None]) -> Any:
        """After the last of them has run, the hook is called with this in the place of the module."""
        return self.blocks[-1].register_forward_hook(lambda module, *rest: hook(self, *rest))
