"""Blocks that jump: they round, choose or count by their state, so that a small error in it may change all they return.

So does a normalisation over very few numbers: what it divides by, their spread, may be tiny beside them.

A rebuilt state of which a little is wrong may be on the other side of such a jump, where another branch has another
gradient: how far the state itself is off says nothing of that. Looked for once in a block's life.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odenet.kit import tree_leaves
from odenet_torch.field.looked import Looked
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.state import Leaves

JUMPING = Looked()
"""Parts of fields that were seen to jump."""

_OPERATIONS = frozenset(
    "round floor ceil trunc frac remainder fmod floor_divide sign sgn heaviside argmax argmin topk argsort kthvalue "
    "mode searchsorted bucketize multinomial bernoulli quantize_per_tensor fake_quantize_per_tensor_affine_cachemask "
    "fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine".split()
)
_INDEXED = frozenset(
    "gather scatter scatter_add scatter_reduce index index_select index_put index_add index_copy index_fill take "
    "embedding one_hot".split()
)  # that jump where the index depends on the state, as that of a largest entry does
_FEW = 4
"""Numbers, normalised together, whose spread is too small too often. With GroupNorm and BatchNorm gradients were off
by up to fifty times what the state was off by with 2 of them, by ten with 3 and 4, and by about as much with 8."""


def _normalises_few(name: str, args: Any) -> bool:
    """Whether an operation normalises over very few numbers, by what it computes of them."""
    if name == "native_layer_norm":  # once a row, and not in each of many groups
        return math.prod(args[1]) < _FEW
    if name == "native_group_norm":
        return args[0].numel() // (args[3] * args[6]) <= _FEW
    # with running statistics, it is linear
    training = name.endswith(("native_batch_norm", "batch_norm_legit")) and any(x is True for x in args)
    return training and args[0].numel() // args[0].shape[1] <= _FEW


class Watch(TorchDispatchMode):
    """Looks for operations that jump, on what depends on a state y.

    Args:
        y: the state.

    Attributes:
        jumps: whether there was one.
    """

    def __init__(self, y: Leaves) -> None:
        super().__init__()
        self.jumps = False
        self.depends = {id(leaf): leaf for leaf in y}  # kept alive, so that no id is taken again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves(args) if id(x) in self.depends]
        if read:
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            name = func._schema.name.removeprefix("aten::").removesuffix("_")
            if name.endswith("_like") or name.startswith("new_"):  # of the shape alone, as what dropout draws into
                return out
            # a mask that multiplies, or a number that becomes an index
            converted = name == "_to_copy" and read[0].is_floating_point() != results[0].is_floating_point()
            indexed = name in _INDEXED and any(x.dtype in (torch.int64, torch.int32) for x in read)
            if converted or indexed or name in _OPERATIONS or _normalises_few(name, args):
                self.jumps = True
            self.depends.update((id(x), x) for x in results)
        return out

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.depends.clear()  # who looks for graphs that are left is not to find those


def jumps(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether a part of a field was seen to jump (see `Looked.some`)."""
    return JUMPING.some(root, reached)


def against(increment: Tensor, y: Tensor) -> Tensor:
    """What an error in y is held against where the next step jumps: the increment, all of which may be another one; of
    one that is tiny beside y, what rounding lets see of it."""
    return increment.abs() + torch.finfo(y.dtype).eps ** 0.5 * y.abs()
