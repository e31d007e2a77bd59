"""Looking whether a block jumps where it compares its state (`odenet._gradients.switches`)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from odenet.kit import switches, tree_leaves
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.jumps import Watch
from odenet_torch.field.state import Leaves

_LONGER = 4
"""How many times as many operations may run elsewhere as at the state itself: a loop may not end there."""


class _Look(TorchDispatchMode):
    """An evaluation with another state in the place of y, whose comparisons are written down."""

    def __init__(self, y: Leaves, moved: Leaves, most: int | None) -> None:
        super().__init__()
        self.moved = {id(leaf): other for leaf, other in zip(y, moved, strict=True)}
        self.most, self.sides, self.names, self.halves = most, list[int](), list[str](), False
        self.out: Leaves = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(lambda x: self.moved.get(id(x), x), (args, kwargs or {}))
        out = func(*args, **kwargs)
        self.names.append(func._schema.name)
        if self.most is not None and len(self.names) > self.most:
            raise _TooLongError
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.halves |= x.dtype in HALF
                if x.dtype == torch.bool:
                    self.sides.append(zlib.crc32(x.detach().cpu().numpy().tobytes()))
        return out

    def finish(self, out: Leaves, *, hidden: bool) -> _Look | None:
        """With what was returned; None if that is not finite."""
        self.out = tuple(leaf.detach() for leaf in out)
        if hidden:  # which operations ran tells of what the program has compared
            self.sides.append(hash(tuple(self.names)))
        return self if all(bool(torch.isfinite(leaf).all()) for leaf in self.out) else None

    def change(self, other: _Look) -> float:
        """See `switches.Look`."""
        pairs = [pair for pair in zip(self.out, other.out, strict=True) if pair[0].numel()]
        return max((float((one - two).abs().amax() / _size(one, two)) for one, two in pairs), default=0.0)


class _TooLongError(Exception):
    """More operations than at the state itself."""


def _size(*leaves: Tensor) -> Tensor:
    sizes = [torch.linalg.vector_norm(leaf) / leaf.numel() ** 0.5 for leaf in leaves]
    return torch.stack(sizes).amax().clamp_min(torch.finfo(sizes[0].dtype).tiny)


def jumps(y: Leaves, evaluate: Callable[[], Leaves], *, hidden: bool) -> bool:
    """Whether a block, which compares its state, was seen to jump where a comparison changes.

    Args:
        y: the state.
        evaluate: the block's evaluation at y, always with the same random numbers.
        hidden: whether it reads numbers, so that a program may compare them.
    """
    y = tuple(leaf for leaf in y if leaf.numel() and (leaf.is_floating_point() or leaf.is_complex()))
    if not y:
        return False
    most: int | None = None
    halves = False

    def look(place: switches.Place) -> _Look | None:
        nonlocal most, halves
        try:
            at = _Look(y, _moved(y, place), most)
            with torch.no_grad(), at:
                out = evaluate()
            finished = at.finish(out, hidden=hidden)
        except Exception:  # whatever it raises so far away, or cannot be done with a transform's tensors
            return None
        most = _LONGER * len(at.names) if most is None else most
        halves |= at.halves
        return finished

    if (start := look(switches.STATE)) is None:
        return False
    width = max(2.0**-26, *(32 * torch.finfo(leaf.dtype).eps for leaf in y))
    least = switches.COARSE if halves else switches.LEAST
    return switches.jumps(lambda place: look(place) if place.s else start, width, least=least, hidden=hidden)


def seen_to_jump(watch: Watch, y: Leaves, evaluate: Callable[[], Leaves]) -> bool:
    """Whether a block jumps that has run once under a watch; see `jumps`."""
    compares = watch.compares or watch.reads
    return watch.jumps or (compares and jumps(y, evaluate, hidden=watch.reads))


def elsewhere(y: Leaves, at: Leaves, evaluate: Callable[[], Leaves]) -> Leaves:
    """What an evaluation at y is with another state in its place; without a gradient."""
    with torch.no_grad(), _Look(y, at, None):
        return evaluate()


def either_side(y: Leaves, line: int, s: float) -> tuple[Leaves, Leaves]:
    """The state a little to both sides, in a direction by chance, by as many sizes of it."""
    return _moved(y, switches.Place(line, s)), _moved(y, switches.Place(line, -s))


def _moved(y: Leaves, place: switches.Place) -> Leaves:
    """The state at a place: in a direction by chance, of its own size, or of 1 for one of zeros."""
    if not place.s:
        return tuple(leaf.detach() for leaf in y)
    generator, moved = torch.Generator().manual_seed(place.line), list[Tensor]()
    for leaf in y:
        size = torch.linalg.vector_norm(leaf.detach()) / leaf.numel() ** 0.5
        kind = torch.complex128 if leaf.is_complex() else torch.float64
        way = torch.randn(leaf.shape, generator=generator, dtype=kind).to(leaf)
        moved.append(leaf.detach() + place.s * way * torch.where(size > 0, size, torch.ones_like(size)))
    return tuple(moved)
