"""The loop with step-size control: one host read a step, times and step sizes being Python floats.

Over 250 lines: one loop; its events, compiled and buffered steps are told apart within it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from odenet import PIDController, Result
from odenet.kit import Past, Stage, Tableau, Trial, landing, resumed, trial
from odenet_torch.field.differentiating import listed
from odenet_torch.field.memory import Memory
from odenet_torch.field.state import Leaves
from odenet_torch.steps.tolerance import Tolerance
from odenet_torch.steps.weighted_sum import Buffered, weigh_leaves

_EPSILON = 2.0**-52  # of times, which are Python floats
_LOOKS = frozenset((20_000, 100_000, 1_000_000))  # steps tried, after which the pace is looked at
_NUMPY = {torch.float32: np.float32, torch.float64: np.float64}
EVER = 1e38  # where a solve that only an event ends would end


def lead(tried: int) -> float:
    """How many times faster than its pace so far a solve may become: the less, the longer that pace was kept."""
    return 1e7 / tried


Evaluate = Callable[[Tensor, int, float, Leaves], Leaves]
"""`evaluate(t, rank, time, y)`: the field at a time (as a tensor, and as a float), for stage `rank` of the step."""


class CompiledTrials(Protocol):
    """What makes compiled trial steps (`odenet_torch.steps.compiled.CompiledSteps`)."""

    def enter(self, leaves: Leaves) -> Leaves:
        """A state as it takes it."""
        ...

    def trial(self, t: float, t1: float, times: Sequence[float], y: Leaves, first: Leaves) -> tuple[Trial, float]:
        """A step, and the ratio of its error to what is allowed."""
        ...


@dataclass(frozen=True)
class StepCallbacks:
    """What is called as a loop takes steps: each is called with the step's time, its state, and its signed size.

    Args:
        tried: before the step.
        accepted, rejected: after it.
    """

    tried: Callable[[float, Leaves, float], None]
    accepted: Callable[[float, Leaves, float], None]
    rejected: Callable[[float, Leaves, float], None]


@dataclass
class AcceptedStep:
    """An accepted step.

    Args:
        n: its index.
        t, t1: its ends.
        y, y1: the states there.
        slopes: of all stages; `ends` has the slope at t1 among them.
        end: the slope at t1, once it is evaluated.
        is_last: whether the solve ends with it.
        rows: `ends` of a state of one leaf as rows of a matrix, where there is one; valid until the next step is tried
            or the solve ends.
    """

    n: int
    t: float
    t1: float
    y: Leaves
    y1: Leaves
    slopes: tuple[Leaves, ...]
    loop: AdaptiveLoop
    end: Leaves | None
    is_last: bool
    rows: Tensor | None = None

    @property
    def h(self) -> float:
        """The step size, negative where time decreases."""
        return self.t1 - self.t

    @property
    def ends(self) -> tuple[Leaves, ...]:
        """The slopes that dense output reads."""
        if self.loop.tableau.fsal:
            return self.slopes
        if self.end is None:
            self.end = self.loop.slope(self.t1, self.y1, len(self.slopes), self.t, self.t1)
        return (*self.slopes, self.end)


@dataclass
class AdaptiveLoop:
    """A solve of `y' = evaluate(t, y)` with step-size control.

    Args:
        evaluate: the field.
        tableau: the method.
        control: of step sizes.
        tolerance: of the state.
        device, time: of the times that the field is called with.
        stops: times that steps end at, in the order of the solve, t1 last.
        jumps: those of them where the field jumps.
        n, tried, evaluations: steps accepted, steps tried, and evaluations of the field so far.
        failed: why the solve could not go on.
        trial, size: the step that is tried, and its signed size.
        memory: of the slopes that the step holds, where these are the field's own.
        on: who is told of steps; None in all but the drop-in for torchdiffeq, whose users may watch them.
        compiled: what makes the trial steps of a state and its slope, where they are compiled.
        proposed: size of the step after the last one accepted. Before there is one, that of the first step, where it
            is known, or None.
    """

    evaluate: Evaluate
    tableau: Tableau
    control: PIDController
    tolerance: Tolerance
    device: torch.device
    time: torch.dtype
    stops: Sequence[float]
    jumps: frozenset[float]
    n: int = 0
    tried: int = 0
    evaluations: int = 0
    failed: Result | None = None
    trial: Trial | None = None
    size: float = 0.0
    on: StepCallbacks | None = None
    memory: Memory | None = None
    compiled: Callable[[Leaves, Leaves], CompiledTrials] | None = None
    proposed: float | None = None

    def slope(self, t: float, y: Leaves, rank: int, start: float, end: float) -> Leaves:
        """The field at one end of a step from `start` to `end`."""
        self.evaluations += 1
        time = self._beside(t, start, end)
        return self.evaluate(torch.full((), time, dtype=self.time, device=self.device), rank, time, y)

    def _beside(self, t: float, start: float, end: float) -> float:
        """A time of a step, on its side of the jumps that it begins or ends at."""
        if t == start and start in self.jumps:
            return beside(t, end, self.time)
        return beside(t, start, self.time) if t == end and end in self.jumps else t

    def steps(self, t: float, y: Leaves, first: Leaves | None = None) -> Iterator[AcceptedStep]:
        """Accepted steps from t to the last stop, in the direction of the stops.

        Args:
            t, y: where to begin.
            first: the slope there, if it is known.
        """
        fits = self.compiled is None and Buffered.fits(self.tolerance, y)
        fast = Buffered(self.tableau, self.tolerance, y[0]) if fits else None
        try:
            yield from self._steps(t, y, first, fast)
        finally:
            if fast is not None:
                fast.slopes.give_back()

    def _steps(self, t: float, y: Leaves, first: Leaves | None, fast: Buffered | None) -> Iterator[AcceptedStep]:
        """See `steps`.

        Args:
            t, y, first: of it.
            fast: what makes the trial steps of a small state.
        """
        control, tableau, order = self.control, self.tableau, self.tableau.error_order
        stages, fsal = tableau.stages - 1, tableau.fsal
        if t == self.stops[-1]:
            return
        begin = t
        direction = 1.0 if self.stops[-1] > t else -1.0
        spacing = _EPSILON * max(abs(t), abs(self.stops[-1]))
        place = 0
        while self.stops[place] == t:
            place += 1
        stop = self.stops[place]
        if first is None:
            first = self.slope(t, y, 0, t, stop)
        size = self.proposed or control.first_step or self._first_size(t, y, first, direction, stop)
        size = control.bounded(min(size, abs(self.stops[-1] - t)))
        past: Past = (1.0, 1.0)
        graph = None
        if self.compiled is not None:
            if self.memory is not None and self.memory.evaluated < 2:
                self.slope(t, y, 0, t, stop)  # it is known after two evaluations where the field writes
            graph = self.compiled(y, first)
            y = graph.enter(y)
        while True:
            if self.tried >= control.max_steps or (self.tried in _LOOKS and self._endless(begin, t)):
                self.failed = Result.MAX_STEPS
                return
            # the step that is tried: as long as the controller wants, but not beyond the next stop
            self.tried += 1
            unclipped = size
            t1, lands = landing(t, size, stop, direction, spacing)
            h = t1 - t
            if h == 0.0 or not math.isfinite(size):
                self.failed = Result.STEP_TOO_SMALL
                if not all(bool(torch.isfinite(leaf).all()) for leaf in (*y, *first)):
                    self.failed = Result.NONFINITE
                return
            # the trial, and its error over what is allowed: a rejected step begins anew with the same `first`, so that
            # the slope at t is evaluated once, however often a step from t is tried
            self.size = h
            if self.on is not None:
                self.on.tried(t, y, h)
            self.evaluations += stages
            if graph is not None:
                attempt, ratio = graph.trial(t, t1, self._times(t, t1, h), y, first)
            elif fast is not None:
                attempt, ratio = fast.trial(self._stage(t, t1, h), y, h, first)
            else:
                self.trial = attempt = trial(tableau, self._stage(t, t1, h), y, h, first, weigh_leaves)
                ratio = float(self.tolerance.ratio(attempt.error, y, attempt.y1))  # the step's one host read
            accepted, factor, past = control.judge(order, ratio, past)
            if self.memory is not None:
                self.memory.require_kept()
                self.memory.slopes[:] = self.memory.slopes[-1:] if accepted else self.memory.slopes[:1]
            # a step of the smallest size is taken as it is, unless its error is no number
            smallest = control.min_step is not None and abs(h) <= control.min_step * (1 + 1e-10)
            if not accepted and smallest and math.isfinite(ratio):
                accepted = True
            # t + size rounds to t1: a size of few roundings of t, multiplied as h, would never become smaller
            size = control.bounded((abs(h) if accepted else min(abs(h), size)) * factor)
            if self.on is not None:
                (self.on.accepted if accepted else self.on.rejected)(t, y, h)
            if accepted:
                # the caller works with the step, and may evaluate the slope at its end, before the loop goes on: the
                # next size has to be known by then, since the caller may stop here
                rows = fast.slopes.matrix if fast is not None and fsal else None
                last = t1 == self.stops[-1]
                step = AcceptedStep(self.n, t, t1, y, attempt.y1, attempt.slopes, self, None, last, rows)
                self.n += 1
                self.proposed = size = resumed(size, unclipped, lands)
                yield step
                if lands and place + 1 == len(self.stops):
                    return
                if lands:
                    place += 1
                    stop = self.stops[place]
                # the first slope of the next step: behind a jump it is another one than that at the end of this step
                jumped = t1 in self.jumps
                first = None if jumped else attempt.slopes[-1] if fsal else step.end
                t, y = t1, attempt.y1
                if first is None:
                    first = self.slope(t, y, 0, t, stop) if jumped else step.ends[-1]
            elif smallest:
                self.failed = Result.NONFINITE
                return

    def _endless(self, begin: float, t: float) -> bool:
        """Whether at many times the pace so far `max_steps` would still not do: a solve to t=1e12 for years."""
        if len(self.stops) > 1 or abs(self.stops[-1]) >= EVER:
            return False
        reach = lead(self.tried) * abs(t - begin) * self.control.max_steps / self.tried
        return reach < abs(self.stops[-1] - begin)

    def _times(self, t: float, t1: float, h: float) -> list[float]:
        """The times of the stages of a step."""
        times = [t + h * node for node in self.tableau.c]
        if not (self.jumps and (t in self.jumps or t1 in self.jumps)):
            return times
        at_end = ((node == 1, time) for node, time in zip(self.tableau.c, times, strict=True))
        return [self._beside(t1 if end else time, t, t1) for end, time in at_end]

    def _stage(self, t: float, t1: float, h: float) -> Stage:
        """The field at the stages of a step."""
        evaluate, values = self.evaluate, self._times(t, t1, h)
        times = moments(values[1:], self.time, self.device).unbind(0)  # that of the first stage is known

        def stage(i: int, at: Leaves) -> Leaves:
            return evaluate(times[i - 1], i, values[i], at)

        return stage

    def _first_size(self, t: float, y: Leaves, first: Leaves, direction: float, stop: float) -> float:
        """Hairer, Norsett, Wanner I, p. 169: two host reads and one evaluation."""
        control = self.control
        with torch.no_grad():
            size_of = self.tolerance.sizes(y)
            sizes = size_of(y), size_of(first)
            d0, d1 = [d.item() for d in sizes] if sizes[0].is_cpu else listed(torch.stack(sizes))
            size = min(control.trial(d0, d1), abs(stop - t))
            if not size:  # the slope is not finite
                return 0.0
            at = weigh_leaves(y, direction * size, (1.0,), (first,))
            second = self.slope(t + direction * size, at, 1, t, stop)
            change = tuple([torch.sub(late, early) for late, early in zip(second, first, strict=True)])
            d2 = float(size_of(change)) / size
        return control.first(self.tableau.error_order, size, d1, d2)


def moments(times: Sequence[float], kind: torch.dtype, device: torch.device) -> Tensor:
    """Times as a tensor: on the CPU by NumPy, which reads a list of numbers in a quarter of the time."""
    if device.type == "cpu":
        return torch.from_numpy(np.array(times, _NUMPY[kind]))
    return torch.tensor(times, dtype=kind, device=device)


def beside(t: float, towards: float, kind: torch.dtype) -> float:
    """The next number of that type."""
    real = np.float64 if kind == torch.float64 else np.float32
    return float(np.nextafter(real(t), real(towards)))
