"""A layer of somebody else's whose forward pass is recorded by a gradient method: its own code, in its own place.

The layer stays the object that it is; only its class becomes a subclass that differs in `forward`. All that stands
around a layer, hooks and loops and what reads a state between two layers, works as in the plain model, because every
layer computes its own output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from odenet import Backprop, Checkpoint, ConversionError, DiscreteAdjoint, Gradient, InputError, Stats, UnsupportedError
from odenet.kit import AnySolver
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_torch.conversion.layer import written_to
from odenet_torch.conversion.linked import linked
from odenet_torch.conversion.recomputed import recomputed
from odenet_torch.conversion.ways import Ways
from odenet_torch.gradients.adjoint import refuse_transforms

_EULER = solver_named("euler")
_here = threading.local()


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


class Attached:
    """The class of a converted layer, beside its own."""

    odenet_run: LayerRun

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        plain: Callable[..., Any] = super().forward  # pyright: ignore[reportAttributeAccessIssue]
        if not torch.is_grad_enabled() or isinstance(self.odenet_run.gradient, Backprop) or _plainly():
            return plain(*args, **kwargs)
        return _recorded(self, plain, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        base, (make, arguments, *rest) = base_of(self), super().__reduce_ex__(protocol)
        if type(self) is not _attached(base) or arguments != (type(self),):
            return make, arguments, *rest
        return _revived, (base,), *rest  # a class that is made here has no name by which it could be imported


def layerwise(gradient: Gradient) -> bool:
    """Whether a method can be followed from layer to layer, each of which computes its own output."""
    if isinstance(gradient, DiscreteAdjoint):
        return not gradient.extrapolates
    return isinstance(gradient, Backprop) or gradient == Checkpoint()


def attach(module: nn.Module, run: LayerRun, ways: Ways) -> None:
    """Let a layer's forward pass be recorded."""
    vars(module)["odenet_run"], vars(module)["_odenet_ways"] = run, ways
    module.__class__ = _attached(type(module))


def detach(module: nn.Module) -> None:
    """The layer as it was.

    Raises:
        ConversionError: its class was changed again since, as by FSDP.
    """
    if type(module) is not _attached(base_of(module)):
        raise ConversionError(
            f"a converted {base_of(module).__name__} whose class was changed since, to {type(module).__name__}",
            "models whose layers have the classes that they had when they were converted",
            "undo first what was done last",
        )
    module.__class__ = base_of(module)
    del vars(module)["odenet_run"], vars(module)["_odenet_ways"]


def base_of(module: Any) -> type[nn.Module]:
    """The class of a layer as somebody wrote it."""
    return type(module)._odenet_base


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Inside, converted layers compute by their own code alone."""
    before, _here.plainly = _plainly(), True
    try:
        yield
    finally:
        _here.plainly = before


def _plainly() -> bool:
    return getattr(_here, "plainly", False)


@functools.cache
def _attached(base: type[nn.Module]) -> type[nn.Module]:
    # a function of its own, so that its signature is that of the layer's
    @functools.wraps(base.forward, assigned=("__doc__",))
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return Attached.forward(self, *args, **kwargs)

    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_odenet_base": base}
    kind = type(base.__name__, (Attached, base), names)
    kind.forward = forward  # not among the names: a class may wrap what its subclasses define, as transformers' do
    return kind


def _revived(base: type[nn.Module]) -> nn.Module:
    kind = _attached(base)
    return kind.__new__(kind)


@torch.compiler.disable
def _recorded(layer: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the layer returns, recorded by the method of its run."""
    if torch.autograd.forward_ad._current_level >= 0:  # stores nothing, whatever the depth
        return plain(*args, **kwargs)
    run: LayerRun = layer.odenet_run
    refuse_transforms(f"gradient={run.gradient.label!r}")
    written = written_to((args, kwargs))
    if written:
        raise ConversionError(
            f"{type(layer).__name__} called with a {written}, which it may write to, while gradient="
            f"{run.gradient.label!r} evaluates it again",
            "tensors, numbers, strings, None, and containers of these",
            "train without a cache (in transformers: use_cache=False); under torch.no_grad() a cache works",
        )
    if isinstance(run.gradient, DiscreteAdjoint):
        return linked(layer, plain, args, kwargs)
    return recomputed(layer, plain, args, kwargs)
