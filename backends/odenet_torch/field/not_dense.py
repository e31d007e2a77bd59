"""Tensors that are no array of numbers: nested, masked, sparse. No step can be taken with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from odenet import StateError
from odenet.kit import require_finite_tree, tree_leaves


def not_dense(value: Any) -> str | None:
    """What a tensor is that is not dense, to follow "a tensor"; None for one that is, and for what is no tensor.

    Asked before its shape, which a nested one does not have, and before an operation, which a masked one may not have.
    """
    if not isinstance(value, Tensor):
        return None
    if value.is_nested:
        return "nested, of several shapes"
    if value.layout is not torch.strided:
        return f"of layout {value.layout}"
    masked = type(value) not in (Tensor, nn.Parameter) and isinstance(value, torch.masked.MaskedTensor)
    return "of class MaskedTensor, some of whose numbers are none" if masked else None


def require_dense(value: Any, what: str) -> None:
    """Raises StateError where one of the tensors in a tree is not dense: one that `what` was given as, or that holds
    itself."""
    if type(value) is Tensor and value.layout is torch.strided and not value.is_nested:  # the most
        return
    require_finite_tree(what, value)
    if fault := first(tree_leaves(value)):
        raise StateError(
            f"{what} is a tensor {fault}", "dense tensors", "take .to_dense(), .to_padded_tensor(0.0) or .to_tensor(0)"
        )


def first(values: Iterable[Any]) -> str | None:
    """What the first of some is that is not dense."""
    return next(filter(None, map(not_dense, values)), None)
