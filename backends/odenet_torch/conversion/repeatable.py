"""Whether a layer gives the same when it runs again, and whether its kernels write on what they have saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, GradientError, OdenetError
from odenet.kit import tree_leaves
from odenet_torch.conversion.calls import Call, in_mode, leaving_no_trace
from odenet_torch.conversion.layer import copied, require_dense
from odenet_torch.field import kinks, late_writes, random_state
from odenet_torch.field.called_modules import require_same
from odenet_torch.field.differentiating import refuses_hooks
from odenet_torch.field.jumps import Watch
from odenet_torch.field.surroundings import looker, reach


@contextlib.contextmanager
def alone(layer: nn.Module) -> Iterator[None]:
    """While a layer runs outside of its model's forward, on what that had called it with.

    Raises:
        ConversionError: it cannot, as where the forward sets its layers up by the length of its input.
    """
    try:
        yield
    except (OdenetError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConversionError(
            f"{type(layer).__name__} raised {type(error).__name__} when it ran outside of the model's forward, on what "
            f"that had called it with: {error}",
            "layers that run by themselves as they run in the model",
            "if the model's forward sets its layers up, as by the length of its input, call the model once on the "
            "example before it is converted",
        ) from error


def require_repeatable(layer: nn.Module, call: Call) -> None:
    """Looks whether a layer gives the same when it runs again on the same, in training.

    Raises:
        GradientError: it does not, or it draws from a generator that is not torch's.
        ConversionError: it does not run outside of its model.
    """
    require_dense(call.x)
    results = []

    def run() -> None:
        with leaving_no_trace([layer]), alone(layer):
            results.append(_leaves(_watched(layer, call)))

    with in_mode(layer, True), random_state.others():
        drawn = random_state.draws(run, random_state.outside)
        if len(results) == 1:
            run()
        if drawn:
            raise GradientError(
                f"{type(layer).__name__} draws random numbers from Python or NumPy, which are not drawn again as they "
                "were",
                "random numbers of torch's own generator",
                "take torch.rand in its place, or gradient='backprop'",
            )
    require_same(type(layer).__name__, *results[:2])


def has_kinks(layer: nn.Module, call: Call) -> bool:
    """Whether a layer has kinks in training, or jumps (see `odenet_torch.field.kinks`); no where it cannot be looked
    at.

    Args:
        layer: one that is repeatable.
        call: of it.
    """
    x = copied(call.x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return False
    args, kwargs = copied(call.arguments)
    drawn, watch = random_state.state(x.device), Watch((x,))
    try:
        with in_mode(layer, True), leaving_no_trace([layer]), watch:
            layer(x, *args, **kwargs)
    except Exception:  # whatever it does where it is looked at
        return False
    finally:
        random_state.restore(x.device, drawn)
    return watch.jumps or kinks.within(watch)


def _watched(layer: nn.Module, call: Call) -> Any:
    """What a layer returns; whether its kernels write on what they have saved is known from then on."""

    def run() -> Any:
        (args, kwargs), x = copied(call.arguments), copied(call.x)
        if isinstance(x, Tensor) and x.is_floating_point():  # what is saved for a state that needs a gradient
            with torch.enable_grad():
                x = x.detach().requires_grad_().clone()  # the example is the caller's
        return layer(x, *args, **kwargs)

    try:
        out, late = late_writes.watched(type(layer).__name__, run, looker([reach(layer)]))
    except RuntimeError as error:
        if not refuses_hooks(error):  # it takes derivatives with torch.func, and is run without torch's checkpoint
            raise
        out, late = run(), False
    late_writes.remember(layer, late)
    return out


def _leaves(out: Any) -> tuple[Tensor, ...]:
    return tuple(leaf.detach().clone() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
