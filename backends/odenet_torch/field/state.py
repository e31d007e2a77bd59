"""The state as a tuple of tensors: what it is carried as, and what it is called with and returned as."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odenet import DtypeError, GridError, NonFiniteError, StateError
from odenet.kit import Rebuild, array_of_numbers, shown, tree_flatten, tree_leaves, tree_paths, tree_same_shape
from odenet_torch.field.differentiating import transformed
from odenet_torch.field.memory import Memory, written
from odenet_torch.field.not_dense import require_dense

Leaves = tuple[Tensor, ...]
_HALF = (torch.bfloat16, torch.float16)
NUMBERS = (*_HALF, torch.float32, torch.float64, torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Layout:
    """How a tree of tensors becomes the tuple that the steps work on, and back.

    Half-precision leaves are carried in float32: increments of size h would be lost in bfloat16, and with them the
    backward pass. The field still sees, and the solution is returned in, the number type of y0.

    Args:
        unflatten: the tree from its leaves.
        single: whether the tree is one tensor, the common case.
        dtypes: number types of y0's leaves.
        carried: number types between field evaluations.
        time: number type of times.
        device: of all leaves.
        memory: what is known of the memory that the field works on.
    """

    unflatten: Rebuild
    single: bool
    dtypes: tuple[torch.dtype, ...]
    carried: tuple[torch.dtype, ...]
    time: torch.dtype
    device: torch.device
    memory: Memory = dataclasses.field(compare=False, repr=False)

    def evaluate(self, f: Callable[[Any], Any], y: Leaves, *, start: bool = False) -> Leaves:
        """The slope at y.

        Args:
            f: the field, of the tree.
            y: where; its memory is not f's to write on.
            start: whether y may be the caller's y0, or stands for it.

        Raises:
            StateError: as `slope`; or f wrote on y.
        """
        memory = self.memory
        if start or memory.careful:
            return memory.evaluate(self, f, y, start)
        before = memory.count(y)
        slope = self.slope(f(self.call(y)), y)
        if memory.count(y) != before:
            raise written()
        return slope

    def call(self, leaves: Leaves) -> Any:
        """The tree that the field is called with."""
        if self.dtypes != self.carried:
            leaves = tuple(leaf.to(kind) for leaf, kind in zip(leaves, self.dtypes, strict=True))
        return leaves[0] if self.single else self.unflatten(leaves)

    def slope(self, value: Any, like: Leaves) -> Leaves:
        """What the field returned as leaves to add to `like`.

        Raises:
            StateError: another tree or other shapes than the state's.
            DtypeError: a number type that would widen the state's.
        """
        leaves: Sequence[Any]
        if self.single and isinstance(value, Tensor):
            if value.shape == like[0].shape and value.dtype is self.carried[0]:  # the most
                return (value,)
            leaves = (value,)
        else:
            leaves = self._leaves(value, like)
        if any(k.shape != y.shape for k, y in zip(leaves, like, strict=True)):
            raise StateError(
                f"the field returned shapes {[tuple(k.shape) for k in leaves]} for a state of shapes "
                f"{[tuple(y.shape) for y in like]}",
                "a slope of the state's own shape",
            )
        return tuple(
            k if k.dtype is kind else _narrow(k, kind, dtype)
            for k, kind, dtype in zip(leaves, self.carried, self.dtypes, strict=True)
        )

    def _leaves(self, value: Any, like: Leaves) -> list[Tensor]:
        if not tree_same_shape(self.unflatten(like), value):
            raise StateError(
                f"the field returned {_describe(value)} for a state that is {_describe(self.unflatten(like))}",
                "a tree like the state's",
            )
        leaves = tree_leaves(value)
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                raise StateError(f"the field returned a {type(leaf).__name__}", "tensors", "use torch.zeros_like for 0")
        return leaves

    def returned(self, leaf: Tensor, index: int) -> Tensor:
        """A carried leaf in the number type of y0."""
        return leaf if self.dtypes == self.carried else leaf.to(self.dtypes[index])


def layout(y0: Any) -> tuple[Layout, Leaves]:
    """The layout of a state and its leaves as carried.

    NumPy arrays and numbers become tensors of their own number type (numbers: torch's default) on the default device.

    Raises:
        DtypeError: integers or booleans. StateError: several devices. NonFiniteError: NaN in NumPy arrays or numbers.
    """
    leaves, unflatten = tree_flatten(y0)
    tensors = [_tensor(path, leaf) for path, leaf in tree_paths(y0)]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise StateError(f"y0 lies on {', '.join(sorted(map(str, devices)))}", "leaves on one device")
    dtypes = tuple(tensor.dtype for tensor in tensors)
    carried = tuple(torch.float32 if kind in _HALF else kind for kind in dtypes)
    real = [kind.to_real() for kind in carried]
    time = torch.float64 if torch.float64 in real else torch.float32
    result = Layout(unflatten, leaves[0] is y0, dtypes, carried, time, devices.pop(), Memory(len(tensors)))
    # what needs no gradient is an alias: a field that calls requires_grad_() on it leaves the caller's tensor alone
    # (derivatives that torch.func and forward mode carry would be lost with the alias)
    keep_graph = transformed()
    tensors = [tensor if keep_graph or tensor.requires_grad else tensor.detach() for tensor in tensors]
    if torch.is_grad_enabled():  # a tensor of inference mode takes part in no graph, and an alias of it is another
        tensors = [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]
    return result, tuple(tensor.to(kind) for tensor, kind in zip(tensors, carried, strict=True))


def _tensor(path: str, leaf: Any) -> Tensor:
    tensor = leaf
    if not isinstance(leaf, Tensor):
        if isinstance(leaf, np.ma.MaskedArray):
            array_of_numbers(f"y0 {path}", leaf)
        try:
            plain = float(leaf) if type(leaf) is int else leaf
            plain = np.asarray(plain, order="C") if isinstance(plain, np.ndarray) else plain
            tensor = torch.tensor(plain, device=torch.get_default_device())
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DtypeError(
                f"y0 {path} cannot become a tensor ({error})", "numbers, NumPy arrays or tensors"
            ) from error
    require_dense(tensor, f"y0 {path}")
    if tensor.dtype not in NUMBERS:
        raise DtypeError(
            f"y0 {path} is {str(tensor.dtype).removeprefix('torch.')}",
            "float32, float64, bfloat16, float16, complex64, complex128",
            "convert it, as in y0.to(torch.float32)",
        )
    if not isinstance(leaf, Tensor) and not bool(torch.isfinite(tensor).all()):
        raise NonFiniteError(f"y0 {path} holds NaN or infinity", "finite numbers")
    return tensor


def as_tensor(leaf: Any) -> Any:
    """A NumPy array as a tensor of the same number type on the default device; anything else as it is.

    Raises:
        DtypeError: an array of what torch has no number type for.
    """
    if not isinstance(leaf, np.ndarray):
        return leaf
    array_of_numbers("an array among y0 or weights", leaf)
    plain = np.asarray(leaf, order="C")  # torch takes no negative strides
    try:
        return torch.tensor(plain, device=torch.get_default_device())
    except (TypeError, ValueError) as error:
        raise DtypeError(f"an array of {plain.dtype} cannot become a tensor ({error})", "arrays of numbers") from error


def _narrow(k: Tensor, kind: torch.dtype, dtype: torch.dtype) -> Tensor:
    try:
        wide = torch.promote_types(k.dtype, kind) is not kind
    except RuntimeError:  # float8 is promoted to nothing
        wide = True
    if wide:
        raise DtypeError(
            f"the field returned {k.dtype} for a state of {dtype}, which would be promoted in silence",
            f"{dtype}, or what it holds",
            "give the weights (or y0) the number type you want, as in weights.to(y0.dtype)",
        )
    return k.to(kind)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, dict):
        return f"a dict of {', '.join(key if isinstance(key, str) else shown(key) for key in value)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, (tuple, list)) else "")


def meta_state() -> StateError:
    """The error for a state whose numbers step sizes would be taken from, and that has none."""
    return StateError("y0 lies on the meta device, whose tensors hold no numbers to adapt to", "a device with memory")


def require_times(kind: torch.dtype, times: Iterable[float]) -> None:
    """Raises GridError for a time that the number type of times does not hold."""
    most = torch.finfo(kind).max
    for t in times:
        if abs(t) > most:
            raise GridError(f"a time of {t} with a state whose times are {kind}", f"times up to {most:.3g}")
