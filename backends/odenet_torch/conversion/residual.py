"""Whether a layer is its input plus something, so that it can be undone: told by its trace, its sums, or a try."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odenet import ConversionError, InputError
from odenet.kit import tree_leaves
from odenet_torch.conversion.branches import Branch, traced
from odenet_torch.conversion.calls import Call, in_mode, leaving_no_trace
from odenet_torch.conversion.layer import coarse, difference, state_of, written_to
from odenet_torch.conversion.sums import added, in_place, version

_REPEATS, _RECOVERED = 20, 1e-3


Modes = dict[bool, tuple[Branch, ...]]
"""A layer's branches in evaluation and in training; none where all that it adds is one."""


def residual_branches(module: nn.Module, call: Call, tolerance: float) -> Modes:
    """The branches of a layer that can be undone by `x = y - f(x)`.

    Args:
        module: the layer.
        call: how it was called, in evaluation.
        tolerance: how far the sum of its branches may be from what it returns.

    Raises:
        InputError: it cannot be undone: the reason.
    """
    x, state, name = call.x, call.state, type(module).__name__
    if not isinstance(x, Tensor) or not isinstance(state, Tensor) or not x.is_floating_point():
        raise ConversionError(f"{name} takes a {type(x).__name__} and returns a {type(call.output).__name__}, no state")
    if x.shape != state.shape or x.dtype != state.dtype:
        raise ConversionError(f"{name} changes the state from {kind_of_state(x)} to {kind_of_state(state)}")
    if call.left[0] != call.written:
        raise in_place(name)
    ways: dict[bool, tuple[Branch, ...] | InputError | None] = {}
    for mode in (False, True):
        with in_mode(module, mode):
            try:
                ways[mode] = traced(module, *call.arguments)
            except InputError as error:  # what it calls may add
                ways[mode] = error
    modes: Modes = {}
    for mode, branches in ways.items():
        reason = branches if isinstance(branches, InputError) else None
        if written_to(call.arguments):  # it cannot run again
            if not isinstance(branches, tuple):
                raise reason or ConversionError(f"{name} cannot be traced, and is called with what it may write to")
            modes[mode] = branches
            continue
        with in_mode(module, mode):
            if isinstance(branches, tuple) and _is_sum(module, branches, call, tolerance):
                modes[mode] = branches if len(branches) > 1 else ()
                continue
            modes[mode] = ()
            try:
                with leaving_no_trace([module]):
                    added(module, x, *call.arguments[0], **call.arguments[1])
            except InputError as error:
                _try(module, call, reason or error)
    return modes


def kind_of_state(tensor: Tensor) -> str:
    """Number type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _is_sum(module: nn.Module, branches: tuple[Branch, ...], call: Call, tolerance: float) -> bool:
    """Whether the layer's new state is the sum of its branches."""
    (args, kwargs), x = call.arguments, call.x
    with leaving_no_trace([module]):
        state = state_of(module(x, *args, **kwargs)).clone()
    with leaving_no_trace([module]):
        for branch in branches:
            before = version(x)
            more = branch.function(module, x, tree_leaves(call.arguments))
            if version(x) != before:
                raise in_place(type(module).__name__)
            x = x + more
    return difference(state, x) <= coarse(tolerance, state)


def _try(module: nn.Module, call: Call, reason: InputError) -> None:
    """Undoes the layer at its own state and at another one, where what a norm or an activation loses is seen.

    Raises:
        ConversionError: a state was not found again.
    """
    args, kwargs = call.arguments

    def step(x: Tensor) -> Tensor:
        with leaving_no_trace([module]):  # so that each time the same random numbers are drawn
            return state_of(module(x, *args, **kwargs)).clone()

    noise = torch.randn(call.x.shape, generator=torch.Generator().manual_seed(0)).to(call.x)
    for x in (call.x, 1.5 * call.x + 0.2 * call.x.std() * noise):
        z = y = step(x)
        for _ in range(_REPEATS):
            z = z + (y - step(z))
        off = difference(x, z)
        if not off <= _RECOVERED:
            raise ConversionError(
                f"{reason.given}, and {type(module).__name__} cannot be undone by trying: after {_REPEATS} repetitions "
                f"of x = y - f(x) its input is off by {off:.1e} of its largest entry",
                "layers x -> x + f(x) whose code ends with the addition, or which change their input little",
                "take gradient='checkpoint', which undoes nothing; or a pre-activation or pre-norm layer, whose "
                "addition comes last",
            )
