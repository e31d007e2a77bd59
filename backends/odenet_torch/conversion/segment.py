"""A layer of which nothing is kept but its arguments, by hooks on what autograd saves (Chen et al. 2016).

As `torch.utils.checkpoint` without reentrant autograd does it, for a layer that is known to run again as it ran: what
that must keep and compare for unknown functions, in each call, takes longer than a small layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenet import GradientError
from odenet_torch.conversion.rerun import Rerun
from odenet_torch.field.differentiating import hooked
from odenet_torch.field.witness import Glimpse, glimpse, require_same_glimpse
from odenet_torch.gradients.adjoint import require_recording
from odenet_torch.steps.direct import NotAsBeforeError

_INSIDE: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Layers that go back through their own graph before they return."""


class _EnoughError(Exception):
    """All that was saved has been saved again."""


class Segment:
    """One call of a settled layer.

    Args:
        rerun: the call.
        again: runs the layer once more, inside `rerun.again`.
    """

    def __init__(self, rerun: Rerun, again: Callable[[], Any]) -> None:
        self.rerun, self.again = rerun, again
        self.kinds: list[tuple[torch.Size, torch.dtype]] = []
        """Of what was saved, in order."""
        self.last: tuple[int, Tensor] | None = None
        """During the first run: the last tensor that it saved and that is of its own making, and its place."""
        self.witness: tuple[int, Glimpse] | None = None
        """The same afterwards: what it held."""
        self.over = False  # whether the first run is
        self.task = -1
        self.saved: dict[int, Tensor] = {}
        """What the running backward pass has not yet asked for, by place in that order."""

    @staticmethod
    def possible(layer: nn.Module) -> bool:
        """Whether nobody else is to see what is saved, and no mode changes what functions of torch do."""
        return layer not in _INSIDE and not torch._C._len_torch_function_stack() and not hooked()

    def first(self, x: Any, run: Callable[[], Any]) -> Any:
        """The first run, whose results are those of the layer."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
            out = self.rerun.first(x, run)
        if self.last is not None:  # now, as a kernel may write on what it has saved
            place, tensor = self.last
            seen, self.last = glimpse(tensor), None
            self.witness = None if seen is None else (place, seen)
        self.over = True
        return out

    def pack(self, tensor: Tensor) -> int:
        """In the place of a tensor that the first run saves: how many it has saved before."""
        place = len(self.kinds)
        self.kinds.append((tensor.shape, tensor.dtype))
        if not tensor.is_leaf and tensor.is_contiguous():
            self.last = place, tensor
        return place

    def unpack(self, place: int) -> Tensor:
        """What a backward pass is given in the place of a number."""
        if not self.over:
            _INSIDE.add(self.rerun.layer)
            raise NotAsBeforeError
        task = torch._C._current_graph_task_id()
        if task == -1 or task != self.task or place not in self.saved:
            self.task, self.saved = task, dict(enumerate(self.run_again()))
        return self.saved.pop(place)

    def run_again(self) -> list[Tensor]:
        """What the first run saved, as a further one saves it.

        Raises:
            GradientError: it saves something else, or other numbers.
        """
        require_recording("gradient='checkpoint'")
        saved: list[Tensor] = []
        count = len(self.kinds) if not self.rerun.late else -1

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor.detach())
            if len(saved) == count:
                raise _EnoughError
            return saved[-1]  # an output that its own node held would be freed by the garbage collector only

        with self.rerun.once_more(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, _same):
            try:
                self.rerun.repeat(self.again)
            except _EnoughError:
                self.rerun.stopped()
        if [(tensor.shape, tensor.dtype) for tensor in saved] != self.kinds:
            raise GradientError(
                f"{type(self.rerun.layer).__name__} is not a function of its inputs: run again on the same ones, it "
                f"saves {len(saved)} tensors for its gradient of other shapes or number than the {len(self.kinds)} of "
                "its first run",
                "layers that do the same for the same",
                "look for something that it reads from outside; or take gradient='backprop'",
            )
        if self.witness is not None:
            place, seen = self.witness
            require_same_glimpse(glimpse(saved[place]), seen, type(self.rerun.layer).__name__)
        return saved


def _same(tensor: Tensor) -> Tensor:
    return tensor
