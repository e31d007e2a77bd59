"""Checkpointing of fields that do not run as they do otherwise under hooks on saved tensors, as torch's checkpoint is.

`torch.func` refuses to run under them: fields that call it are found by its error. The pass is then begun anew without
hooks, by the backward pass that the other schedules have, and the next passes of the same field at once. TorchScript
saves other tensors when it runs again, optimised, and turns the exception by which torch's checkpoint stops into an
error of its own: its modules are found before.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]

from odenet import GradientError, UnsupportedError
from odenet_torch.field import random_state
from odenet_torch.field.field import Field
from odenet_torch.field.written_on import version
from odenet_torch.steps.fixed import Run

_KNOWN: weakref.WeakSet[Any] = weakref.WeakSet()
_SEARCHED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Modules that were searched for parts of TorchScript."""


def known(field: Field) -> bool:
    """Whether a field is known not to run under hooks."""
    functions = field.functions()
    fresh = [f for f in functions if isinstance(f, nn.Module) and f not in _SEARCHED]
    _SEARCHED.update(fresh)
    _KNOWN.update(f for f in fresh if any(isinstance(module, torch.jit.ScriptModule) for module in f.modules()))
    return bool(_KNOWN) and any(function in _KNOWN for function in functions)


def forbidden() -> bool:
    """Whether the caller has forbidden hooks (`torch.autograd.graph.disable_saved_tensors_hooks`)."""
    return _autograd._saved_tensors_hooks_get_disabled_error_message() is not None


def remember(field: Field) -> None:
    """Remember that a field does not run under hooks."""
    for function in field.functions():
        try:
            _KNOWN.add(function)
        except TypeError:  # has no weak references
            continue


class Traces:
    """What a pass that has to begin anew would leave: random numbers drawn, buffers changed.

    Args:
        run: the pass, which is about to begin.
    """

    def __init__(self, run: Run) -> None:
        self.device, steps = run.layout.device, run.grid.steps
        self.random = random_state.state(self.device)
        modules = {id(m): m for n in range(steps) for _, m in run.field.modules(n, 0.0, steps)}
        self.buffers = [(buffer, version(buffer)) for module in modules.values() for buffer in module.buffers()]

    def undo(self, error: RuntimeError) -> None:
        """As if the pass had not begun.

        Raises:
            GradientError: buffers were changed.
        """
        random_state.restore(self.device, self.random)
        if any(version(buffer) != before for buffer, before in self.buffers):
            raise GradientError(
                "the field changes buffers and takes derivatives with torch.func, which refuses to run under the "
                "hooks of torch's checkpoint",
                "fields that do one of them",
                "take gradient='checkpoint:states=K' or 'discrete-adjoint', which use no hooks; or call eval()",
            ) from error


def unmeasured() -> UnsupportedError:
    """The error for a budget of memory that is not known how to keep."""
    return UnsupportedError(
        "checkpoint with memory= for a field that takes derivatives with torch.func, inside of which it cannot be "
        "seen what is saved",
        "checkpoint, checkpoint with segments=K or states=K",
        "give the number of states, as in gradient='checkpoint:states=8'",
    )


def unkept(solver: str) -> UnsupportedError:
    """The error for a solver whose steps torch's checkpoint alone can run again."""
    return UnsupportedError(
        f"gradient='checkpoint' of solver {solver!r} for a field that takes derivatives with torch.func, which refuses "
        "to run under the hooks of torch's checkpoint",
        "gradient='reversible' and 'backprop' with this solver",
        "take gradient='reversible'",
    )
