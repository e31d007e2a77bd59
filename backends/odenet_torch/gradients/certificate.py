"""How far rebuilt states are off, by what the backward pass knows of them, and what is said of it.

A state's rows, and what an error in them is held against, are `odenet._gradients.certified`.

Over 250 lines: a sketch of states, the comparison with it, and the alarm share what a row is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from odenet import Stats
from odenet.kit import BUCKETS, DOUBTFUL, KINKS, SMALL, WHOLE, Alarm, Certified, channel_axes, floor, signs, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field import linearity
from odenet_torch.field.differentiating import several_at_once
from odenet_torch.field.jumps import jumps
from odenet_torch.field.kinks import kinked
from odenet_torch.steps.fixed import Run

Norms = list[tuple[Tensor, Tensor, int]]
"""For each way to read rows: the norms of the rows of a defect and of a state, and the number of entries of a row."""


def relative(defect: AnyLeaves, y: AnyLeaves, shares: list[Tensor] | None = None) -> Tensor:
    """|defect| / |y| of the worst row of the worst leaf, a scalar on the device; `shares` is as for `joined`."""
    rows = norms(defect, y)
    errors = [(off.flatten() / _scale(sizes.flatten(), width)).amax() for off, sizes, width in rows]
    if shares is not None:
        norm = torch.linalg.vector_norm
        shares.extend([norm(off) / norm(sizes) for off, sizes, _ in rows])
    return functools.reduce(torch.maximum, errors) if errors else torch.zeros(())


def norms(defect: AnyLeaves, y: AnyLeaves) -> Norms:
    """See `Norms`."""
    if len(y) == 1 and y[0].ndim == 2 and y[0].numel():  # the most, of which there are many in small networks
        norm = torch.linalg.vector_norm
        return [(norm(defect[0], 2, -1), norm(y[0], 2, -1), y[0].shape[1])]
    pairs = [(d, leaf) for d, leaf in zip(defect, y, strict=True) if leaf.numel()]
    readings = [reading for pair in pairs for reading in _read(*pair)]
    return [(_norm(d, axis), _norm(leaf, axis), leaf.shape[axis]) for d, leaf, axis in readings]


def _read(defect: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    readings = [(defect, y, axis) for axis in channel_axes(y.ndim)]
    # of one axis, they may be channels of one row or rows of one channel
    return readings if y.ndim > 1 else [*readings, (defect[..., None], y[..., None], -1)]


def joined(steps: Sequence[Norms], shares: list[Tensor] | None = None) -> Tensor:
    """The relative error of each of several steps, shape (steps,), in as many operations as that of one.

    Args:
        steps: what they are made of.
        shares: where kinks count, that of all rows of a step together is added to this, for each leaf.
    """
    errors = []
    for column in zip(*steps, strict=True):
        off, sizes, widths = zip(*column, strict=True)
        above, below = (torch.stack(rows).reshape(len(steps), -1) for rows in (off, sizes))  # a state may be one row
        errors.append((above / _scale(below, widths[0])).amax(1))
        if shares is not None:
            norm = torch.linalg.vector_norm
            shares.append((norm(above, 2, 1) / norm(below, 2, 1)).amax())
    return functools.reduce(torch.maximum, errors) if errors else torch.zeros(len(steps))


def together(of_one: Norms, entries: int) -> int:
    """Of how many steps the norms are kept before they become errors: never as much as a state, since a network of any
    depth is to need what a shallow one does.

    Args:
        of_one: those of one step.
        entries: of a state.
    """
    if entries > SMALL_STATE:
        return 1
    kept = sum(off.numel() + sizes.numel() for off, sizes, _ in of_one)
    return min(_NORMS_TOGETHER, entries // (2 * max(kept, 1)) + 1)


def _norm(y: Tensor, axis: int = -1) -> Tensor:
    if axis == -1:
        return torch.linalg.vector_norm(y, dim=-1)
    # over an axis in the middle, PyTorch's own is up to a hundred times slower than the sum
    return (y.abs() if y.is_complex() else y).square().sum(axis).sqrt()


def _scale(sizes: Tensor, width: int) -> Tensor:
    """What an error of each row is held against: its size, or where that is nearly zero the floor. Rows are the last
    axis; those of several steps have theirs before it."""
    # a mean of roots, which neither a few huge rows nor many rows of zeros carry away
    least = (sizes.sqrt().mean(-1, keepdim=True).square() * floor(width)).clamp_min(torch.finfo(sizes.dtype).tiny)
    return torch.maximum(sizes, least)


def sized(y: AnyLeaves, later: AnyLeaves) -> AnyLeaves:
    """What errors of a state are held against: itself, but of a leaf that is zero, as the log-density of a flow is
    at t0, a part of a later one."""
    return tuple(map(sized_rows, y, later))


def sized_rows(y: Tensor, later: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """The same of one leaf; with axes, of each row along these."""
    return torch.where(_vanishes(y, later, axes), SMALL * later, y)


def _vanishes(y: Tensor, later: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    """By the largest numbers: squares of small ones vanish in float32."""
    return _largest(y, axes) <= torch.finfo(later.dtype).eps ** 0.5 * _largest(later, axes)


def _largest(leaf: Tensor, axes: tuple[int, ...] | None) -> Tensor:
    if not leaf.numel() or axes == ():
        return leaf.abs()
    return torch.linalg.vector_norm(leaf, math.inf, axes, keepdim=axes is not None)


def jumping(run: Run, by: Callable[..., bool] = jumps) -> frozenset[int]:
    """The steps in which f was seen to jump, or to divide (see `field.jumps`)."""
    steps, jump = range(run.grid.steps), _asked(run, by)
    if not anywhere(run, by):
        return frozenset()
    if run.field.seen(by) or (run.replay is not None and any(jump(module) for _, module in run.replay.noticed)):
        return frozenset(steps)
    return frozenset(n for n in steps if any(jump(root) for _, root in run.field.roots(n, 0.0, len(steps))))


def anywhere(run: Run, by: Callable[..., bool]) -> bool:
    """Whether f was, in any step: with the first part that was so this is known."""
    known, jump = run.field.seen(by), _asked(run, by)
    if known is not None:
        return known
    if run.replay is not None and any(jump(module) for _, module in run.replay.noticed):
        return True
    return any(map(jump, run.field.functions()))


def _asked(run: Run, by: Callable[..., bool]) -> Callable[[Any], bool]:
    """About a part of f as it was before the forward pass."""
    replay = run.replay
    return lambda root: by(root, None if replay is None else replay.reached(root))


def compared_whole(run: Run) -> bool:
    """Whether what is known at a few states and steps tells nothing of a gradient along other steps: f jumps between
    them, or its pullback is not linear."""
    return bool(jumping(run) or (linearity.UNEVEN and jumping(run, linearity.uneven)))


class Sketch:
    """What is kept of a state to tell later by how much another one differs from it: a few sums of each row.

    The entries of a row are added up in `BUCKETS` buckets, with signs as if by chance; the root of the sum of the
    squares of these is the row's norm on average (Charikar, Chen and Farach-Colton 2002). Rows no wider are kept whole.
    """

    def __init__(self, y: AnyLeaves) -> None:
        self.rows = [(_sketched(leaf, axis), leaf.shape[axis]) for leaf, axis in self._places(y)]

    @staticmethod
    def _places(y: AnyLeaves) -> list[tuple[Tensor, int]]:
        leaves = (leaf if leaf.ndim else leaf[None] for leaf in y if leaf.numel())
        return [(leaf, axis) for leaf in leaves for axis in channel_axes(leaf.ndim)]

    def error(self, y: AnyLeaves, end: AnyLeaves) -> Tensor:
        """About `relative(y - x, x)`, x being the state that this is of: of the wider rows within a quarter or so.

        Args:
            y: x, as it was rebuilt.
            end: the state at t1. A leaf that begins at zero, as the log-density of a flow does, has no size that its
                error could be held against: that is held against a part of its rows' size at t1.
        """
        errors: list[Tensor] = []
        places = zip(self._places(y), self.rows, self._places(end), strict=True)
        for (leaf, axis), (sums, width), (last, _) in places:
            sizes = _norm(sums).flatten()
            later = SMALL / max(sizes.numel(), 1) ** 0.5 * torch.linalg.vector_norm(last)
            scale = _scale(sizes, width)
            scale = torch.where(_vanishes(sums, last), torch.maximum(scale, later), scale)
            errors.append((_norm(_sketched(leaf, axis) - sums).flatten() / scale).amax())
        return functools.reduce(torch.maximum, errors) if errors else torch.zeros(())


def _sketched(leaf: Tensor, axis: int) -> Tensor:
    rows, width = leaf.movedim(axis, -1), leaf.shape[axis]
    if width <= BUCKETS:
        return rows.clone()  # the user may write on y0
    rows = rows * signs(torch.arange(width, device=leaf.device))
    return pad(rows, (0, -width % BUCKETS)).unflatten(-1, (-1, BUCKETS)).sum(-2)


class StepErrors:
    """The errors that a backward pass comes to know of, of which the largest and its place are kept, on the device."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.pair = torch.zeros(2, dtype=run.layout.time, device=run.layout.device)
        self.fresh = True  # nothing has been looked through yet
        self.recent: list[Tensor] = []
        self.count = 0  # of their entries
        self.first = -1  # the step of the first of these, which the others follow downward
        self.waiting: list[Norms] = []
        self.entries = -1  # of a state
        self.together = 0  # steps whose norms become errors at once
        self.shares: list[Tensor] | None = None
        """Where kinks count (see `odenet_torch.field.kinks`), how far all rows of a step together are off."""

    def add(self, error: Tensor, n: int) -> None:
        """One more, of step n; -1 is the state at t0, and `WHOLE`, which is below none, is all steps."""
        self._join()
        if n == WHOLE and self.count:
            self.worst()
        self._count(n)
        self.recent.append(error.reshape(1))
        if self.count >= _TOGETHER:
            self.worst()

    def add_several(self, errors: Tensor, n: int) -> None:
        """Those of step n and of the steps below it, downward, shape (steps,)."""
        self._join()
        self.first = self.first if self.count else n
        self.count += len(errors)
        self.recent.append(errors)
        if self.count >= _TOGETHER:
            self.worst()

    def add_difference(self, rebuilt: AnyLeaves, known: AnyLeaves, y: AnyLeaves, n: int) -> None:
        """Add the error of step n, `relative(rebuilt - known, y)`."""
        defect = subtract(rebuilt, known)
        if self.entries < 0:  # the same for all steps
            self.entries = sum(leaf.numel() for leaf in y)
        if self.entries > SMALL_STATE or self.run.grid.steps == 1:  # alone, as of a converted layer
            self.add(relative(defect, y, self.shares), n)
            return
        self._count(n)
        self.waiting.append(latest := norms(defect, y))
        if not self.together:
            self.together = together(latest, self.entries)
        if len(self.waiting) == self.together:
            self._join()
            if self.count >= _TOGETHER:
                self.worst()

    def _count(self, n: int) -> None:
        self.first = self.first if self.count else n
        self.count += 1

    def _join(self) -> None:
        if self.waiting:
            self.recent.append(joined(self.waiting, self.shares))
            self.waiting = []

    def add_steps(self, errors: Tensor, steps: Sequence[int]) -> None:
        """Those of any steps, shape (steps,)."""
        value, index = torch.cat([self.worst()[:1], errors.to(self.pair.dtype)]).max(0)
        places = torch.cat([self.pair[1:], self.pair.new_tensor(steps)])
        self.pair, self.fresh = torch.stack([value, places.take(index)]), False

    def on_top(self, error: Tensor, n: int) -> None:
        """One of step n that comes on top of the others, as it is of all of them: their sum is the largest; its place
        is that of the larger part."""
        largest, step = self.worst()
        error = error.to(largest.dtype)
        place = torch.where((error <= largest) | largest.isnan(), step, float(n))
        self.pair, self.fresh = torch.stack([largest + error, place]), False

    def worst(self) -> Tensor:
        """The largest, NaN if there is one, and the step that it is of."""
        self._join()
        if self.count == 1 and self.fresh:  # one step alone, as a converted layer has
            self.pair = pad(self.recent[0].to(self.pair.dtype), (0, 1), value=float(self.first))
        elif self.recent:
            kind = self.pair.dtype
            every = torch.cat([self.pair[:1], *(errors.to(kind) for errors in self.recent)])
            value, index = every.max(0)
            step = torch.where(index == 0, self.pair[1], self.first + 1 - index)
            self.pair = torch.stack([value, step.to(kind)])
        if self.recent:
            self.recent, self.count, self.fresh = [], 0, False
        return self.pair


