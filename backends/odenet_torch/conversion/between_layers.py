"""What a layer of a converted run returns before the run has ended: a state that only the next layer can take.

The first layer has computed all of the run, so that there is no state between two layers to be had. A tensor that
stands for it has the shape of one, and no values: a model that skips the rest of the run, or that uses a state between
two layers, is told so instead of going on with a state of another depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from odenet import ConversionError

# what may be asked of a state without looking at its values
_ASKED = {
    getattr(Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "requires_grad",
        "is_cuda",
        "is_cpu",
        "ndim",
        "layout",
        "is_leaf",
        "_version",
    )
} | {
    getattr(Tensor, name)
    for name in (
        *(
            "size",
            "dim",
            "numel",
            "nelement",
            "stride",
            "is_floating_point",
            "is_complex",
            "is_contiguous",
            "get_device",
        ),
        *("element_size", "__len__", "ndimension", "is_inference", "__hash__", "type"),
    )
}


class StateBetweenLayers(Tensor):
    """A state that stands between two layers of a run."""

    state: Tensor
    """After the last layer of the run."""
    between: str

    @staticmethod
    def of(state: Tensor, between: str) -> StateBetweenLayers:
        """One that stands for a state; `between` says of what."""
        empty = torch.full((), torch.nan, dtype=state.dtype, device=state.device).expand(state.shape)
        if type(empty) is not Tensor:  # a mode of torch has made it one of its own
            raise ConversionError(
                f"a converted run of layers, whose state is a {type(empty).__name__}: it cannot stand for another one",
                "tensors with values; gradient='checkpoint'",
                "export, or trace, the model as it was before convert(), or take gradient='checkpoint'",
            )
        handed = empty.as_subclass(StateBetweenLayers)
        handed.state, handed.between = state, between
        return handed

    def __deepcopy__(self, memo: dict[int, Any]) -> StateBetweenLayers:
        return StateBetweenLayers.of(self.state.detach().clone(), self.between)

    def __repr__(self, **_: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"Handed({tuple(self.state.shape)}, {self.between})"

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _ASKED and args and isinstance(args[0], StateBetweenLayers):
            with torch._C.DisableTorchFunctionSubclass():
                return func(args[0].state, *args[1:], **(kwargs or {}))
        handed = next(
            (value for value in (*args, *(kwargs or {}).values()) if isinstance(value, StateBetweenLayers)), None
        )
        run = "a converted run" if handed is None else handed.between
        raise ConversionError(
            f"the state between two layers of {run} is used ({getattr(func, '__name__', func)}), and the first layer "
            "has computed all of them",
            "all layers of the run, one after the other",
            "leave a model that skips layers, or that does something between them, as it is; convert it again after "
            "layers were taken out",
        )
