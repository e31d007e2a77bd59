"""The gradient methods over compiled strides: each stride, and its backward pass, is one graph.

What a method does is what its own file says, with a stride in the place of a step: there the loop is Python, here it
is within the graph. A VJP within a graph is that of `torch.func.vjp`.

Over 250 lines: four methods, one way of taking VJPs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from odenet import (
    AsynchronousLeapfrog,
    Backprop,
    Checkpoint,
    Coupled,
    DiscreteAdjoint,
    Grid,
    Problem,
    Reversible,
    ReversibleHeun,
    ReversibleSolver,
    Stats,
    UnsupportedError,
)
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add, alarm, schedule, subtract
from odenet_torch.field.replay import autocasts
from odenet_torch.field.settings import Settings
from odenet_torch.field.state import Leaves
from odenet_torch.field.wiring import ForwardReads
from odenet_torch.field.witness import ENTRIES, OFF_HALF, sample
from odenet_torch.gradients.accepted_steps import once
from odenet_torch.gradients.adjoint import Adjoint, SavedStates, own, zeros
from odenet_torch.gradients.certificate import Sketch, StepErrors, certify, relative, sized
from odenet_torch.gradients.discrete_adjoint import predicted
from odenet_torch.gradients.known_ends import KnownEnds, add_strayed
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.fixed import Run, stacked
from odenet_torch.steps.graph import Choices, checked, entered, require_no_transform
from odenet_torch.steps.inside import Inside, Kind
from odenet_torch.steps.stride_patterns import Stride
from odenet_torch.steps.strides import Pair, Strides, contiguous, forth, start
from odenet_torch.steps.times import moves

Live = tuple[Tensor, ...]
_ALIKE = (ReversibleHeun, AsynchronousLeapfrog, Coupled)
"""Reversible solvers all of whose steps are the same: within a graph a step knows its place in the stride alone."""


def compilable(ivp: Problem) -> Choices:
    """The choices of a problem whose equal steps are to be compiled.

    Raises:
        UnsupportedError: a gradient method whose backward pass is not compiled, or a solver whose steps are not alike.
        InputError: see `checked`.
    """
    assert ivp.compile is not None
    method, solver = ivp.gradient, ivp.solver
    if isinstance(solver, ReversibleSolver) and type(solver) not in _ALIKE:
        raise UnsupportedError(
            f"compile with equal steps of {solver.label!r}, whose steps may differ by their number",
            f"explicit Runge-Kutta methods, {', '.join(alike.name for alike in _ALIKE)}",
            "leave out compile, or take one of these",
        )
    if isinstance(solver, ReversibleSolver) and isinstance(method, Checkpoint):
        raise UnsupportedError(
            f"compile with equal steps of {solver.label!r} and gradient {method.label!r}",
            "backprop and reversible with this solver",
            "take gradient='reversible', or leave out compile",
        )
    plain = type(method) in (Backprop, Checkpoint, DiscreteAdjoint, Reversible)
    if not plain or any(getattr(method, option, None) is not None for option in ("memory", "bits", "tolerance")):
        raise UnsupportedError(
            f"compile with equal steps and gradient {method.label!r}",
            "backprop; checkpoint, with segments or states; discrete-adjoint without a tolerance; reversible",
            "leave out compile, or take one of these",
        )
    return checked(ivp.compile)


def solve(ivp: Problem, run: Run, stats: Stats, y0: Leaves) -> Leaves:
    """The leaves at the kept times, by compiled strides.

    Raises:
        UnsupportedError: what cannot be compiled, or not be run again where the backward pass does that.
    """
    assert ivp.compile is not None
    assert isinstance(run.grid, Grid)
    require_no_transform()
    *ends, ts = run.grid.moving or (None, None)
    if any(map(moves, (*ends, *(ts if isinstance(ts, list | tuple) else (ts,))))):
        raise UnsupportedError(
            "compile with equal steps, and times that need a gradient",
            "times that are numbers",
            "leave out compile, or detach t0, t1 and ts",
        )
    method, grid = ivp.gradient, run.grid
    again = torch.is_grad_enabled() and not isinstance(method, Backprop)
    field = run.field.apart() if again else run.field
    run = dataclasses.replace(run, field=field)
    bounds: Iterable[int] = ()
    if again and isinstance(method, Checkpoint):
        bounds = (1,) if method.states else (n for n, _ in method.parts(grid.steps)) if method.segments else ()
    elif again and isinstance(method, DiscreteAdjoint):
        bounds = method.anchored(grid.steps)
    strides = Strides(field, run.layout, grid, run.solver, ivp.compile, bounds, y0)
    if not again:
        return _recorded(run, strides, y0)
    way = _WAYS[type(method)](method, stats, strides)
    return way.solve(run, y0)


def _recorded(run: Run, strides: Strides, y0: Leaves) -> Leaves:
    """By autograd, which records a stride as one operation; or without gradients."""
    live = strides.live if torch.is_grad_enabled() else ()
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*live, *y0))

    wide: dict[int, Tensor] = {}

    def handed(stride: Stride) -> Live:
        if not recorded:
            return tuple([tensor.detach() for tensor in stride.live])
        return strides.widened(stride, stride.live, wide)

    states = _forth(run, strides, entered(y0, recorded), y0, run.grid.kept, handed)[0]
    outputs = stacked(run, states)
    return once(outputs) if recorded else outputs


def _forth(
    run: Run, strides: Strides, y: Leaves, y0: Leaves, wanted: Iterable[int], live: Callable[[Stride], Live]
) -> tuple[dict[int, Leaves], Pair]:
    """All strides from y, whose values are those of y0: the states that are wanted, by index, and what is carried."""
    wanted = {*wanted}
    states = {0: y0} if 0 in wanted else {}
    pair = _start(run, strides, y, live)
    for stride in strides.list:
        pair = strides.run("forth", forth, stride, live(stride), pair)
        if stride.end in wanted:
            states[stride.end] = pair[0]
    return states, pair


def _start(run: Run, strides: Strides, y: Leaves, live: Callable[[Stride], Live]) -> Pair:
    solver = run.solver
    if not isinstance(solver, ReversibleSolver):
        return (y,)
    if not solver.evaluations_at_start:  # nothing but the state itself
        return solver.start(run, run.grid.size(0), y)
    first = strides.list[0]
    return strides.run("start", start, first, live(first), y)


class Passage(Adjoint):
    """A backward pass whose steps are run again, stride by stride.

    Args:
        method: the gradient method.
        stats: of the solve.
        strides: of the solve.
    """

    def __init__(self, method: Any, stats: Stats, strides: Strides) -> None:
        super().__init__(stats)
        self.method, self.strides = method, strides
        self.handed: dict[int, Live] = {}

    def solve(self, run: Run, y0: Leaves) -> Leaves:
        strides = self.strides
        self.alarm = alarm(next(iter(run.field.functions()), None))
        self.looked = ForwardReads(strides.wiring, (tensor for stride in strides.list for tensor in stride.fixed))
        self.autocast, self.settings, drawn = autocasts(run.layout.device), Settings(), random.getstate()
        run = dataclasses.replace(run, surrounded=self.surrounded)
        every = strides.live
        if run.field.homes:
            every = tuple({id(home): home for home, _ in map(run.field.home, every)}.values())
        outputs = self.applied(run, y0, every)
        self.looked.require_no_trace()
        strides.y0 = None
        if random.getstate() != drawn:  # of Python, which a graph is handed as another number each time
            random.setstate(drawn)
            raise UnsupportedError(
                "compile of equal steps with a gradient method that runs them again, of a field that draws numbers "
                "from Python's random",
                "fields that give the same for the same",
                "take gradient='backprop', or leave out compile",
            )
        return outputs

    @contextlib.contextmanager
    def surrounded(self) -> Iterator[None]:
        """What steps that run again need around them."""
        self.looked.require_same()
        if self.strides.shortcuts is not None:
            self.strides.shortcuts.compared.clear()  # others may have run in the meantime
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.settings.again())
            for kind, enabled, dtype in self.autocast:
                if enabled or torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False))
            yield

    def live(self, stride: Stride) -> Live:
        """The tensors that need a gradient, without it: for a graph, one that has it was captured."""
        known = self.handed.get(stride.first)
        if known is None:
            plain = tuple([tensor.detach() for tensor in stride.live])
            known = self.handed[stride.first] = self.strides.widened(stride, plain, self.wide)
        return known

    def forth(self, run: Run, y0: Leaves) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
        self.wide: dict[int, Tensor] = {}
        self.strides.strict = True
        y0, wanted = tuple([leaf.detach() for leaf in y0]), {*run.grid.kept, *self.kept_states(run)}
        if 0 in wanted:
            y0 = own(y0)
        y = tuple([leaf.contiguous() for leaf in y0])
        states, pair = _forth(run, self.strides, y, y0, wanted, self.live)
        return states, run.solver.kept(pair) if isinstance(run.solver, ReversibleSolver) else ()

    def pulled(
        self, name: str, function: Callable[..., Any], stride: Stride, sums: Sums, *arguments: Any, more: Any = ()
    ) -> Any:
        """The value of a backward pass of a stride, less the gradients of tensors, which are its last, and are added
        up."""
        *value, parts = self.strides.run(name, function, stride, self.live(stride), *arguments, more=more)
        unread = self.strides.unread[stride.first]
        pairs = [(x, part) for i, (x, part) in enumerate(zip(stride.live, parts, strict=True)) if i not in unread]
        if self.strides.once and name != "origin":
            sums.by_tensor.update([(id(x), part) for x, part in pairs])
        else:
            sums.add([x for x, _ in pairs], [part for _, part in pairs])
        return value


def _met(gradients: dict[int, AnyLeaves], n: int, g: AnyLeaves) -> AnyLeaves:
    return add(g, gradients[n]) if n in gradients else g


def _laid(leaves: AnyLeaves) -> Leaves:
    return tuple([leaf.contiguous() for leaf in leaves])


class Recomputation(Passage):
    """`checkpoint.Recomputation` by strides: their first states are kept, or those of segments, or of a schedule."""

    method: Checkpoint

    def keeps(self, run: Run) -> Iterable[int]:
        if self.method.states is not None:
            return schedule(run.grid.steps, self.method.states).forward
        return (*self._firsts(run), run.grid.steps)

    def _firsts(self, run: Run) -> list[int]:
        """The steps whose states are kept."""
        if self.method.segments is None:
            return [stride.first for stride in self.strides.list]
        return [first for first, _ in self.method.parts(run.grid.steps)]

    def last(self, y: Leaves) -> Leaves | None:
        return sample(y, own=True)

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        known, steps, at = saved.states, run.grid.steps, self.strides.at
        one = next(iter(known.values()))
        g: AnyLeaves = _laid(gradients.get(steps) or zeros(one))
        small = len(one) == 1 and one[0].numel() <= ENTRIES
        ends = KnownEnds(run, self.stats, known.get(steps) or saved.last, small)
        ends.over_again = self._over_again
        if any(enabled for _, enabled, _ in self.autocast):
            ends.off = OFF_HALF
        if self.method.states is not None:
            turns = schedule(steps, self.method.states)
            for turn in turns.turns:
                y = start = _laid(known[turn.origin])
                for n in range(turn.origin, turn.step):
                    y = self._over(at[n], y)
                    if n + 1 in turn.keep:
                        known[n + 1] = y
                ends.since = turn.origin
                g = self._pull(at[turn.step], y, g, gradients, sums, ends, start)
                if (kept := known.pop(turn.step, None)) is not None and turn.step in turns.forward:
                    ends.keep(turn.step, kept)
                yield turn.step
            ends.over()
            return g
        firsts = self._firsts(run)
        for first, end in reversed([*zip(firsts, [*firsts[1:], steps], strict=True)]):
            segment = [stride for stride in self.strides.list if first <= stride.first < end]
            states, ends.since = [start := _laid(known.pop(first))], first
            for stride in segment[:-1]:
                states.append(self._over(stride, states[-1]))
            for stride in reversed(segment):
                g = self._pull(stride, states.pop(), g, gradients, sums, ends, start)
                yield stride.first
            ends.keep(first, start)
        ends.over()
        return g

    def _over(self, stride: Stride, y: Leaves) -> Leaves:
        return self.strides.run("forth", forth, stride, self.live(stride), (y,))[0]

    def _over_again(self, first: int, last: int, y: Leaves) -> Leaves:
        for stride in self.strides.list:
            if first <= stride.first <= last:
                y = self._over(stride, _laid(y))
        return y

    def _pull(
        self,
        stride: Stride,
        y: Leaves,
        g: AnyLeaves,
        gradients: dict[int, AnyLeaves],
        sums: Sums,
        ends: KnownEnds,
        start: Leaves,
    ) -> AnyLeaves:
        g, end = self.pulled("pull", _pull, stride, sums, y, _laid(g))
        ends.reached(stride.end - 1, start, end)
        return _met(gradients, stride.first, g)


def _pull(kind: Kind) -> Any:
    count, trees = kind.count, kind.trees

    def stride_pull(stride: Any, numbers: Any, live: Live, y: Leaves, g: Leaves) -> tuple[Leaves, Leaves, Live]:
        inside = Inside("plan", trees, stride, numbers, live)

        def over(y: Leaves, live: Live) -> Leaves:
            for n in range(count):
                y = add(y, inside.increment(n, y, live))
            return y

        pulled: Any = torch.func.vjp(over, y, live)
        end, vjp = pulled
        below, parts = vjp(g)
        return _contiguous(below), _contiguous(end), parts

    return stride_pull


def _contiguous(leaves: Leaves) -> Leaves:
    return contiguous((leaves,))[0]


class Reversal(Passage):
    """`discrete_adjoint.Reversal` by strides."""

    method: DiscreteAdjoint

    def keeps(self, run: Run) -> Iterable[int]:
        return (*run.grid.kept, run.grid.steps, *self.method.anchored(run.grid.steps))

    def sketch(self, y0: Leaves) -> Sketch | None:
        return Sketch(y0)

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        y = _laid(saved.states[run.grid.steps])
        errors = StepErrors(run)
        g: AnyLeaves = gradients.get(run.grid.steps) or zeros(y)
        increments: tuple[Leaves, ...] = ()
        for stride in reversed(self.strides.list):
            known = saved.states.get(stride.first)
            y, g, increments, missed = self.pulled(
                "undo",
                _undo,
                stride,
                sums,
                y,
                _laid(g),
                increments,
                None if known is None else _laid(known),
                more=(self.method, known is not None),
            )
            errors.add_several(missed, stride.end - 1)
            g = _met(gradients, stride.first, g)
            yield stride.first
        if saved.sketch is not None:
            errors.add(saved.sketch.error(y, saved.states[run.grid.steps]), -1)
        certify(self.stats, self.alarm, errors)
        return g


def _undo(kind: Kind, method: DiscreteAdjoint, known: bool) -> Any:
    count, trees = kind.count, kind.trees

    def stride_undo(
        stride: Any, numbers: Any, live: Live, y: Leaves, g: Leaves, increments: tuple[Leaves, ...], first: Any
    ) -> tuple[Leaves, Leaves, tuple[Leaves, ...], Tensor, list[Tensor | None]]:
        inside, sums, missed = Inside("plan", trees, stride, numbers, live), _Added("reads", live), []
        for n in reversed(range(count)):
            there = known and n == 0
            z: Leaves = first if there else predicted(method, inside, n, y, increments)
            d, part = sums.vjp(n, lambda z, live, n=n: inside.increment(n, z, live), z, g)
            before = subtract(y, d)
            missed.append(relative(subtract(before, z), sized(z, y) if there else y))
            y = before if method.correct and not there else z
            g = add(g, part)
            if method.extrapolates:
                increments = (d, *increments[: method.order - 1])
        return _contiguous(y), _contiguous(g), contiguous(increments), torch.stack(missed), sums.total

    return stride_undo


class _Added:
    """Gradients of tensors within a graph, as the VJPs of its steps add to them."""

    def __init__(self, reads: Any, live: Live) -> None:
        self.reads, self.live = reads, live
        self.total: list[Any] = [None] * len(live)

    def vjp(self, n: int, f: Callable[[Leaves, Live], Leaves], y: Leaves, g: Leaves) -> tuple[Leaves, Leaves]:
        """The value of f, which reads what step n reads, and the cotangent of y."""
        places = self.reads[n]

        def of_these(y: Leaves, these: Live) -> Leaves:
            every = [*self.live]
            for i, tensor in zip(places, these, strict=True):
                every[i] = tensor
            return f(y, tuple(every))

        pulled: Any = torch.func.vjp(of_these, y, tuple([self.live[i] for i in places]))
        value, vjp = pulled
        below, parts = vjp(g)
        for i, part in zip(places, parts, strict=True):
            self.total[i] = part if self.total[i] is None else self.total[i] + part
        return value, below


class Retrace(Passage):
    """`reversible.Retrace` by strides."""

    method: Reversible
    back_by = 1

    def keeps(self, run: Run) -> Iterable[int]:
        return ()

    def witness(self, run: Run) -> int:
        return self.strides.list[-1].first

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        solver, pair = run.solver, contiguous(saved.pair)
        assert isinstance(solver, ReversibleSolver)
        zero = zeros(pair[0])
        g = contiguous(solver.cotangents(gradients.get(run.grid.steps, zero), zero))
        errors, last = StepErrors(run), pair[0]
        for stride in reversed(self.strides.list):
            pair, g = self.pulled("retrace", _retrace, stride, sums, pair, g)
            if saved.known is not None and stride.first == self.witness(run):
                add_strayed(errors, stride.first, pair[0], saved.known, last)
            if stride.first in gradients:
                g = (add(g[0], _laid(gradients[stride.first])), *g[1:])
            yield stride.first
        first = self.strides.list[0]
        if solver.evaluations_at_start:
            y, defect, gradient = self.pulled("origin", _origin, first, sums, pair, g)
        else:
            y, defect, gradient = solver.origin(_no_field, run.grid.size(0), pair, g)
        errors.add(relative(defect, sized(y, saved.pair[0])), -1)
        certify(self.stats, self.alarm, errors)
        return gradient


_no_field: Any = None
"""In the place of evaluations, where a solver makes none."""


class _Pull:
    """Evaluations with their VJPs (`odenet._solvers.reversible.Back`), within a graph."""

    def __init__(self, inside: Inside, sums: _Added) -> None:
        self.inside, self.sums = inside, sums

    def slope(self, n: int, position: float, y: Leaves, cotangent: Leaves) -> tuple[Leaves, Leaves]:
        return self.sums.vjp(n, lambda y, live: self.inside.slope(n, position, y, live), y, cotangent)

    def increment(self, n: int, y: Leaves, cotangent: Leaves, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        return self.sums.vjp(n, lambda y, live: self.inside.increment(n, y, live, reverse=reverse), y, cotangent)


def _retrace(kind: Kind) -> Any:
    solver: Any = kind.solver
    steps, count, trees = kind.steps, kind.count, kind.trees

    def stride_retrace(stride: Any, numbers: Any, live: Live, pair: Pair, g: Pair) -> tuple[Pair, Pair, list[Any]]:
        inside, sums = Inside("plan", trees, stride, numbers, live), _Added("reads", live)
        pull = _Pull(inside, sums)
        for n in reversed(range(count)):
            pair, g = solver.back(pull, n, inside.h, steps, pair, g)
        return contiguous(pair), contiguous(g), sums.total

    return stride_retrace


def _origin(kind: Kind) -> Any:
    solver: Any = kind.solver
    trees = kind.trees

    def stride_origin(
        stride: Any, numbers: Any, live: Live, pair: Pair, g: Pair
    ) -> tuple[Leaves, Leaves, Leaves, list[Any]]:
        inside, sums = Inside("plan", trees, stride, numbers, live), _Added("reads", live)
        y, defect, gradient = solver.origin(_Pull(inside, sums), inside.h, pair, g)
        return _contiguous(y), _contiguous(defect), _contiguous(gradient), sums.total

    return stride_origin


_WAYS: dict[type, Any] = {Checkpoint: Recomputation, DiscreteAdjoint: Reversal, Reversible: Retrace}