_TOGETHER = 32
"""Errors that are looked through at once: one at a time takes longer, and all take memory that grows with depth."""
_NORMS_TOGETHER = 8
"""Steps whose norms of rows, of states that are small, become errors at once."""
SMALL_STATE = 1 << 14
"""Entries of such a state. What is larger is bound by arithmetic, and its norms would take memory."""


def certify(stats: Stats, alarm: Alarm | None, errors: StepErrors, of: Certified = "states") -> Tensor:
    """Leave the largest error that a backward pass came to know of in the stats, and say it if it is large.

    Nothing waits for a CUDA device here: what is still being worked out there is said when a later backward pass, or
    the end of the process, finds it done.

    Args:
        stats: of the solve.
        alarm: of the network; None where nothing is to be said.
        errors: of the backward pass.
        of: what these are of.
    """
    for report in [*_waiting]:
        report.settle()
    pair = errors.worst()
    if errors.shares:
        shares = [share.to(pair) for share in errors.shares]
        # a state of zeros that is right has no relative error
        pair = torch.cat([pair, torch.stack(shares).nan_to_num(0.0).amax().reshape(1)])
    pair = _of_all_cotangents(pair)
    stats.residual = pair[0]
    if alarm is not None:
        ErrorReport(alarm, stats, errors.run, pair, of).settle()
    return pair[0]


