"""The states that a backward pass knows, held against those that the same steps reach when they run again.

On the host each kept state is compared as soon as it is reached again, and what is off is an error. Numbers on a device
are not waited for: there one state of `EVERY` is compared, and what is off is said when the device has worked it out.

Over 250 lines: states that are kept, and the one that is rebuilt first, are held to one rule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import Stats
from odenet.kit import DOUBTFUL, alarm, subtract
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.state import Leaves
from odenet_torch.field.witness import (
    EVERY,
    LIKELY,
    OFF,
    OFF_HALF,
    ROUNDINGS,
    amplified,
    looks,
    missed,
    missing,
    ordinary,
    sample,
    sampled_as,
    turns,
    unlike,
)
from odenet_torch.gradients.certificate import ErrorReport, StepErrors
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.fixed import Run


def allowed(run: Run) -> float:
    """How far steps that run again may be off (see `field.witness`)."""
    kinds = {*run.layout.dtypes, *run.layout.carried}
    casts = run.replay is not None and any(enabled for _, enabled, _ in run.replay.autocast)
    return OFF if kinds.isdisjoint(HALF) and not casts else OFF_HALF


def name(run: Run, n: int) -> str:
    """What step n runs, for messages."""
    roots = run.field.roots(n, 0.0, run.grid.steps)
    return roots[0][0] if roots else "the field"


@dataclass(frozen=True)
class Rounded:
    """What rounding may have changed of states that are known as they were rounded.

    Args:
        by: by how much the state after a step may be off itself, given the step, which leaf it is, and what is kept of
            it.
        nearby: where a step leads from a state that is about as far from the known one as that is from the true one.
        chance: steps in which f jumps, so that on which side of that they end is a matter of chance. A miss there is
            the size of an error of the gradient, and no sign that f is another one.
    """

    by: Callable[[int, int, Tensor], Tensor]
    nearby: Callable[[int], Leaves]
    chance: frozenset[int]

    def away(self, n: int, z: Leaves, kept: Leaves) -> list[Tensor]:
        """By how much more step n, which ends at z, may miss its end, because it began at a rounded state."""
        with torch.no_grad():
            ends = sampled_as(kept, self.nearby(n))
            pairs = zip(ends, sampled_as(kept, z), strict=True)
            return [LIKELY * torch.linalg.vector_norm(other - leaf) for other, leaf in pairs]


class KnownEnds:
    """Of one backward pass.

    Args:
        run: the solve, in its backward pass.
        stats: of the solve.
        last: the last state that is known, or a sample of it.
        small: whether states are one small tensor, as most are: it is kept as it is, and compared at once.
        rounded: of states that are known as they were rounded, what that has changed.
    """

    def __init__(
        self, run: Run, stats: Stats, last: Leaves | None, small: bool = False, rounded: Rounded | None = None
    ) -> None:
        self.run, self.stats, self.rounded = run, stats, rounded
        self.last = run.grid.steps
        self.off: float | None = None
        self.kept: dict[int, Leaves] = {}
        self.waits: bool | None = None
        self.turn, self.of = -1, EVERY
        if rounded is not None or isinstance(run.grid, Accepted):
            # never the same to the last bit, so that a look costs some operations: the first step, the last, and one
            self.of = max(self.last, 1)
            self.turn = turns(self.of)
        self.errors: StepErrors | None = None
        self.strayed: list[Tensor] = []
        """By what parts of what they add steps have missed their ends that are a matter of chance."""
        self.since: int | None = None
        """The step that begins at the state from which steps run again; None where they cannot run apart."""
        self.over_again: Callable[[int, int, Leaves], Leaves] = self._over_again
        """From the state before one step to that after another one."""
        self.small = small
        if last is not None:
            if not looks(last):
                self.waits, self.turn, self.small = True, turns(), False
            self.keep(self.last, last)

    def keep(self, n: int, y: Leaves) -> None:
        """The state after step n - 1 is known."""
        if self.small:
            self.kept[n] = y
        elif self.turn < 0 or n % self.of == self.turn or n in (1, self.last):
            self.kept[n] = sample(y)

    def knows(self, n: int) -> bool:
        """Whether the state after step n is to be held against what is reached."""
        return n + 1 in self.kept

    def reached(self, n: int, y: Leaves, z: Leaves) -> None:
        """Steps as far as step n have run again, from y to z; it is looked at if the state there is known.

        Raises:
            GradientError: z is another state than it was.
        """
        kept = self.kept.pop(n + 1, None)
        if kept is not None and not (self.small and torch.equal(z[0], kept[0])):
            self.look(n, y, z, kept)

    def look(self, n: int, y: Leaves, z: Leaves, kept: Leaves) -> None:
        """The same, with what is known of the state there."""
        if self.waits is None:
            self.waits = not looks(kept)
        if self.off is None:
            self.off = allowed(self.run)
        if self.waits:
            if ordinary(kept):
                self._note(n, y, z, kept)
            return
        allowances = self._amplified(n, y, kept) if self.rounded is None else self._rounded(self.rounded, n, z, kept)
        part = missed(z, kept, y, self.off, *allowances)
        if not part:
            return
        if self.rounded is None or n not in self.rounded.chance:
            raise unlike(name(self.run, n), missing(part))
        self.strayed.append(torch.tensor(part, dtype=torch.float64))

    def _amplified(self, n: int, y: Leaves, kept: Leaves) -> list[Callable[[int], float]]:
        """By how much steps may miss their end, because they amplify rounding."""
        if (first := self.since) is None:
            return []

        def added(start: Leaves) -> Leaves:
            return sampled_as(kept, subtract(self.over_again(first, n, start), start))

        off = functools.cache(lambda: amplified(added, y))
        return [lambda i: off()[i]]

    def _over_again(self, first: int, last: int, y: Leaves) -> Leaves:
        for n in range(first, last + 1):
            y = self.run.after(n, y)
        return y

    @staticmethod
    def _rounded(rounded: Rounded, n: int, z: Leaves, kept: Leaves) -> list[Callable[[int], float]]:
        nearby = functools.cache(lambda: rounded.away(n, z, kept))
        return [lambda i: float(rounded.by(n, i, kept[i])), lambda i: float(nearby()[i])]

    def _note(self, n: int, y: Leaves, z: Leaves, kept: Leaves) -> None:
        errors, rounded = [], self.rounded
        away = [] if rounded is None else rounded.away(n, z, kept)
        for i, (leaf, known, first) in enumerate(zip(sampled_as(kept, z), kept, sampled_as(kept, y), strict=True)):
            leaf, known, first = (x.detach().flatten() for x in (leaf, known, first))
            apart, moved, size = (torch.linalg.vector_norm(x) for x in (leaf - known, known - first, known))
            least = ROUNDINGS * torch.finfo(known.dtype).eps * size
            if rounded is not None:
                least = least + rounded.by(n, i, known) + away[i]
            errors.append(((apart - least).clamp(min=0) / moved).nan_to_num(0.0, posinf=1.0))
        worst = torch.stack(errors).amax()
        if rounded is not None and n in rounded.chance:
            self.strayed.append(worst)
            return
        self.errors = self.errors or StepErrors(self.run)
        self.errors.add(worst, n)

    def over(self) -> None:
        """The backward pass is over: what a device has compared is said once it is known."""
        if self.errors is not None:
            told = alarm(next(iter(self.run.field.functions()), None))
            if told is not None:
                ErrorReport(told, self.stats, self.run, self.errors.worst(), "run again").settle()


def add_strayed(
    errors: StepErrors,
    n: int,
    rebuilt: Leaves,
    known: Leaves,
    last: Leaves,
    defect: AnyLeaves | Callable[[], AnyLeaves] | None = None,
    *,
    of_rebuilt: bool = False,
    exact: bool = False,
    amplifies: Callable[[], Sequence[float]] | None = None,
) -> None:
    """Hold the first state that is rebuilt, from the last one, against what was kept of it: what f does now against
    what it did.

    An error of a rebuilt state is held against the state; that of a field against what the field adds, which may be
    little beside it. So a state that is missed by more than a tenth of what was added since is an error of that size.
    What the prediction misses by itself, which is known from its defect, is less than about the square of that.

    Args:
        errors: of the backward pass, where it is added.
        n: the step that was gone back.
        rebuilt: the state before it.
        known: a sample of that in the forward pass.
        last: the state at t1.
        defect: of the prediction, see `Reversal`; a function where it takes an evaluation, which is asked for where it
            matters; None where f is evaluated where it was.
        of_rebuilt: whether it is the rebuilt state's own, which then may be off by as much.
        exact: whether only rounding keeps the rebuilt state from being the known one: then, on the host, the rule of
            `field.witness` holds.
        amplifies: by how much it may be off by rounding, which is asked for where it is: that is no other field, and is
            said.

    Raises:
        GradientError: it is not, beside that rule.
    """
    waits = not looks(known)
    for i, (leaf, kept, end) in enumerate(zip(*(sampled_as(known, x) for x in (rebuilt, known, last)), strict=True)):
        # what memory this takes does not depend on what is found: a training that is resumed counts the same
        known_defect = [] if defect is None or callable(defect) else [sampled_as(known, defect)[i]]
        apart, moved, size, *missing = _sizes([leaf - kept, end - kept, end, *known_defect], waits)
        off = apart - ROUNDINGS * torch.finfo(end.dtype).eps * size
        refused = exact and not waits
        most = allowed(errors.run) if refused else DOUBTFUL
        if not waits and (not off > most * moved or not moved):
            continue
        part = off / moved
        if refused and math.isfinite(part) and not (amplifies is not None and off <= amplifies()[i]):
            # what is not finite is said by the certificate
            raise unlike(name(errors.run, n), f"misses the state that it had reached by {part:.1e} of what it adds")
        if callable(defect):
            missing = _sizes([sampled_as(known, defect())[i]], waits)
        for each in missing:
            part = part - (1.5 * each / moved if of_rebuilt else 3 * (each / moved) ** 2)
        part = torch.as_tensor(part, dtype=errors.pair.dtype, device=end.device)
        errors.add(torch.where(part > DOUBTFUL, part, 0.0), n)


def _sizes(parts: list[Tensor], waits: bool) -> Sequence[Any]:
    """Their norms: numbers, or where these would be waited for, scalars of the device."""
    norms = torch.linalg.vector_norm(torch.stack(parts).reshape(len(parts), -1), dim=1)
    return norms.unbind() if waits else norms.tolist()
