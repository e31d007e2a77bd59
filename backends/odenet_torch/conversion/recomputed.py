"""A layer under checkpointing: of its run nothing is kept but what it was called with."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from odenet import ConversionError, DiscreteAdjoint
from odenet_torch.conversion.call_modes import described
from odenet_torch.conversion.layer import Arguments, arguments_of, copied, state_name
from odenet_torch.conversion.layer_end import LayerEnd
from odenet_torch.conversion.lent_objects import LentObjects, UnknownObjectError
from odenet_torch.conversion.linked import linked
from odenet_torch.conversion.rerun import Rerun
from odenet_torch.conversion.segment import Segment
from odenet_torch.field import random_state
from odenet_torch.field.differentiating import checkpointed, hooked, refuses_hooks
from odenet_torch.field.late_writes import run_to_the_end
from odenet_torch.field.witness import turns
from odenet_torch.gradients import hookless
from odenet_torch.gradients.adjoint import require_recording

_HOOKLESS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Layers that call torch.func inside, which refuses to run under the hooks of torch's checkpoint."""
_EVERY_STATE = DiscreteAdjoint(anchors=1)
_FIRST = 4
"""Calls of a layer, the first ones, that all run to their end once more, which is compared."""
_NOTHING = contextlib.nullcontext()


def recomputed(layer: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the layer returns; all tensors in it have their gradients, and so has what the layer leaves elsewhere.

    By torch's checkpoint (Chen et al. 2016), which runs the layer again from its arguments; of a settled layer by a
    `Segment`.
    """
    if layer in _HOOKLESS or hookless.forbidden():
        return linked(layer, plain, args, kwargs, _EVERY_STATE)
    x, arguments = arguments_of(layer, args, kwargs)
    rerun = Rerun(layer, plain, x, arguments, state_name(layer, args), passing=True)
    first, (again, named) = (args, kwargs), copied((args, kwargs))
    if isinstance(x, Tensor):
        rerun.watch(x)  # torch's checkpoint keeps it, and looks at no version
    try:
        if rerun.settled is not None and Segment.possible(layer):
            segment = Segment(rerun, lambda: plain(*_apart(again), **_apart(named)))
            return segment.first(x, lambda: plain(*args, **kwargs))
        return _Recomputation(rerun, x, first).checkpointed(*again, **named)
    except RuntimeError as error:
        if not refuses_hooks(error) or hooked():  # hooks of the caller's are the caller's
            raise
        if layer.training and any(True for _ in layer.buffers()):
            raise ConversionError(
                f"{described(layer)} has buffers and takes derivatives with torch.func, which refuses to run under "
                "the hooks of torch's checkpoint",
                "layers that do one of them",
                "convert the model as it is now, so that this is known before; or take gradient='backprop'",
            ) from error
    random_state.restore(rerun.device, rerun.random)
    _HOOKLESS.add(layer)
    return linked(layer, plain, args, kwargs, _EVERY_STATE)


def recomputed_with_objects(
    layer: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], written: str
) -> Any:
    """The same for a layer that is called with objects that it may write to, such as a cache of keys and values.

    Its further runs find them as they stood before the first one. That is the only one that writes to the caller's, and
    what it leaves there has its gradient.

    Raises:
        ConversionError: they cannot be kept: the layer has written on a tensor in them, or they hold other things than
            containers, tensors and plain values.
    """
    try:
        objects = LentObjects(layer, (args, kwargs))
    except UnknownObjectError:
        raise lent(layer, written, "backprop") from None
    if layer in _HOOKLESS:
        raise lent(layer, written, "backprop")
    x, (others, named) = arguments_of(layer, args, kwargs)
    rerun = Rerun(layer, plain, x, ((*others, *objects.tensors), named), state_name(layer, args), looked=True)
    if isinstance(x, Tensor):
        rerun.watch(x)
    try:
        out = _Recomputation(rerun, x, (args, kwargs), objects.again).checkpointed()
    except RuntimeError as error:
        if not refuses_hooks(error) or hooked():
            raise
        raise lent(layer, written, "backprop") from error
    if objects.written_on():
        raise lent(layer, written, "backprop", "writes on a tensor of")
    return out


def lent(layer: nn.Module, written: str, gradient: str, does: str = "may write to") -> ConversionError:
    """The error for an object that a layer is called with, and that a further run would not find as it was."""
    run: Any = layer.odenet_run
    return ConversionError(
        f"{described(layer)} called with a {written}, which it {does}, while gradient={run.gradient.label!r} "
        "evaluates it again",
        "tensors, numbers, strings, None, and containers of these",
        f"train without a cache (in transformers: use_cache=False), or take gradient={gradient!r}; under "
        "torch.no_grad() a cache works",
    )


def _apart(value: Any) -> Any:
    """The arguments of a further run: containers of its own, and aliases of tensors, on which a hook that the layer
    registers is not one more on the tensor that it was called with."""
    if isinstance(value, Tensor):
        return value.view_as(value) if value.requires_grad else value
    if type(value) is dict:
        return {key: _apart(item) for key, item in value.items()}
    return type(value)(map(_apart, value)) if type(value) in (list, tuple) else value


class _Recomputation:
    """The layer's own code, in the run that counts and in the others."""

    def __init__(
        self, rerun: Rerun, x: Any, arguments: Arguments, again: Callable[[], Arguments] | None = None
    ) -> None:
        self.rerun, self.again = rerun, again
        self.once: Any = x, arguments
        self.end: LayerEnd | None = None
        layer: Any = rerun.layer
        layer._odenet_ways.recomputed += 1
        self.due = layer._odenet_ways.recomputed <= _FIRST or turns() == 0

    def checkpointed(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns, by torch's checkpoint, which keeps these arguments for the other runs."""
        return checkpointed(
            self,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (_NOTHING, _Again(self.rerun)),
            **kwargs,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        rerun = self.rerun
        if self.once is None:
            args, kwargs = _apart((args, kwargs)) if self.again is None else self.again()
            out = rerun.repeat(lambda: rerun.plain(*args, **kwargs))
            if self.end is not None:
                self.end.require(type(rerun.layer).__name__, args[0] if args else None, out)
        else:
            (x, (own, named)), self.once = self.once, None  # not copied: what the layer adds to a list is the caller's
            out = rerun.first(x, self._runs(own, named))
            if rerun.late or self.due:
                self.end = LayerEnd.of(out)
        if rerun.late or self.due:
            run_to_the_end()
        return out

    def _runs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
        """Of the layer as it is called first; it may be looked at once more in that, which writes to nothing then."""
        calls = itertools.count()

        def run() -> Any:
            first = self.again is None or next(calls) == 0
            own, named = (args, kwargs) if first or self.again is None else self.again()
            return self.rerun.plain(*own, **named)

        return run


class _Again:
    """The context of a run that repeats the first; a graph may be gone back through more than once."""

    def __init__(self, rerun: Rerun) -> None:
        self.rerun = rerun

    def __enter__(self) -> None:
        require_recording("gradient='checkpoint'")
        self.around = self.rerun.once_more()
        self.around.__enter__()

    def __exit__(self, *raised: Any) -> None:
        self.around.__exit__(*raised)
