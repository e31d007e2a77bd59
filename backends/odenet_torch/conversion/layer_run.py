"""Layers that were converted together: how their gradient is taken, and what that took."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from odenet import (
    Backprop,
    Checkpoint,
    ConversionError,
    DiscreteAdjoint,
    Gradient,
    Grid,
    InputError,
    Plan,
    Stats,
    UnsupportedError,
)
from odenet.kit import Alarm, AnySolver, staged
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_torch.conversion.call_modes import WAYS
from odenet_torch.conversion.measured import MeasuredError
from odenet_torch.field.field import Field, Stand
from odenet_torch.field.kinks import kinked, perhaps
from odenet_torch.field.state import layout
from odenet_torch.gradients.certificate import Norms, StepErrors, certify, joined, together
from odenet_torch.steps.fixed import Run

_EULER = solver_named("euler")


def layerwise(gradient: Gradient) -> bool:
    """Whether a method can be followed from layer to layer, each of which computes its own output."""
    if isinstance(gradient, DiscreteAdjoint):
        return not gradient.extrapolates
    return isinstance(gradient, Backprop) or gradient == Checkpoint() or rounds(gradient)


def rounds(gradient: Gradient) -> TypeGuard[Checkpoint]:
    """Whether a method keeps states in few bits."""
    return isinstance(gradient, Checkpoint) and gradient.bits is not None


class _Layers(Field):
    """A field that tells which layers there are, by their first steps, for messages."""

    depth = None

    def __init__(self, errors: Sequence[tuple[int, nn.Module]]) -> None:
        self.by_step = dict(errors)

    def seen(self, by: Callable[..., bool]) -> bool | None:
        return any(vars(layer)[WAYS].kinked for layer in self.by_step.values()) if by in (kinked, perhaps) else None

    def __call__(self, t: Any, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        raise AssertionError("layers are called by the model")

    def modules(self, n: int, position: float, steps: int) -> Sequence[Any]:
        return [(type(self.by_step[n]).__name__, None)] if n in self.by_step else ()


class LayerRun:
    """The layers that were converted together: how their gradient is taken, and what that took.

    Args:
        gradient: a record: backprop, checkpoint without an option or with bits, or a discrete adjoint that does not
            extrapolate.
        steps: how many residual branches the layers have together; for exact methods, how many layers.
        tolerance: how far the sum of a layer's branches may be from what the layer returns.
        why: why the layers cannot be undone; None where they can.
        measured: what is shared with all runs of the model, see `gradient_error`.
    """

    along = "piecewise"

    def __init__(
        self,
        gradient: Gradient,
        steps: int,
        tolerance: float,
        why: InputError | None = None,
        measured: MeasuredError | None = None,
    ) -> None:
        self.steps, self.tolerance, self.why = steps, tolerance, why
        self.measured = measured or MeasuredError()
        self.errors: list[tuple[int, nn.Module]] = []
        """The first step, and the layer, of each error that is known; the errors themselves are in `values`."""
        self.values: list[Tensor] = []
        self.waiting: list[Norms] = []
        """Of the latest layers, whose errors are yet to be made of them: those of several at once."""
        self.shares: list[Tensor] | None = None
        """Of layers one of which has kinks, see `StepErrors.shares`."""
        self.count = 0  # of the steps of a chain
        self.plan: Plan | None = None
        """How the method was chosen, where the model was converted with `gradient="auto"`."""
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
                "backprop, checkpoint without an option or with bits, discrete-adjoint without predictor=extrapolate",
                f"unconvert the model, and convert it with gradient={record.label!r}",
            )
        if self.why is not None and isinstance(record, DiscreteAdjoint):
            raise ConversionError(self.why.given, self.why.allowed, "take gradient='checkpoint' for these layers")
        self._gradient = record
        self.stats = Stats("torch", _EULER.label, record.label, self.steps, self.steps)

    @property
    def stats(self) -> Stats:
        """Of the passes so far."""
        self._join()
        return self._stats

    @stats.setter
    def stats(self, stats: Stats) -> None:
        self._stats = stats

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
        self.stats = dataclasses.replace(self._stats, residual=None)
        self.errors, self.values, self.waiting, self.count = [], [], [], 0
        self.shares = None

    def note(self, step: int, layer: nn.Module, stats: Stats, shares: list[Tensor] | None = None) -> None:
        """A layer was gone back through, whose first branch is `step` in its chain; `shares` is as in `StepErrors`."""
        if stats.residual is not None:
            self._join()
            if shares:
                self.shares = [*(self.shares or ()), *shares]
            self.errors.append((step, layer))
            self.count = max(self.count, step + stats.steps)
            self._add(stats.residual.reshape(1))

    def note_norms(self, step: int, layer: nn.Module, of_layer: Norms, entries: int) -> None:
        """The same of a layer of one branch, whose error is to be made of these norms; a state has so many entries."""
        if self.waiting and [x.shape for x, *_ in self.waiting[0]] != [x.shape for x, *_ in of_layer]:
            self._join()
        self.errors.append((step, layer))
        self.count = max(self.count, step + 1)
        if self.shares is None and vars(layer)[WAYS].kinked:
            self.shares = []
        self.waiting.append(of_layer)
        if len(self.waiting) >= together(of_layer, entries):
            self._join()

    def _join(self) -> None:
        waiting, self.waiting = self.waiting, []
        if waiting:
            self._add(joined(waiting, self.shares))

    def _add(self, errors: Tensor) -> None:
        self.values.append(errors)
        before, worst = self._stats.residual, errors.amax()
        self._stats.residual = worst if before is None else torch.maximum(before, worst)

    def certify(self, alarm: Alarm | None) -> None:
        """The backward pass has come to where a chain began: what was noted is said if it is large."""
        if not self.errors:
            return
        self._join()
        kind, _ = layout(self.values[0])
        grid = Grid(0.0, float(self.count), self.count, (self.count,))
        errors = StepErrors(Run(_Layers(self.errors), kind, grid, staged(_EULER, "a converted model")))
        errors.shares = self.shares
        errors.add_steps(torch.cat([errors.to(kind.time) for errors in self.values]), [step for step, _ in self.errors])
        certify(self.stats, alarm, errors)

    @property
    def certificate(self) -> float | None:
        """The largest reconstruction residual since the first layer was called last (see `odenet.Stats`)."""
        return self.stats.certificate

    @property
    def gradient_error(self) -> float | None:
        """The relative error of the whole gradient of all converted layers, measured; for rounded states.

        It is put together of the errors of each layer's VJP, for a cotangent of signs, which are measured in a layer's
        first calls and in every 200th. None for other methods, and before the first backward pass.
        """
        return self.measured.error if rounds(self.gradient) else None

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
