"""Graphs that an evaluation leaves behind in places that nobody looks into: an object of another package, a parameter.

Whatever keeps a result, keeps the nodes that computed it and what these have saved. That is looked at once in a block's
life: what is saved there is handed out marked, and marks that are alive when all that is known was put back, and what
the block returned was let go, are held by something that is not known.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odenet import GradientError
from odenet_torch.field.linearity import HookWatch, declares
from odenet_torch.field.saved_tensors import SavedTensor, nodes, now, written
from odenet_torch.field.side_results import recorded
from odenet_torch.field.state import Leaves


class Marked(NamedTuple):
    """An evaluation, whose graph was looked at and let go.

    Args:
        out: what it has returned.
        marks: of all that the graph has saved.
        operation: of whose saved tensors one was written on (see `saved_tensors.written`).
        declares: whether there is a backward, or a hook, of the user's (see `field.linearity`).
    """

    out: Leaves
    marks: list[weakref.ref[SavedTensor]]
    operation: str | None
    declares: bool


def marked(evaluate: Callable[[], Leaves], y: Leaves) -> Marked:
    """An evaluation at y."""
    hooks = HookWatch()
    marks: list[weakref.ref[SavedTensor]] = []
    since = now()

    def pack(tensor: Tensor) -> SavedTensor:
        marks.append(weakref.ref(saved := SavedTensor(tensor)))
        return saved

    with recorded(y), torch.autograd.graph.saved_tensors_hooks(pack, SavedTensor.read), hooks:
        out = evaluate()
    found = [*nodes(out, since)]
    values = tuple(leaf.detach() for leaf in out)
    return Marked(values, marks, written(found), hooks.found or declares(found))


def require_gone(name: str, marks: list[weakref.ref[SavedTensor]]) -> None:
    """Looks whether a graph is gone.

    Raises:
        GradientError: something keeps a part of it.
    """
    for generation in (1, 2):  # cycles of references; those that were just made are in the youngest generations
        if all(mark() is None for mark in marks):
            return
        gc.collect(generation)
    if any(mark() is not None for mark in marks):
        raise GradientError(
            f"{name} keeps a tensor that needs a gradient where it cannot be found again, as an attribute of a "
            "parameter or in an object of another package, and the block is to run again",
            "what is kept in attributes of the block, lists, dicts, closures and global names",
            "keep it there, or tensor.detach(); make it part of the state; or take gradient='backprop'",
        )
