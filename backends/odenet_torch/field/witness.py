"""Witnesses by value: whether what runs again reaches what it reached.

What a field may read beside its arguments has no end: files, clocks, patched functions, the memory of another library.
`surroundings` finds again what it can find; what it cannot find is told here, by what comes out. Of a state that steps
end at, some entries are kept, and held against those that the same steps reach when they run again.

The rule. Steps that run again from a known state may miss the known state at their end by `OFF` of what they add to it,
and by the rounding of that state. Kernels that add in another order are off by a few roundings, a thousand times less;
a field that has become another one is off by about as much as its slope, and so is the gradient.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from odenet import GradientError
from odenet_torch.field.differentiating import valueless
from odenet_torch.field.state import Leaves

OFF = 0.02
"""Of what steps add to a state: a state that is missed by more was reached by other steps."""
OFF_HALF = 0.1
"""The same where a field computes in 16 bits."""
ROUNDINGS = 16
"""Of a state, by which it may be missed in any case."""
ENTRIES = 1 << 12
"""Of a leaf that are looked at, at most: every so many along its axes."""
EVERY = 8
"""Where a look costs something, one of so many steps has it, other ones in each pass."""

_passes = itertools.count()


def turns() -> int:
    """A number for each pass: which of its steps have their turn to be looked at."""
    return next(_passes) % EVERY


def sample(leaves: Leaves, *, own: bool = False) -> Leaves:
    """Some entries of a state, to know it again by; itself where it is small.

    Args:
        leaves: of the state.
        own: whether in memory of its own, because somebody may write on the state.
    """
    parts = []
    for leaf in leaves:
        part = leaf.detach()
        if part.numel() > ENTRIES:
            part = part[_every(part.shape)].clone()
        elif own:
            part = part.clone()
        parts.append(part)
    return tuple(parts)


@functools.lru_cache(256)
def _every(shape: torch.Size) -> tuple[slice, ...]:
    """Places along each axis of an array, so that no more than `ENTRIES` are left. The strides are odd: in rows of
    even lengths they meet all columns."""
    left, strides = [*shape], [1] * len(shape)
    while (count := functools.reduce(lambda a, b: a * b, left)) > ENTRIES:
        axis = max(range(len(shape)), key=left.__getitem__)
        strides[axis] = max(strides[axis] * min(-(-count // ENTRIES), left[axis]), 2) | 1
        left[axis] = -(-shape[axis] // strides[axis])
    return tuple([slice(None, None, stride) for stride in strides])


def sampled_as(kept: Leaves, leaves: Leaves) -> Leaves:
    """Of a state the entries that were kept of one of the same shapes."""
    pairs = zip(leaves, kept, strict=True)
    return tuple([leaf if leaf.shape == known.shape else leaf[_every(leaf.shape)] for leaf, known in pairs])


def looks(leaves: Sequence[Tensor]) -> bool:
    """Whether values of these can be read without waiting for a device."""
    return all([type(leaf) in _PLAIN and leaf.device.type == "cpu" for leaf in leaves]) and not valueless()


_PLAIN = (Tensor, torch.nn.Parameter)


def require_reached(
    again: Leaves,
    kept: Leaves,
    start: Leaves,
    name: str,
    off: float = OFF,
    rounded: Iterable[float] | None = None,
) -> None:
    """Looks whether steps that ran again have reached what they had reached.

    Args:
        again: the state at their end.
        kept: that of the forward pass, or a sample of it (see `sample`).
        start: the state that they began at.
        name: what has run again, for a message.
        off: of what they add, see `OFF`.
        rounded: by how much each leaf that was kept is known to be off.

    Raises:
        GradientError: they have reached another state.
    """
    more = rounded or itertools.repeat(0.0)
    for leaf, known, first, by in zip(sampled_as(kept, again), kept, sampled_as(kept, start), more, strict=False):
        if torch.equal(leaf, known):
            continue
        leaf, known, first = (_of_numbers(x) for x in (leaf, known, first))
        apart, moved, size = (float(torch.linalg.vector_norm(x)) for x in (leaf - known, known - first, known))
        least = ROUNDINGS * torch.finfo(known.dtype).eps * size + by
        if not apart <= off * moved + least and math.isfinite(size):  # what is not finite is said elsewhere
            how = f"{apart / moved:.1e} of what it adds" if moved else "anything, where it had added nothing"
            raise unlike(name, f"misses the state that it had reached by {how}")


def _of_numbers(leaf: Tensor) -> Tensor:
    leaf = leaf.detach().flatten()
    return leaf if leaf.is_floating_point() or leaf.is_complex() else leaf.double()


def unlike(name: str, how: str) -> GradientError:
    """The error for what has run again as something else."""
    return GradientError(
        f"{name} is not what it was in the forward pass: run again from the same state, it {how}",
        "the same values in the forward and the backward pass",
        "look for what it reads from outside and that has changed since (a patched function, a file, a setting, a "
        "clock, a random number); call backward() before it changes; or take gradient='backprop', which runs it once",
    )
