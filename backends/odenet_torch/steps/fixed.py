"""The loop over N equal steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from odenet import Grid, ReversibleSolver
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import Stage, StagedSolver, add, increment, interpolant, positions, slopes
from odenet_torch.field.field import Field, Stand
from odenet_torch.field.memory import overwritten, written
from odenet_torch.field.replay import Replay
from odenet_torch.field.settled import Settled
from odenet_torch.field.state import Layout, Leaves
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.direct import Direct
from odenet_torch.steps.weighted_sum import plus, weigh_leaves
from odenet_torch.steps.whole_numbers import of_samples, straight_through

Carried = tuple[Leaves, ...]
"""What a solver carries from step to step: y alone, or more for a reversible one; y first."""


@dataclass(frozen=True)
class Run:
    """One solve: the field along depth on a grid by a method.

    Args:
        field: with its weights.
        layout: of the state.
        grid: times and steps.
        solver: the method.
        replay: for methods that evaluate f again; None where nothing is.
        again: whether this is the backward pass, which runs evaluations of the forward pass again.
        ready: evaluations made already, the next one last.
        direct: calls the blocks where all are known; None where they are looked at.
        settled: in the place of `replay` where all blocks run again as they ran.
        inside: outputs inside of steps, by step: positions, and the gradients of the loss with respect to them.
        surrounded: in the place of `replay` where steps are compiled: what those that run again need around them.
    """

    field: Field
    layout: Layout
    grid: Grid | Accepted
    solver: StagedSolver
    replay: Replay | None = None
    again: bool = False
    ready: list[Leaves] = dataclasses.field(default_factory=list)
    direct: Direct | None = None
    settled: Settled | None = None
    inside: Mapping[int, Sequence[tuple[float, AnyLeaves]]] = dataclasses.field(default_factory=dict)
    surrounded: Callable[[], AbstractContextManager[None]] | None = None

    def increment(self, n: int, y: Leaves, *, reverse: bool = False, stand: Stand | None = None) -> Leaves:
        """`D_n(y)`, or the increment of one step of size -h from the end of step n."""
        size = self.grid.size(n)
        direct = self.direct
        if direct is not None and direct.single:
            return ((-size if reverse else size) * direct.slope(n, direct.places[reverse][0], y[0]),)
        return increment(self.solver.increments, self._stage(n, reverse, stand), y, -size if reverse else size, plus)

    def after(self, n: int, y: Leaves, *, reverse: bool = False, stand: Stand | None = None) -> Leaves:
        """y and its increment (see `increment`), added up: of a method of one stage in one operation a leaf."""
        size, direct = self.grid.size(n), self.direct
        size = -size if reverse else size
        if direct is not None and direct.single:
            leaf = y[0]
            return (torch.add(leaf, direct.slope(n, direct.places[reverse][0], leaf), alpha=size),)
        if self.solver.increments.step_stages > 1:
            return add(y, self.increment(n, y, reverse=reverse, stand=stand))
        slopes = self._stage(n, reverse, stand)(0, y)
        return tuple([plus(leaf, size, k) for leaf, k in zip(y, slopes, strict=True)])

    def piece(self, n: int, y: Leaves, stand: Stand, g: AnyLeaves) -> tuple[Leaves, Leaves, AnyLeaves]:
        """`D_n(y)`, and what the loss reads of step n: `D_n(y)` with cotangent g, and outputs inside with theirs."""
        if n not in self.inside:
            d = self.increment(n, y, stand=stand)
            return d, d, g
        tableau, h = self.solver.increments, self.grid.size(n)
        ks = slopes(tableau, self._stage(n, False, stand), y, h, tableau.stages, plus)
        d = weigh_leaves(None, h, tableau.b, ks)
        if not tableau.fsal:
            ks.append(self.slope(n, 1.0, add(y, d), stand, rank=tableau.stages))
        outputs, cotangents = d, (*g,)
        for position, cotangent in self.inside[n]:
            outputs += weigh_leaves(y, h, interpolant(tableau).weights(position), ks)
            cotangents += (*cotangent,)
        return d, outputs, cotangents

    def rounded(self, y: AnyLeaves, shift: float = 0.0) -> Leaves:
        """Whole numbers next to y + shift (`odenet.kit.ReversibleSolver`); gradients go straight through."""
        return tuple(straight_through(leaf, shift) for leaf in y)

    def of_samples(self, number: Callable[[Any], Any], y: AnyLeaves) -> Leaves:
        """For each leaf the numbers of its samples, as `odenet.kit.Forth` has it."""
        return tuple(of_samples(number, leaf) for leaf in y)

    def _stage(self, n: int, reverse: bool, stand: Stand | None) -> Stage:
        if self.direct is not None:
            return self.direct.stage(n, reverse)
        tableau, memory = self.solver.increments, self.layout.memory
        places = positions(tableau, reverse) if reverse else tableau.c
        last = tableau.step_stages - 1

        def stage(i: int, at: Leaves) -> Leaves:
            return self.slope(n, places[i], at, stand, reverse=reverse, rank=i)

        if not last or memory.takes:
            return stage
        returned: list[tuple[Leaves, int]] = []
        count = memory.count

        def stage_of_several(i: int, at: Leaves) -> Leaves:
            slope = self.slope(n, places[i], at, stand, reverse=reverse, rank=i)
            if i < last:
                returned.append((slope, count(slope)))
                return slope
            for before, written_on in returned:
                if count(before) != written_on:
                    raise overwritten()
            return slope

        return stage_of_several

    def slope(
        self,
        n: int,
        position: float,
        y: Leaves,
        stand: Stand | None = None,
        *,
        reverse: bool = False,
        rank: int | None = None,
    ) -> Leaves:
        """The field at `position` of step n.

        Args:
            n, position, y: where.
            stand: tensors in the place of weights.
            reverse: whether in a reversed step.
            rank: which of the step's evaluations it is, where the position does not tell.
        """
        if self.direct is not None:
            return (self.direct.slope(n, position, y[0]),)
        if self.ready:
            return self.ready.pop()
        layout, memory = self.layout, self.layout.memory
        counted = memory.counted

        def evaluate() -> Leaves:
            # filled on the device: no copy from the host
            t = torch.full((), self.grid.time(n, position), dtype=layout.time, device=layout.device)
            if n == 0 or memory.careful:
                start = n == 0 and not (reverse or rank or position)
                return layout.evaluate(
                    lambda at: self.field(t, at, n, position, self.grid.steps, stand), y, start=start
                )
            leaf = y[0]
            before = leaf._version if counted else memory.count(y)
            value = layout.slope(self.field(t, layout.call(y), n, position, self.grid.steps, stand), y)
            if (leaf._version if counted else memory.count(y)) != before:
                raise written()
            return value

        if self.replay is None:
            return evaluate()
        key, place = (n, reverse, position if rank is None else rank), (n, position, self.grid.steps)
        if self.again:
            return self.replay.again(key, place, self.solver.increments.step_stages, evaluate)
        return self.replay.first(key, place, evaluate, y)


def loop(
    run: Run, y: Leaves, also: Iterable[int] = (), on_step: Callable[[int, Any], None] | None = None
) -> tuple[dict[int, Leaves], tuple[Leaves, ...]]:
    """All steps from y.

    Args:
        run: what to solve.
        y: the state at t0.
        also: further indices whose states are wanted.
        on_step: called with each step and the state after it; of a reversible solver, with what it carries before it.

    Returns:
        The states at `grid.kept` and at these, by index, and what a reversible solver needs for the backward pass.
    """
    kept, grid, solver = {*run.grid.kept, *also}, run.grid, run.solver
    states = {0: y} if 0 in kept else {}
    if isinstance(solver, ReversibleSolver):
        pair = solver.start(run, grid.size(0), y)
        for n in range(grid.steps):
            if on_step is not None:
                on_step(n, pair)
            pair = solver.step(run, n, grid.size(n), grid.steps, pair)
            if n + 1 in kept:
                states[n + 1] = pair[0]
        return states, solver.kept(pair)
    for n in range(grid.steps):
        y = run.after(n, y)
        if on_step is not None:
            on_step(n, y)
        if n + 1 in kept:
            states[n + 1] = y
    return states, ()


def stacked(run: Run, states: dict[int, Leaves], *, copied: bool = False) -> Leaves:
    """The kept states' leaves with a leading time axis, in the number type of y0.

    Args:
        run: what was solved.
        states: by index.
        copied: whether in memory of their own, because the states are needed again: the caller may write on what is
            returned, and torch refuses that for a view which a node of ours has made.
    """
    columns = zip(*(states[n] for n in run.grid.kept), strict=True)
    alone = len(run.grid.kept) == 1 and not copied
    stack = [column[0].unsqueeze(0) if alone else torch.stack(column) for column in columns]
    return tuple(run.layout.returned(leaf, i) for i, leaf in enumerate(stack))


Solve = Callable[[Run, Leaves], Leaves]
"""A gradient method: from the state at t0 to the leaves at `grid.kept`, differentiable in its way."""