def _of_all_cotangents(pair: Tensor) -> Tensor:
    """The worst of a batch of cotangents, where `torch.autograd.grad(..., is_grads_batched=True)` has one."""
    if not several_at_once([pair]):
        return pair
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    pairs = torch._remove_batch_dim(pair, level, 1, 0)  # pyright: ignore[reportPrivateImportUsage]
    return pairs[pairs[:, 0].argmax()]  # NaN, where there is one


_waiting: list[ErrorReport] = []
"""What a device has not worked out yet."""


@dataclass(eq=False)
class ErrorReport:
    """A certificate on its way to the host: the largest error, its step, and where kinks count how far all rows of a
    step are off."""

    alarm: Alarm
    stats: Stats
    run: Run
    pair: Tensor
    of: Certified
    done: Any = None

    def settle(self, *, wait: bool = False) -> None:
        if type(self.pair) is not Tensor or self.pair.is_meta:
            return  # shapes without numbers
        if self.pair.device.type == "cuda" and self.done is None:
            if torch.cuda.is_current_stream_capturing():
                return  # a CUDA graph holds no word to the host
            self.pair = self.pair.to("cpu", non_blocking=True)
            self.done = torch.cuda.Event()
            self.done.record()
            _waiting.append(self)
            return
        if self.done is not None:
            if wait:
                self.done.synchronize()
            elif not self.done.query():
                return
            with contextlib.suppress(ValueError):  # another thread may have said it
                _waiting.remove(self)
        value, n, *share = self.pair.tolist()
        step, count, of = int(n), self.run.grid.steps, self.of
        of_kinks = KINKS * share[0] ** 0.5 if share else 0.0
        if value <= DOUBTFUL < of_kinks and jumping(self.run, kinked) and not jumping(self.run):
            value, of = of_kinks, "kinks"
            self.stats.residual = self.pair.new_tensor(value)
        names = () if step < 0 else self.run.field.modules(step, 0.0, count)
        layer = names[0][0] if names else ""
        self.alarm.tell(value, self.stats.gradient, self.stats.solver, count, step, layer, of)


@atexit.register
def _say_what_is_left() -> None:
    for report in [*_waiting]:
        report.settle(wait=True)
