"""A batch as tensors, and the loss that is taken where a user names none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from odenet import InputError
from odenet.kit import array_of_numbers, shown, tree_leaves, tree_map


def on(like: Tensor, batch: Any) -> Any:
    """The batch with NumPy arrays as tensors on the device of `like`, inexact ones of its number type."""

    def leaf(value: Any) -> Any:
        if not isinstance(value, np.ndarray | np.generic):
            return value
        value = np.asarray(value)
        array_of_numbers("batch", value)
        tensor = torch.tensor(value, device=like.device)
        return tensor.to(like.dtype) if tensor.is_floating_point() else tensor

    return tree_map(leaf, batch)


def pair(like: Tensor, batch: Any) -> tuple[Any, Any]:
    """Input and target, as `on` has them; None as the target of a batch that is no pair."""
    return on(like, batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None))


def mean_loss(outputs: Any, target: Any = None) -> Tensor:
    """Cross-entropy, half the mean squared difference to a target, or half the mean square where there is none.

    Shapes: outputs (batch, classes) with whole numbers (batch,) as target; outputs and target of one shape; or any
    tree of outputs.

    Raises:
        InputError: anything else.
    """
    leaves = tree_leaves(outputs)
    if leaves and all(isinstance(leaf, Tensor) for leaf in leaves):
        if target is None:
            return 0.5 * sum((leaf.abs() ** 2).mean() for leaf in leaves)  # pyright: ignore[reportReturnType]
        if len(leaves) == 1 and isinstance(target, Tensor):
            of_classes = not (target.is_floating_point() or target.is_complex())
            if of_classes and outputs.ndim == 2 and target.shape == outputs.shape[:1]:
                return F.cross_entropy(outputs, target)
            if not of_classes and target.shape == leaves[0].shape:
                return 0.5 * ((leaves[0] - target).abs() ** 2).mean()
    kinds = " and ".join(_kind(value) for value in (outputs, target))
    raise InputError(
        f"outputs and target that are {kinds}, without a loss",
        "outputs (batch, classes) with class numbers (batch,), or both of one shape, or outputs alone",
        "give loss=function(outputs, target)",
    )


def scalar(loss: Callable[..., Any] | None, outputs: Any, target: Any) -> Tensor:
    """The loss, a user's or `mean_loss`; of outputs alone where the target is None.

    Raises:
        InputError: it is no real scalar.
    """
    if loss is not None and not callable(loss):
        raise InputError(f"loss={shown(loss)}, a {type(loss).__name__}", "loss(outputs, target), or None")
    value = (mean_loss if loss is None else loss)(*((outputs,) if target is None else (outputs, target)))
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        raise InputError(f"the loss returned {shown(value)}", "a real scalar tensor")
    return value


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
