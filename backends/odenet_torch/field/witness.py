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
from collections.abc import Callable, Sequence
from ctypes import string_at

import torch
from torch import Tensor

from odenet import GradientError
from odenet.kit import CHANGED, scattered, signs
from odenet_torch.field.differentiating import valueless
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Leaves

OFF = 0.005
"""Of what steps add to a state: a state that is missed by more was reached by other steps."""
OFF_HALF = 0.1
"""The same where a field computes in 16 bits."""
ROUNDINGS = 16
"""Of a state, by which it may be missed in any case."""
LIKELY = 3
"""Where a state is rounded: what one move by as much as rounding may have moved it changes, is more than a part of so
many of what another such move does."""
ENTRIES = 1 << 10
"""Of a leaf that are looked at, at most: every so many along its axes."""
EVERY = 16
"""Where a look costs something, one of so many steps has it, other ones in each pass."""

_passes = itertools.count()


def turns(of: int = EVERY) -> int:
    """A number below that for each pass, as if by chance: which of its steps have their turn to be looked at."""
    return scattered(next(_passes)) % of


def sample(leaves: Leaves, *, own: bool = False, whole: int = ENTRIES) -> Leaves:
    """Some entries of a state, to know it again by; itself where it is small.

    Args:
        leaves: of the state.
        own: whether in memory of its own, because somebody may write on the state.
        whole: of so many entries a leaf is kept whole.
    """
    parts = []
    for leaf in leaves:
        part = leaf.detach()
        if part.numel() > whole:
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
    return all([leaf.device.type == "cpu" for leaf in leaves]) and ordinary(leaves)


def ordinary(leaves: Sequence[Tensor]) -> bool:
    """Whether these have values, and are of no class of somebody's."""
    return all([type(leaf) in _PLAIN for leaf in leaves]) and not valueless()


_PLAIN = (Tensor, torch.nn.Parameter)


def require_reached(
    again: Leaves, kept: Leaves, start: Leaves, name: str, off: float = OFF, *rounded: Callable[[int], float]
) -> None:
    """Looks whether steps that ran again have reached what they had reached.

    Args:
        again: the state at their end.
        kept: that of the forward pass, or a sample of it (see `sample`).
        start: the state that they began at.
        name: what has run again, for a message.
        off: of what they add, see `OFF`.
        rounded: by how much a leaf may be off as well, by its place; each is asked for if what was allowed so far is
            not enough.

    Raises:
        GradientError: they have reached another state.
    """
    if part := missed(again, kept, start, off, *rounded):
        raise unlike(name, missing(part))


def missed(again: Leaves, kept: Leaves, start: Leaves, off: float, *rounded: Callable[[int], float]) -> float:
    """By how much of what they add the same steps have missed their end, if that is more than allowed; else 0."""
    with torch.no_grad():
        for i, (leaf, known) in enumerate(zip(sampled_as(kept, again), kept, strict=True)):
            if torch.equal(leaf, known):
                continue
            first = sampled_as(kept, start)[i]
            if not (known.is_floating_point() or known.is_complex()):
                leaf, known, first = leaf.double(), known.double(), first.double()
            parts = torch.stack([leaf - known, known - first, known]).reshape(3, -1)
            apart, moved, size = torch.linalg.vector_norm(parts, dim=1).tolist()
            most = off * moved + ROUNDINGS * torch.finfo(known.dtype).eps * size
            if apart <= most or not math.isfinite(size):  # what is not finite is said elsewhere
                continue
            if not any(apart <= (most := most + more(i)) for more in rounded):
                return apart / moved if moved else math.inf
    return 0.0


def amplified(run: Callable[[Leaves], Leaves], y: Leaves) -> list[float]:
    """By how much what is computed of a state may be off, for each leaf of it, because f amplifies rounding.

    Under another grad mode other kernels run, which add in another order; where what f adds is a small difference of
    large numbers, as at a fixed point, or f jumps, or is steep, that may be more than a part of what it adds.

    Args:
        run: computes it, without gradients. What is not the same when it runs once more has no such excuse.
        y: the state.
    """
    with torch.no_grad():
        once, nearby, again = run(y), run(tuple(map(_nudged, y))), run(y)
        if not all(map(torch.equal, once, again)):
            return [0.0] * len(once)
        pairs = zip(once, nearby, strict=True)
        return [LIKELY * float(torch.linalg.vector_norm((other - one).flatten())) for one, other in pairs]


def _nudged(leaf: Tensor) -> Tensor:
    """As far from a leaf as rounding may move it. What has 16 bits stays: there more is allowed in any case."""
    if not (leaf.is_floating_point() or leaf.is_complex()) or leaf.dtype in HALF or not leaf.numel():
        return leaf
    return moved_by(leaf, ROUNDINGS * torch.finfo(leaf.dtype).eps)


def moved_by(leaf: Tensor, part: float) -> Tensor:
    """As far from a leaf as a part of its norm, by numbers of one size and of signs as if by chance."""
    places = torch.arange(leaf.numel(), device=leaf.device).reshape(leaf.shape)
    size = part * torch.linalg.vector_norm(leaf.detach()) / leaf.numel() ** 0.5
    return leaf.detach() + size * signs(places).to(leaf.dtype)


def missing(part: float) -> str:
    """For a message: by how much the end of steps was missed, of what they add."""
    how = f"{part:.1e} of what it adds" if math.isfinite(part) else "anything, where it had added nothing"
    return f"misses the state that it had reached by {how}"


def glimpse(tensor: Tensor) -> Glimpse | None:
    """Some bytes of a tensor of real numbers on the host, and what they are numbers of; None of any other: a third of a
    microsecond."""
    if tensor.dtype not in _KINDS or type(tensor) is not Tensor or not (tensor.is_cpu and tensor.is_contiguous()):
        return None
    try:
        address, size = tensor.data_ptr(), tensor.nbytes
    except RuntimeError:  # within a transform, or without memory
        return None
    if not address:
        return None
    if size <= 2 * GLIMPSE:
        return string_at(address, size), tensor.dtype
    middle = address + size // 2 // tensor.itemsize * tensor.itemsize
    return string_at(address, GLIMPSE) + string_at(middle, GLIMPSE), tensor.dtype


def require_same_glimpse(again: Glimpse | None, known: Glimpse, name: str, off: float | None = None) -> None:
    """Looks whether what a block computes within itself is what it was.

    Raises:
        GradientError: it is not.
    """
    if again is None or again == known:
        return
    one, other = (torch.frombuffer(bytearray(data), dtype=kind).double() for data, kind in (again, known))
    apart, size = (float(torch.linalg.vector_norm(x)) for x in (one - other, other))
    most = off or (OFF if known[1].itemsize > 2 else OFF_HALF)
    if not apart <= most * size and math.isfinite(size):
        raise unlike(name, f"is off by {apart / size if size else math.inf:.1e} of what it had computed within itself")


Glimpse = tuple[bytes, torch.dtype]
_KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
GLIMPSE = 256
"""Bytes that are looked at, at most, at the start of a tensor and in its middle."""


def unlike(name: str, how: str) -> GradientError:
    """The error for what has run again as something else."""
    return GradientError(
        f"{name} is not what it was in the forward pass: run again from the same state, it {how}",
        "the same values in the forward and the backward pass",
        CHANGED,
    )
