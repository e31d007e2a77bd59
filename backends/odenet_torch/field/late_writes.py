"""Kernels that write on what autograd has saved already, as RReLU does that saves its noise and then draws it.

`torch.utils.checkpoint` stops a second run as soon as all has been saved again. What the last kernel writes after that
would be missing: the memory holds what lay there before. Where a field has such kernels its steps run to their end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from odenet.kit import tree_leaves
from odenet_torch.field import saved_tensors
from odenet_torch.field.looked import Looked
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.saved_tensors import SavedTensor
from odenet_torch.field.surroundings import Written

_LOOKED = Looked()
_LATE = Looked()


def known(root: Any, reached: ReachableObjects | None = None) -> bool | None:
    """Whether a part of a field was seen to write late, be it with other numbers; None where it was not looked at as it
    is."""
    if _LATE.some(root, reached):
        return True
    return False if _LOOKED.has(root, reached) else None


def remember(root: Any, late: bool, reached: ReachableObjects | None = None) -> None:
    """Remember for later passes whether steps write on what they have saved."""
    _LOOKED.add(root, reached)
    if late:
        _LATE.add(root, reached)


def watched(name: str, evaluate: Callable[[], Any], held: Callable[[], list[dict[Any, Any]]]) -> tuple[Any, bool]:
    """What an evaluation with a graph returns, and whether it may not be left where it has saved its last tensor.

    It may not where a tensor that it saved was written on afterwards, or where it puts back then what it has changed
    for the time of its run: a hook, a flag, merged weights, or what is in a tensor or array that it writes on.

    Args:
        name: of the field, for messages.
        evaluate: the evaluation.
        held: what the field is made of holds now, a dict a place (see `surroundings.looker`).

    Raises:
        GradientError: it writes on what its gradient reads.
    """
    saved: list[tuple[Tensor, Tensor]] = []
    before = last = held()
    since = saved_tensors.now()

    def pack(tensor: Tensor) -> SavedTensor:
        nonlocal last
        last = held()
        plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_meta
        if plain and not (tensor.is_leaf and tensor.requires_grad):
            saved.append((tensor.detach(), tensor.detach().clone()))
        return SavedTensor(tensor)

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, SavedTensor.read):
        out = evaluate()
    found = saved_tensors.nodes([x for x in tree_leaves(out) if isinstance(x, Tensor)], since)
    operation = saved_tensors.written(found)
    if operation is not None:
        raise saved_tensors.refusal(name, operation)
    # memory may be given back, as fully_shard does with gathered weights: nothing is there to be read
    late = not all(_held(now) and torch.equal(now, then) for now, then in saved)
    if not late:
        late = any(map(_lent, before, last, held()))
    return out, late


def _held(tensor: Tensor) -> bool:
    return bool(tensor.untyped_storage().nbytes()) or not tensor.numel()


def _lent(before: dict[Any, Any], last: dict[Any, Any], after: dict[Any, Any]) -> bool:
    """Whether something stood elsewhere for a time only."""
    if last is before:
        return False
    none = object()
    changed = (key for key in before.keys() | last.keys() if before.get(key, none) != last.get(key, none))
    # what was written on twice may hold what it held, and torch's count of that does not say so
    return any(isinstance(key, Written) or before.get(key, none) == after.get(key, none) for key in changed)


def run_to_the_end() -> None:
    """Saves a tensor as the last of a segment, in the first run and in each further one: none stops before it."""
    with torch.enable_grad():
        torch.ones((), device="cpu", requires_grad=True).square()
