"""Blocks that jump: they round, choose or count by their state, so that a small error in it may change all they return.

So does a normalisation over very few numbers: what it divides by, their spread, may be tiny beside them. It is known by
its operation, or by its parts (`odenet._gradients.few_numbers`).

A rebuilt state of which a little is wrong may be on the other side of such a jump, where another branch has another
gradient: how far the state itself is off says nothing of that. Looked for once in a block's life.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odenet.kit import few_numbers, tree_leaves
from odenet_torch.field.looked import Looked
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.state import Leaves

Level = few_numbers.Level
APART, SMOOTH, SIZE, FEW = few_numbers.APART, few_numbers.SMOOTH, few_numbers.SIZE, few_numbers.FEW
CENTRED, SPREAD, DIVIDED = few_numbers.CENTRED, few_numbers.SPREAD, few_numbers.DIVIDED

JUMPING = Looked()
"""Parts of fields that were seen to jump."""
DIVIDING = Looked()
"""Those of them that divide by what may vanish: no part of a step bounds what is off there."""

_OPERATIONS = frozenset(
    "round floor ceil trunc frac remainder fmod floor_divide sign sgn heaviside argmax argmin topk argsort kthvalue "
    "mode hardshrink searchsorted bucketize histc histogram histogramdd bincount multinomial bernoulli "
    "quantize_per_tensor fake_quantize_per_tensor_affine_cachemask "
    "fake_quantize_per_channel_affine_cachemask _fake_quantize_learnable_per_tensor_affine".split()
)
_INDEXED = frozenset(
    "gather scatter scatter_add scatter_reduce index index_select index_put index_add index_copy index_fill take "
    "embedding one_hot".split()
)  # that jump where the index depends on the state, as that of a largest entry does
_ARITHMETIC = frozenset("add sub mul div pow".split())  # that jump where they meet a count
_VIEWS = frozenset(
    "view _unsafe_view reshape permute transpose t unsqueeze squeeze expand detach alias clone contiguous".split()
)
_KEEPING = _VIEWS | frozenset(
    "slice select split split_with_sizes unbind _to_copy flip neg abs mul div sqrt pow square real imag view_as_real "
    "view_as_complex _conj _conj_physical conj_physical where clamp clamp_min clamp_max maximum minimum add sub".split()
)
"""What leaves numbers that are put together or centred what they are, beside others that are so or no function of y."""
_SUMS = frozenset("sum mean nansum amax amin max min".split())
_SPREADS = frozenset("var std var_mean std_mean".split())
_NORMS = frozenset("linalg_vector_norm norm".split())
_PRODUCTS = frozenset("bmm mm dot vdot mv".split())
_OPERATIONS_OF_NORM = frozenset("native_layer_norm native_group_norm _fused_rms_norm".split())
_INVERTING = frozenset("rsqrt reciprocal log".split())


def _operation(name: str, args: Any, elements: int) -> Level:
    """The level of what a normalisation that is one operation returns, of a state of so many elements."""
    if name in ("native_layer_norm", "_fused_rms_norm"):
        number, most = math.prod(args[1]), few_numbers.MOST - (name == "_fused_rms_norm")
        return DIVIDED._replace(groups=elements // number if number == most else math.inf) if number <= most else SMOOTH
    if name == "native_group_norm":
        return DIVIDED if elements // (args[3] * args[6]) <= few_numbers.MOST else SMOOTH
    # with running statistics, it is linear
    training = name.endswith(("native_batch_norm", "batch_norm_legit")) and any(x is True for x in args)
    return DIVIDED if training and elements // args[0].shape[1] <= few_numbers.MOST else SMOOTH


def _axes(name: str, args: Any, kwargs: Any, rank: int) -> set[int]:
    """Those that an operation reduces."""
    place = 2 if name in _NORMS else 1
    axes = kwargs.get("dim", args[place] if len(args) > place else None)
    if axes is None or axes == [] or isinstance(axes, bool):
        return {*range(rank)}
    return {axis % max(rank, 1) for axis in (axes if isinstance(axes, (list, tuple)) else [axes])}


def _reduced(level: Level, x: Tensor, axes: set[int], centred: bool, square: bool) -> Level:
    """Of a sum, a largest or least number, or a norm."""
    number = math.prod(x.shape[axis] for axis in axes)
    groups = x.numel() // max(number, 1) if x.ndim - 1 in axes else math.inf
    return few_numbers.reduced(level, number, groups, parts=1 + x.is_complex(), square=square, centred=centred)


class Watch(TorchDispatchMode):
    """Looks for operations that jump, on what depends on a state y.

    Args:
        y: the state.

    Attributes:
        jumps: whether there was one.
        rounds: whether one rounded, or sorted.
        divides: whether one was a division by what may vanish.
        compares: whether something was compared that depends on y: `field.switches` tells whether it jumps there.
        names: of all operations on what does.
        reads: whether the program has come to know a number that does, which it may compare itself.
    """

    def __init__(self, y: Leaves) -> None:
        super().__init__()
        self.jumps = self.rounds = self.divides = self.compares = self.reads = False
        self.names = set[str]()
        self.depends = {id(leaf): leaf for leaf in y}  # kept alive, so that no id is taken again
        self.levels = {id(leaf): SMOOTH for leaf in y}
        self.origins: dict[int, int] = {}  # of views, by `id`: the tensor whose numbers they are
        self.once = few_numbers.rows([leaf.shape for leaf in y])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = [x for x in tree_leaves(args) if id(x) in self.depends]
        if read:
            results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
            name = func._schema.name.removeprefix("aten::").removesuffix("_")
            self.names.add(name)
            if name.endswith("_like") or name.startswith("new_"):  # of the shape alone, as what dropout draws into
                return out
            # a mask that multiplies, or a number that becomes an index
            converted = name == "_to_copy" and read[0].is_floating_point() != results[0].is_floating_point()
            indexed = name in _INDEXED and any(x.dtype in (torch.int64, torch.int32) for x in read)
            level = self._level(name, args, kwargs or {}, read)
            divided = level.kind == DIVIDED.kind and level.groups not in self.once
            counted = name in _ARITHMETIC and results[0].is_floating_point() and any(map(_whole, read))
            rounded = name == "div" and (kwargs or {}).get("rounding_mode") is not None
            replaced = name == "threshold" and args[1] != args[2]  # by another number than the threshold
            if rounded or replaced or name in _OPERATIONS or (converted and read[0].dtype != torch.bool):
                self.rounds = True
            if converted or counted or indexed or divided or self.rounds:
                self.jumps = True
            self.divides |= divided
            self.compares |= any(x.dtype == torch.bool for x in results)
            self.reads |= name == "_local_scalar_dense" and any(x.dtype != torch.bool for x in read)
            self.depends.update((id(x), x) for x in results)
            self.levels.update((id(x), level) for x in results)
            if name in _SPREADS and len(results) == 2 and level.kind == SPREAD.kind:  # and a mean
                self.levels[id(results[1])] = level._replace(kind=FEW.kind)
            if name in _VIEWS:
                self.origins.update((id(x), self._origin(read[0])) for x in results if x is not read[0])
        return out

    def forget(self, x: Any) -> None:
        """It does not depend on y: nor does another one that has its `id` when it is gone."""
        for known in (self.depends, self.levels, self.origins):
            known.pop(id(x), None)

    def _origin(self, x: Any) -> int:
        return self.origins.get(id(x), id(x))

    def _of(self, x: Any) -> Level:
        return self.levels.get(id(x), APART) if isinstance(x, Tensor) else APART

    def _level(self, name: str, args: Any, kwargs: Any, read: list[Any]) -> Level:
        """The level of what an operation returns; see `few_numbers.Level`."""
        most, first = max(map(self._of, read)), args[0] if isinstance(args[0], Tensor) else read[0]
        if most.kind >= DIVIDED.kind:
            return SMOOTH  # it is known already
        if name in _OPERATIONS_OF_NORM or name.endswith(("native_batch_norm", "batch_norm_legit")):
            return _operation(name, args, first.numel())
        second = args[1] if len(args) > 1 else None
        if name in _SUMS and not isinstance(second, Tensor):
            of = most.kind in (CENTRED.kind, SPREAD.kind)
            return _reduced(most, first, _axes(name, args, kwargs, first.ndim), of, square=False)
        if name in _SPREADS:
            return _reduced(SMOOTH, first, _axes(name, args, kwargs, first.ndim), centred=True, square=False)
        if name in _NORMS:
            of = most.kind in (CENTRED.kind, SPREAD.kind)
            return _reduced(most, first, _axes(name, args, kwargs, first.ndim), of, square=most == SMOOTH)
        power = second if name == "pow" and isinstance(second, (int, float)) else None
        same = (
            name in ("mul", *_PRODUCTS) and isinstance(second, Tensor) and self._origin(first) == self._origin(second)
        )
        if name in _PRODUCTS:
            centred = self._of(first).kind == self._of(second).kind == CENTRED.kind
            if not (same or centred):
                return SMOOTH
            return _reduced(most, first, {first.ndim - 1}, centred, square=same and most == SMOOTH)
        if most == SMOOTH and (
            same or name in ("abs", "square") or (power is not None and power > 0 and power % 2 == 0)
        ):
            return SIZE._replace(number=1 + first.is_complex())
        return self._of_arithmetic(name, args, kwargs, most, power)

    def _of_arithmetic(self, name: str, args: Any, kwargs: Any, most: Level, power: float | None) -> Level:
        """Of an operation on each number by itself."""
        one, other = self._of(args[0]), self._of(args[1] if len(args) > 1 else None)
        if name == "div" and few_numbers.may_vanish(other):
            return few_numbers.divided(other)
        if few_numbers.may_vanish(one) and (name in _INVERTING or (name == "pow" and not (power or 0) > 0)):
            return few_numbers.divided(one)
        if name == "sub" and other.kind == FEW.kind and one > APART:
            return few_numbers.subtracted(most, one)
        if name == "hypot":
            return few_numbers.sized(2, math.inf)
        if most.kind == SIZE.kind and name in ("add", "sub", "maximum", "clamp_min", "clamp"):
            if one.kind == other.kind == SIZE.kind:
                return few_numbers.sized(one.number + other.number, math.inf)
            numbers = [x for x in (*args[1:2], kwargs.get("min")) if isinstance(x, (int, float))]
            if any(abs(x) > few_numbers.NEAR_ZERO for x in numbers):
                return SMOOTH
        chosen = args[1:] if name == "where" else args
        read = [self._of(x) for x in chosen if isinstance(x, Tensor)]
        most = max(read, default=SMOOTH)
        alike = all(level.kind in (APART.kind, most.kind) for level in read)
        return most if alike and name in _KEEPING else SMOOTH

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.levels.clear()
        self.depends.clear()  # who looks for graphs that are left is not to find those


def _whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def jumps(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether a part of a field was seen to jump (see `Looked.some`)."""
    return JUMPING.some(root, reached)


def divides(root: Any, reached: ReachableObjects | None = None) -> bool:
    """Whether it was seen to jump by a division."""
    return DIVIDING.some(root, reached)


def against(increment: Tensor, y: Tensor) -> Tensor:
    """What an error in y is held against where the next step jumps: the increment, all of which may be another one; of
    one that is tiny beside y, what rounding lets see of it."""
    return increment.abs() + torch.finfo(y.dtype).eps ** 0.5 * y.abs()
