"""Checkpointing: some states are kept, and what lies between them is computed again.

Chen et al. 2016 (segments, run again by `torch.utils.checkpoint`); Griewank and Walther 2000 (the optimal schedule,
`odenet._gradients.revolve`).

Over 250 lines: equal and accepted steps, segments and the optimal schedule share the parts that are run again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import Checkpoint, Problem, ReversibleSolver, Stats
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import add, schedule
from odenet_torch.field.differentiating import Hooks, checkpointed, hooked, refuses_hooks, unseen
from odenet_torch.field.field import BlockField, leaves, now
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.late_writes import run_to_the_end
from odenet_torch.field.replay import Replay
from odenet_torch.field.settled import settle
from odenet_torch.field.state import Leaves
from odenet_torch.field.storages import storages
from odenet_torch.field.witness import ENTRIES, EVERY, sample, turns
from odenet_torch.gradients import accepted_steps, hookless
from odenet_torch.gradients.adjoint import (
    KNOWN,
    Adjoint,
    SavedStates,
    in_forward_mode,
    mark,
    own,
    pulled,
    read,
    refuse_classes,
    refuse_transforms,
    require_known,
    require_recording,
    standing,
    zeros,
)
from odenet_torch.gradients.known_ends import KnownEnds
from odenet_torch.gradients.stages import Steps
from odenet_torch.gradients.sums import Sums
from odenet_torch.steps.accepted import Accepted
from odenet_torch.steps.adaptive import Back
from odenet_torch.steps.direct import NotSettledError
from odenet_torch.steps.fixed import Carried, Run, Solve, loop, stacked


class Recomputation(Adjoint):
    """The backward pass from one kept state to the one before, whose steps run again."""

    def __init__(self, method: Checkpoint, stats: Stats) -> None:
        super().__init__(stats)
        self.method = method

    def solve(self, run: Run, y0: Leaves) -> Leaves:
        if self.method.states is not None or self.method.memory is not None:
            return super().solve(run, y0)
        if not torch.is_grad_enabled():
            return stacked(run, loop(run, y0)[0])
        refuse_transforms(f"gradient={self.stats.gradient!r}")
        refuse_classes(y0, f"gradient={self.stats.gradient!r}")
        if in_forward_mode():
            return stacked(run, loop(run, y0)[0])
        coupled = isinstance(run.solver, ReversibleSolver)  # carries more than y, and so is left to torch's checkpoint
        if run.direct is not None:
            if coupled or hooked():  # what the caller's hooks are to see is saved by torch's checkpoint alone
                raise NotSettledError
            self.differentiable = True
            return self.settled(run, run.direct, own(y0))
        if (hookless.known(run.field) or hookless.forbidden()) and not coupled:
            return super().solve(run, y0)
        before = hookless.Traces(run)
        try:
            return self.recorded(run, own(y0))
        except RuntimeError as error:
            if not refuses_hooks(error) or hooked():  # hooks of the caller's are the caller's
                raise
            if coupled:
                raise hookless.unkept(run.solver.label) from error
            before.undo(error)
        hookless.remember(run.field)
        return super().solve(run, y0)

    def recorded(self, run: Run, y0: Leaves) -> Leaves:
        """By torch's checkpoint, which hooks into what autograd saves."""
        run = dataclasses.replace(run, replay=(replay := Replay.of(run.field, run.layout, run.grid.steps)))
        states, since, due = {0: y0}, now(), turns()
        ends: dict[int, KnownEnds] = {}
        run.field.recorded(run.layout.device, run.grid.steps)
        with replay.forth(), replay.notice():
            carried = _begun(run, y0)
            for first, end in self.method.parts(run.grid.steps):
                due -= end - first
                alone = end == run.grid.steps < EVERY
                segment = Segment(run, replay, first, end, self.stats, ends, due < 0 or alone)
                due = due if due >= 0 else EVERY - 1
                within, carried = segment(carried)
                states |= within
                replay.sides.clear()
                if first == 0:
                    replay.watch(leaves(carried[0], since))
        replay.finish(carried[0])
        if isinstance(run.field, BlockField):
            settle(run.field, replay)
        return stacked(run, states)

    def keeps(self, run: Run) -> Iterable[int]:
        if self.method.states is None:
            return [first for first, _ in self.method.parts(run.grid.steps)]
        return schedule(run.grid.steps, self.method.states).forward

    def discover(self, run: Run, y0: Leaves, hooks: Hooks = unseen) -> Leaves:
        """What the first evaluation saves tells how many states fit in `memory`."""
        if self.method.memory is None:
            return super().discover(run, y0, hooks)
        sizes: dict[int, int] = {}

        def saved(tensor: Tensor) -> Tensor:
            sizes.update({storage.data_ptr(): storage.nbytes() for storage in storages(tensor)})
            return tensor.detach()

        if hookless.known(run.field):
            raise hookless.unmeasured()
        before = hookless.Traces(run)
        try:
            count = functools.partial(torch.autograd.graph.saved_tensors_hooks, saved, lambda tensor: tensor)
            first = super().discover(run, y0, count)
        except RuntimeError as error:
            if not refuses_hooks(error) or hooked():
                raise
            before.undo(error)
            hookless.remember(run.field)
            raise hookless.unmeasured() from error
        for tensor in (*y0, *run.field.everything(run.grid.steps)):  # there anyway
            for storage in storages(tensor):
                sizes.pop(storage.data_ptr(), None)
        state = sum(leaf.nbytes for leaf in y0)
        # of each stage: what f saves, the state it is evaluated at, and the cotangent of its slope
        stages = run.solver.stages * (sum(sizes.values()) + 2 * state)
        self.method = Checkpoint(states=self.method.affordable(state, stages))
        return first

    def last(self, y: Leaves) -> Leaves | None:
        return sample(y, own=True)

    def look(self, run: Run, y0: Leaves, states: dict[int, Leaves], last: Leaves | None) -> None:
        ends, steps = KnownEnds(run, self.stats, last), run.grid.steps
        ends.since = 0
        if steps in states:
            ends.reached(steps - 1, y0, states[steps])
        ends.over()

    def again_from(self, first: int) -> int:
        """A schedule, and a segment, run again from a kept state below."""
        return first if self.method == Checkpoint() else 0

    def keeps_accepted(self, n: int) -> bool:
        """A schedule needs to know how many steps there are: then they run once more."""
        return self.method == Checkpoint()

    def back(self, run: Run, saved: SavedStates, gradients: dict[int, AnyLeaves], sums: Sums) -> Steps:
        assert not isinstance(run.solver, ReversibleSolver), "left to torch's checkpoint: it carries more than y"
        known, steps = saved.states, run.grid.steps
        small = len(known[0]) == 1 and known[0][0].numel() <= ENTRIES and not isinstance(run.grid, Accepted)
        ends = KnownEnds(run, self.stats, known.get(steps) or saved.last, small)
        if isinstance(run.grid, Accepted):
            if self.method == Checkpoint():
                return (yield from self.all_states(run, known, gradients, sums, ends))
            count = min(self.method.states or self.method.segments or 1, steps)
            self.method = Checkpoint(states=max(count, 1))
            known = self.again(run, known[0])
        if self.method.states is None:
            return (yield from self.segments(run, known, gradients, sums, ends))
        g, start = gradients.get(steps) or zeros(known[0]), known[0]
        # those of accepted steps are of the backward pass itself
        forward = () if isinstance(run.grid, Accepted) else schedule(steps, self.method.states).forward
        for turn in schedule(steps, self.method.states).turns:
            y = known[turn.origin]
            start = y if forward else start
            ends.since = turn.origin if forward else 0
            for n in range(turn.origin, turn.step):
                y = run.after(n, y)
                if n + 1 in turn.keep:
                    known[n + 1] = y
            g = self.step(run, turn.step, y, g, gradients.get(turn.step), sums, ends, start)
            if (kept := known.pop(turn.step, None)) is not None and turn.step in forward:
                ends.keep(turn.step, kept)
            yield turn.step
        ends.over()
        return g

    def segments(
        self, run: Run, known: dict[int, Leaves], gradients: dict[int, AnyLeaves], sums: Sums, ends: KnownEnds
    ) -> Steps:
        """Back from segment to segment, whose first states are known."""
        g = gradients.get(run.grid.steps) or zeros(known[0])
        for first, end in reversed(self.method.parts(run.grid.steps)):
            start, ends.since = known[first], first
            for n in range(first, end - 1):
                known[n + 1] = run.after(n, known[n])
            for n in reversed(range(first, end)):
                g = self.step(run, n, known.pop(n), g, gradients.get(n), sums, ends, start)
                yield n
            ends.keep(first, start)
        ends.over()
        return g

    def all_states(
        self, run: Run, known: dict[int, Leaves], gradients: dict[int, AnyLeaves], sums: Sums, ends: KnownEnds
    ) -> Steps:
        """The backward pass where all states are known."""
        g = gradients.get(run.grid.steps) or zeros(known[0])
        for n in reversed(range(run.grid.steps)):
            ends.keep(n + 1, known.pop(n + 1))
            ends.since = n
            g = self.step(run, n, known[n], g, gradients.get(n), sums, ends, known[n])
            yield n
        ends.over()
        return g

    def again(self, run: Run, y: Leaves) -> dict[int, Leaves]:
        """The states that the schedule keeps on the first way through the accepted steps."""
        assert self.method.states is not None
        keep = schedule(run.grid.steps, self.method.states).forward
        known = {0: y}
        for n in range(max(keep)):
            y = run.after(n, y)
            if n + 1 in keep:
                known[n + 1] = y
        return known

    @staticmethod
    def step(
        run: Run,
        n: int,
        y: Leaves,
        g: AnyLeaves,
        met: AnyLeaves | None,
        sums: Sums,
        ends: KnownEnds,
        start: Leaves,
    ) -> Leaves:
        """The cotangent at the start of step n, the gradient `met` of the loss by y[n] itself included.

        Where it ends is held against what is known of that, as reached from `start`.

        The step is `y + D(y)` as in the forward pass, and what was added up so far enters as cotangents of y and of the
        weights themselves: autograd then adds in the order of backprop, to the last bit.
        """
        if run.settled is not None and run.settled.once(run.grid.steps) and met is None:
            return Recomputation.known_step(run, n, y, g, sums, ends, start)
        since = mark(run)
        at, explicit, stand = standing(run, n, y)
        with torch.enable_grad():
            if n in run.inside:
                d, outputs, cotangents = run.piece(n, at, stand, g)
                z, inside = add(at, d), [*zip(outputs[len(d) :], cotangents[len(d) :], strict=True)]
            else:
                z, inside = run.after(n, at, stand=stand), []
        ends.reached(n, start, z)
        captured = read(run, n)
        reads, weights = (*stand.values(), *captured), (*explicit, *captured)
        if since != KNOWN:
            require_known(n, z, (*at, *reads), since)
        # one tensor may be read in several ways: what was added up so far enters once
        once = {sums.place(weight): (leaf, weight) for leaf, weight in zip(reads, weights, strict=True)}
        exact = [(leaf, weight) for leaf, weight in once.values() if weight.dtype not in HALF]
        so_far = [(leaf, total) for leaf, weight in exact if (total := sums.total(weight)) is not None]
        pairs = [*zip(z, g, strict=True), *inside, *(zip(at, met, strict=True) if met is not None else ()), *so_far]
        outputs, cotangents = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outputs, [*at, *reads], cotangents, allow_unused=True)
        totals: dict[Any, tuple[Tensor, Tensor]] = {}
        for weight, part in zip(weights, gradients[len(at) :], strict=True):
            if part is not None and weight.dtype in HALF:  # added up in another number type than its own
                sums.add([weight], [part])
            elif part is not None:
                _, before = totals.get(place := sums.place(weight), (weight, None))
                totals[place] = weight, part if before is None else before + part
        for weight, total in totals.values():
            sums.put(weight, total)
        return gradients[: len(at)]

    @staticmethod
    def known_step(run: Run, n: int, y: Leaves, g: AnyLeaves, sums: Sums, ends: KnownEnds, start: Leaves) -> Leaves:
        """The same where the step reads parameters of its own alone: nothing was added up for them so far."""
        at, weights = y[0].detach().requires_grad_(), read(run, n)
        with torch.enable_grad():
            (z,) = run.after(n, (at,))
        ends.reached(n, start, (z,))
        gradients = pulled(z, (at, *weights), g[0])
        sums.by_tensor.update((id(x), part) for x, part in zip(weights, gradients[1:], strict=True) if part is not None)
        assert gradients[0] is not None
        return (gradients[0],)


