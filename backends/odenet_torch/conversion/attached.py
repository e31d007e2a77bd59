"""A layer of somebody else's whose forward pass is recorded by a gradient method: its own code, in its own place.

The layer stays the object that it is; only its class becomes a subclass that differs in `forward`. All that stands
around a layer, hooks and loops and what reads a state between two layers, works as in the plain model, because every
layer computes its own output.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from odenet import Backprop, ConversionError, DiscreteAdjoint
from odenet_torch.conversion.call_modes import CallModes
from odenet_torch.conversion.layer import written_to
from odenet_torch.conversion.layer_run import LayerRun, rounds
from odenet_torch.conversion.linked import linked
from odenet_torch.conversion.recomputed import lent, recomputed, recomputed_with_objects
from odenet_torch.conversion.rounded import rounded
from odenet_torch.field.dynamo import require_breaks
from odenet_torch.gradients.adjoint import refuse_classes, refuse_transforms
from odenet_torch.steps.direct import NotAsBeforeError

_here = threading.local()


class Attached(nn.Module if TYPE_CHECKING else object):
    """The class of a converted layer, beside its own."""

    odenet_run: LayerRun

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns."""
        plain: Any = super().forward
        if isinstance(self.odenet_run.gradient, Backprop) or _plainly():
            return plain(*args, **kwargs)  # pyright: ignore[reportCallIssue]
        if torch.compiler.is_dynamo_compiling():
            require_breaks()
        return _recorded(self, plain, args, kwargs)  # pyright: ignore[reportCallIssue]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduce: Any = super().__reduce_ex__
        parts = reduce(protocol)
        base, (_, arguments, *rest) = base_of(self), parts
        if type(self) is not _attached(base) or arguments != (type(self),):
            return parts
        return (_revived, (base,), *rest)  # a class that is made here has no name by which it could be imported


def attach(module: nn.Module, run: LayerRun, ways: CallModes) -> None:
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
            "undo the later change of the class first",
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
        if not torch.is_grad_enabled():  # without a detour, which a small layer would notice
            return base.forward(self, *args, **kwargs)
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
    if torch._C._are_functorch_transforms_active():
        refuse_transforms(f"gradient={run.gradient.label!r}")
    refuse_classes(args, f"gradient={run.gradient.label!r}")
    if written := written_to((args, kwargs)):
        if isinstance(run.gradient, DiscreteAdjoint) or rounds(run.gradient):
            raise lent(layer, written, "checkpoint")
        return recomputed_with_objects(layer, plain, args, kwargs, written)
    try:
        return _by_method(layer, plain, args, kwargs)
    except NotAsBeforeError:  # a layer that was known; it is looked at in full now
        return _by_method(layer, plain, args, kwargs)


def _by_method(layer: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    run: LayerRun = layer.odenet_run
    if isinstance(run.gradient, DiscreteAdjoint):
        return linked(layer, plain, args, kwargs, run.gradient)
    if rounds(run.gradient):
        return rounded(layer, plain, args, kwargs, run.gradient)
    return recomputed(layer, plain, args, kwargs)
