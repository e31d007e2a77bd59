"""Where in a step an event's condition changes, found on dense output.

Over 250 lines: the looks at a condition, one by one or together, and what follows from them share what was seen before.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from odenet import Event, InputError, StateError
from odenet.kit import Tableau, called, flag, interpolant
from odenet_torch.field.differentiating import listed, transformed
from odenet_torch.field.memory import versions, wrote_unseen
from odenet_torch.field.not_dense import not_dense
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.batched_condition import BatchedCondition, arithmetic
from odenet_torch.steps.dense import between
from odenet_torch.steps.size_control import AcceptedStep, moments

Value = TypeVar("Value")


def condition(event: Event, layout: Layout, t: Any, y: Leaves) -> Tensor:
    """The entries of an event's condition, numbers or booleans.

    Raises:
        InputError: it returned neither.
    """
    time = torch.as_tensor(t, dtype=layout.time, device=layout.device)
    return condition_at(event, layout, [time], [y])[0].reshape(-1)


def condition_at(
    event: Event, layout: Layout, times: Sequence[Tensor], states: Sequence[Leaves], apart: Leaves | None = None
) -> list[Tensor]:
    """The entries of a condition at times and states, in their own shape.

    Args:
        event: with the condition.
        layout: of the state.
        times, states: where.
        apart: those leaves of the states that share no count of writes with another one, as views of one tensor do;
            None for all.

    Raises:
        InputError: it returned no entries. StateError: it wrote on a state.
    """
    leaves = tuple(itertools.chain.from_iterable(states)) if apart is None else apart
    before, call, of = versions(leaves), layout.call, event.condition
    try:
        entries = [_entries(of(t, call(y))) for t, y in zip(times, states, strict=True)]
    except TypeError:  # once more, to tell whether it is one of the call itself
        called(of, (times[0], call(states[0])), "an event's condition", "a condition(t, y)")
        raise
    if versions(leaves) != before:
        raise wrote_on("an event's condition")
    return entries


def untouched(look: Callable[[Leaves], Value], y: Leaves, name: str = "an event's condition") -> Value:
    """What a first look at the caller's own state returns: at a copy of it, which shows whether it is written on.

    Raises:
        StateError: it is, and the caller's own is as it was.
    """
    lent = tuple(leaf.detach().clone() for leaf in y)
    before, value = versions(lent), look(lent)
    if versions(lent) != before or wrote_unseen(lent, y):
        raise wrote_on(name)
    return value


def wrote_on(name: str) -> StateError:
    """The error for a condition that does."""
    return StateError(
        f"{name} wrote on the state that it was given",
        "conditions that leave their arguments as they are",
        "work on y.clone()",
    )


def _entries(value: Any) -> Tensor:
    try:
        entries = value if isinstance(value, Tensor) else torch.as_tensor(value, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"an event's condition returned a {type(value).__name__} ({error})", _ALLOWED) from error
    if entries.is_complex() or not entries.numel():
        raise InputError(f"an event's condition returned {entries}", _ALLOWED)
    return entries


_ALLOWED = "a real number or a boolean, or an array of them"


def signed(entries: Tensor) -> Tensor:
    """Entries of a condition as numbers: of booleans 1 for true and -1 for false."""
    return entries.to(torch.int8) * 2 - 1 if entries.dtype is torch.bool else entries


@dataclass(frozen=True)
class Crossing:
    """Where in a step an event's condition changes.

    Args:
        position: in the step, from 0 to 1.
        entry: of the condition.
    """

    position: float
    entry: int


class Watch:
    """Looks for the first change of an event's condition, see `odenet.Event`.

    Args:
        event: with the condition.
        layout: of the state.
        tableau: the method, whose dense output is looked at.
        t, y: where the solve begins.
    """

    def __init__(self, event: Event, layout: Layout, tableau: Tableau, t: float, y: Leaves) -> None:
        self.event = event
        self.layout = layout
        self.tableau = tableau
        self.shape: torch.Size | None = None
        self.parts = event.positions()
        self.small = sum([leaf.numel() for leaf in y]) <= _SMALL
        # states that are handed over as they are, and read in no transform, may be so together
        self.together = None
        """What calls the condition once for all parts of a step, where that can be done."""
        plain = layout.single and layout.dtypes == layout.carried and self.small and not transformed()
        if plain and len(self.parts) > 1 and arithmetic(event.condition):
            of = _weights(tableau, (*self.parts, 1.0), y[0].dtype, layout.device)
            self.together = BatchedCondition(event.condition, self.parts, of, y[0], layout.time, self._alone)
        self.before = self._first_values(t, y)
        self.resting = [False] * len(self.before)
        """Which entries have been exactly zero at each look, and at more than one: see `odenet.kit.flag`."""
        scalar = self.shape is not None and not self.shape
        self.known = (t, self.before[0], math.inf) if scalar else None
        """Of a condition that is one number, where it was last known: the time, its value, and how fast it changed."""
        self.undefined = not all(value == value for value in self.before)
        """Whether an entry has been NaN before one had changed."""

    def _first_values(self, t: float, y: Leaves) -> list[float]:
        with torch.no_grad():
            if self.together is not None and self.together.checked:
                entries = self.together.at(t, y[0])
                if type(entries) is Tensor and not entries.ndim and entries.dtype is not torch.bool:
                    self.shape = entries.shape
                    return [entries.item()]
            if self.together is not None:  # it does nothing but compute
                return self._values([t], [y])[0]
            return untouched(lambda y: self._values([t], [y])[0], y)

    def crossing(self, step: AcceptedStep) -> Crossing | None:
        """The first change within a step; None without one. One host read a step."""
        if not torch.is_grad_enabled():
            return self._crossing(step)
        with torch.no_grad():
            return self._crossing(step)

    def _crossing(self, step: AcceptedStep) -> Crossing | None:
        positions = self.parts if all(self.before) else self.event.positions(begun=False)
        ends = step.ends if positions else ()
        first = self._first(step, 0.0, positions, 1.0, ends)
        if first is None or self.undefined:
            return None
        low, high, entry = first
        ends = step.ends
        # of several changes within that part the first
        finer = [low + (high - low) * part for part in self.parts]
        low, high, entry = self._first(step, low, finer, high, ends) or first
        return self._bisected(step, low, high, entry, ends)

    def _first(
        self, step: AcceptedStep, low: float, positions: Sequence[float], high: float, ends: Sequence[Leaves]
    ) -> tuple[float, float, int] | None:
        """Between which of the positions the condition changes first, and which entry of it."""
        values = self._at_once(step, ends) if self.together is not None and positions is self.parts else None
        if values is None:
            t, h = step.t, step.h
            times = [t + position * h for position in positions]
            states = self._inside(step, positions, ends)
            at = step.y1 if high == 1.0 else self._between(step, high, ends)
            # the states inside are views of one tensor a leaf, whose writes torch counts together
            apart = (*states[0], *at) if states and self.small else None
            values = self._values([*times, step.t1 if high == 1.0 else t + high * h], [*states, at], apart)
        if self._unchanged(values):
            return None
        for position, now in zip((*positions, high), values, strict=True):
            entries = self._changed(now)
            if entries:
                return low, position, entries[0]
            self.undefined |= not all(a == a for a in now)
            self.resting = [b == 0 == a for b, a in zip(self.before, now, strict=True)]
            self.before = [b if a == 0 or a != a else a for b, a in zip(self.before, now, strict=True)]
            low = position
        return None

    def _at_once(self, step: AcceptedStep, ends: Sequence[Leaves]) -> list[list[float]] | None:
        """The entries at the parts of a step and at its end, by one call of the condition."""
        assert self.together is not None
        slopes = step.rows
        if slopes is None:
            slopes = torch.stack([slope for (slope,) in ends]).reshape(len(ends), -1)
        entries = self.together.entries(step.t, step.t1, step.y[0], step.y1[0], slopes)
        if entries is None or entries.shape[1:] != self.shape:
            self.together = None
            return None
        return signed(entries).reshape(len(entries), -1).tolist()

    def put_off(self, step: AcceptedStep) -> bool:
        """Whether nothing changes between the ends of a step, so that what lies within may be looked at by `quiet`.

        Only of a condition that is known to be the same in a batch. What lies within a step matters where it holds two
        roots, or another even number of them. A condition that is far from its root, beside how it has changed so far,
        is not looked at: `quiet` has the ends of steps, too.
        """
        of, before = self.together, self.before
        if of is None or step.rows is None or of.most < 2 or not of.checked or not all(before):
            return False
        known = self.known
        if known is not None and abs(known[1]) > _FAR * known[2] * abs(step.t1 - known[0]):
            return True
        now = of.at(step.t1, step.y1[0])
        if now.shape != self.shape:
            return False
        if now.ndim == 0 and now.dtype is not torch.bool:
            value = now.item()
            if known is not None and step.t1 != known[0]:
                self.known = step.t1, value, abs((value - known[1]) / (step.t1 - known[0]))
            return value * before[0] > 0.0
        return self._unchanged([signed(now).reshape(-1).tolist()])

    def quiet(self, steps: Sequence[AcceptedStep]) -> int:
        """How many of the steps that were put off, from the first one on, are known to have no change."""
        assert self.together is not None
        held = [(step.t, step.t1, step.y1[0], cast("Tensor", step.rows)) for step in steps]  # `put_off` has seen to it
        entries = self.together.within(held, steps[0].y[0])
        if entries is None or entries.shape[1:] != self.shape:
            self.together = None
            return 0
        values = signed(entries).reshape(len(entries), -1).tolist()
        if self._unchanged(values):
            return len(steps)
        looks = len(self.parts) + 1

        def changes(i: int) -> bool:
            return not self._unchanged(values[i * looks : (i + 1) * looks])

        return next(filter(changes, range(len(steps))))

    @property
    def most(self) -> int:
        """How many steps may be put off together."""
        return 0 if self.together is None else self.together.most

    def _alone(self, times: Tensor, states: Tensor) -> list[Tensor]:
        """The entries at times and states, by a call for each."""
        return condition_at(self.event, self.layout, times.unbind(0), [(state,) for state in states.unbind(0)])

    def _bisected(self, step: AcceptedStep, low: float, high: float, entry: int, ends: Sequence[Leaves]) -> Crossing:
        tolerance = self.event.tolerance
        least = 2.0**-52 if tolerance is None else tolerance / abs(step.h)
        while high - low > least:
            middle = (low + high) / 2
            if middle in (low, high):
                break
            (now,) = self._values([step.t + middle * step.h], [self._between(step, middle, ends)])
            entries = self._changed(now)
            if entries:
                high, entry = middle, entries[0]
            else:
                low = middle
        return Crossing(high, entry)

    def _between(self, step: AcceptedStep, position: float, ends: Sequence[Leaves]) -> Leaves:
        return between(self.tableau, position, step.y, step.h, ends)

    def _inside(self, step: AcceptedStep, positions: Sequence[float], ends: Sequence[Leaves]) -> list[Leaves]:
        """The states at positions within the step: small ones by one product for all."""
        if not positions:
            return []
        if not self.small:
            return [self._between(step, position, ends) for position in positions]
        return list(zip(*(rows.unbind(0) for rows in self._rows(step, positions, ends)), strict=True))

    def _rows(self, step: AcceptedStep, positions: Sequence[float], ends: Sequence[Leaves]) -> Leaves:
        """The leaves of the states at positions within the step, along a first axis."""
        if step.rows is not None:
            (leaf,) = step.y
            weighed = [(leaf, step.rows)]
        else:
            weighed = [
                (leaf, torch.stack(slopes).reshape(len(slopes), leaf.numel()))
                for leaf, *slopes in zip(step.y, *ends, strict=True)
            ]
        weights = _weights if positions is self.parts else _weights.__wrapped__
        return tuple(
            [
                torch.addmm(
                    leaf.reshape(1, -1),
                    weights(self.tableau, tuple(positions), leaf.dtype, leaf.device),
                    slopes,
                    alpha=step.h,
                ).view(len(positions), *leaf.shape)
                for leaf, slopes in weighed
            ]
        )

    def _values(
        self, times: Sequence[float], states: Sequence[Leaves], apart: Leaves | None = None
    ) -> list[list[float]]:
        """The entries of the condition at each time: one host read where that is a device's."""
        layout = self.layout
        looks = condition_at(self.event, layout, moments(times, layout.time, layout.device).unbind(0), states, apart)
        if self.shape is None:
            if looks[0].is_meta or not_dense(looks[0]):
                raise InputError("an event's condition returned a tensor whose values cannot be read", _ALLOWED)
            self.shape = looks[0].shape
        shape, on_host = self.shape, not transformed()
        for look in looks:
            if look.shape != shape:
                raise InputError(
                    f"an event's condition had shape {tuple(shape)}, and now {tuple(look.shape)}",
                    "the same shape at all times",
                )
            on_host = on_host and look.is_cpu and look.dtype is not torch.bool
        if on_host:  # nothing is to be waited for: each is read where it lies
            if not shape:
                return [[look.item()] for look in looks]
            return [(look if look.ndim == 1 else look.reshape(-1)).tolist() for look in looks]
        return listed(signed(torch.stack(looks)).reshape(len(looks), -1))

    def _unchanged(self, values: list[list[float]]) -> bool:
        """Whether all entries keep the sign that they had: what is seen of most steps at once."""
        # where one is NaN each is looked at for itself; so are infinities of both signs
        if len(self.before) == 1:
            columns = [[value for (value,) in values]]
        else:
            columns = zip(*values, strict=True)
        for before, column in zip(self.before, columns, strict=True):
            total = sum(column)
            if total != total or not (min(column) > 0 if before > 0 else before < 0 and max(column) < 0):
                return False
        return True

    def _changed(self, values: list[float]) -> list[int]:
        """The entries that have changed, in the direction that is watched."""
        direction, changed = self.event.direction, []
        for i, (before, now) in enumerate(zip(self.before, values, strict=True)):
            rises, falls = before < 0 <= now, before > 0 >= now  # false where one of them is NaN
            if self.resting[i] and flag(now):
                rises, falls = now > 0, now < 0
            if (rises and direction >= 0) or (falls and direction <= 0):
                changed.append(i)
        return changed


@functools.lru_cache(64)
def _weights(tableau: Tableau, positions: tuple[float, ...], kind: torch.dtype, device: torch.device) -> Tensor:
    """The weights of dense output, one row a position."""
    rows = [[weight or 0.0 for weight in interpolant(tableau).weights(at)] for at in positions]
    return torch.tensor(rows, dtype=kind, device=device)


_FAR = 10.0  # times as far from its root as it would come by then if it went on as before
_SMALL = 1 << 15  # entries: beyond, the states within a step are computed one at a time