@dataclasses.dataclass
class Segment:
    """Steps first..end-1, of which torch keeps nothing but the first state, and runs again in the backward pass.

    Torch ends that as soon as all is saved. To the end, which is then held against what it was, run segments that are
    `due`, those of blocks that run for the first time, and those that have to.
    """

    run: Run
    replay: Replay
    first: int
    end: int
    stats: Stats
    ends: dict[int, KnownEnds]
    due: bool = False

    def __post_init__(self) -> None:
        self.since = now()
        self.last: Leaves | None = None

    def __call__(self, carried: Carried) -> tuple[dict[int, Leaves], Carried]:
        """The states after these steps that are wanted, the last among them, and what is carried then."""
        kept = [n for n in range(self.first + 1, self.end) if n in self.run.grid.kept]
        count = len(carried[0])

        def steps(*flat: Tensor) -> list[Tensor]:
            carried, states = _grouped(flat, count), []
            start = carried[0]
            for n in range(self.first, self.end):
                carried = _advanced(self.run, n, carried)
                if n + 1 in kept:
                    states += carried[0]
            if self.due or not (self.replay.late | self.replay.checked).isdisjoint(range(self.first, self.end)):
                self._ended(start, carried[0])
                run_to_the_end()
            return [*states, *(leaf for leaves in carried for leaf in leaves)]

        outputs = checkpointed(
            steps,
            *(leaf for leaves in carried for leaf in leaves),
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (contextlib.nullcontext(), self),
        )
        groups = _grouped(outputs, count)
        return dict(zip((*kept, self.end), groups, strict=False)), groups[len(kept) :]

    def _ended(self, start: Leaves, y: Leaves) -> None:
        """The steps have led from a state to another one: the first time, or once more."""
        if not self.run.again:
            self.last = sample(y, own=self.end == self.run.grid.steps)
        elif self.last is not None:
            ends = self.ends_of_pass()
            with torch.no_grad():
                ends.look(self.end - 1, start, y, self.last)

    def ends_of_pass(self) -> KnownEnds:
        """What the running backward pass compares, over all segments."""
        task = torch._C._current_graph_task_id()
        ends = self.ends.get(task)
        if ends is None:
            ends = KnownEnds(self.run, self.stats, None)
            if task == -1:  # somebody looks at what is saved
                return ends
            self.ends[task] = ends
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.ends.pop(task).over())
        return ends

    def __enter__(self) -> None:
        """While the steps run again, as often as a graph is gone back through."""
        require_recording("gradient='checkpoint'")
        self.run = dataclasses.replace(self.run, again=True)
        self.run.field.settle(range(self.first, self.end), self.run.grid.steps)
        self.entered = contextlib.ExitStack()
        self.entered.enter_context(self.replay.back(range(self.first, self.end), self.since))

    def __exit__(self, *raised: Any) -> None:
        """Leave the context of the segment."""
        self.run = dataclasses.replace(self.run, again=False)
        self.entered.__exit__(*raised)


def _begun(run: Run, y0: Leaves) -> Carried:
    """What is carried at t0."""
    solver = run.solver
    return solver.start(run, run.grid.size(0), y0) if isinstance(solver, ReversibleSolver) else (y0,)


def _advanced(run: Run, n: int, carried: Carried) -> Carried:
    """What is carried after step n."""
    if isinstance(run.solver, ReversibleSolver):
        return run.solver.step(run, n, run.grid.size(n), run.grid.steps, carried)
    return (run.after(n, carried[0]),)


def _grouped(flat: Sequence[Tensor], count: int) -> Carried:
    """Leaves in a row as groups of so many."""
    return tuple(tuple(flat[i : i + count]) for i in range(0, len(flat), count))


def fixed(problem: Problem, stats: Stats) -> Solve:
    """A solve in equal steps whose gradient is by checkpointing."""
    assert isinstance(problem.gradient, Checkpoint)
    return Recomputation(problem.gradient, stats).solve


def adaptive(problem: Problem, stats: Stats) -> Back:
    """The backward pass of checkpointing over accepted steps."""
    assert isinstance(problem.gradient, Checkpoint)
    return functools.partial(accepted_steps.solve, Recomputation(problem.gradient, stats))
