"""Tensors that autograd has saved for the gradient of a field, and that the field wrote on afterwards.

Torch says so in the backward pass only, in an error of its own that names neither the field nor a remedy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch._C import _autograd  # pyright: ignore[reportAttributeAccessIssue]

from odenet import GradientError
from odenet_torch.field.written_on import changed, version

WRITTEN = "modified by an inplace operation"
"""What torch says of them."""
LEAF = "AccumulateGrad"
"""The class of the nodes that a graph ends at. What these have, `variable`, a node of an `autograd.Function` may have,
too: it is the context on which the function writes what it likes, under any name."""
_MANY = 2048  # nodes of a graph that are looked at


class SavedTensor:
    """What a node of a graph holds in the place of a tensor that it has saved.

    Args:
        tensor: it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output that its own node held would be freed by the garbage collector only
        self.version = version(tensor)

    def read(self) -> Tensor:
        """The tensor; torch itself does not look whether what stands in its place was written on."""
        if version(self.tensor) != self.version:
            raise RuntimeError(WRITTEN)
        return self.tensor


def now() -> int:
    """A mark in the order in which this thread records operations."""
    return _autograd._get_sequence_nr()  # the number of the operation that is recorded next


def nodes(outputs: Iterable[Tensor], since: int) -> Iterator[Any]:
    """The nodes of the part of a graph that was recorded after `since` (see `now`), without leaves."""
    stack: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    visited = set(stack)
    while stack and len(visited) < _MANY:
        node = stack.pop()
        if type(node).__name__ == LEAF or node._sequence_nr() < since:
            continue
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                stack.append(following)


def written(found: Iterable[Any]) -> str | None:
    """The operation whose saved tensor was written on, among nodes of a graph; None where there is none."""
    for node in found:
        for name in _saved_by(type(node)):
            try:
                getattr(node, name)
            except RuntimeError as error:
                if WRITTEN in str(error):
                    return type(node).__name__.removesuffix("0").removesuffix("Backward")
    return None


@functools.lru_cache(1024)
def _saved_by(kind: type) -> tuple[str, ...]:
    names = [name for name in dir(kind) if name.startswith("_saved_")]
    return (*names, "saved_tensors") if hasattr(kind, "saved_tensors") else tuple(names)


def of(ctx: Any) -> tuple[Tensor, ...]:
    """What the node of a solve has saved: once, since torch unpacks, and looks at, all of it each time.

    Raises:
        GradientError: a tensor among it was written on.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if WRITTEN not in str(error):
            raise
        raise changed(f"a tensor that the field reads was {WRITTEN}") from error


def refusal(name: str, operation: str) -> GradientError:
    """The error for a field that writes on what its gradient reads."""
    return GradientError(
        f"{name} writes in place on a tensor that autograd has saved for the gradient of {operation}",
        "in-place operations on tensors that no earlier operation's gradient reads",
        "take a new tensor in the place of the in-place operation, as y = y + 1 for y.add_(1), or y = y.clone() before "
        "it; or solve under torch.no_grad()",
    )
