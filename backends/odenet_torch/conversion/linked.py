"""Layers in a row whose states are rebuilt backward: one node of autograd's for each layer, linked to the next.

Each layer runs by its own code, with a graph that is let go except where something beside the state needs it: what a
hook or a module keeps has the gradient that it has in the plain model. A state is kept while no converted layer has
taken it; then the layers after it can rebuild it. Autograd itself adds up what a state's readers send back, and runs
the nodes from the last to the first, so that loops that stop early, hooks and features from the middle are as in the
plain model.

Over 250 lines: a link's forward call, what it keeps, and its backward pass are one thing.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, DiscreteAdjoint, GradientError, Grid, Stats
from odenet.kit import alarm, staged, subtract, tree_leaves, tree_map
from odenet.kit import solver as solver_named
from odenet_torch.conversion.branches import Branch
from odenet_torch.conversion.call_modes import WAYS, CallMode, described
from odenet_torch.conversion.layer import Arguments, arguments_of, coarse, copied, difference, state_name, state_of
from odenet_torch.conversion.layer_run import LayerRun
from odenet_torch.conversion.rerun import FIRST, Rerun, spent
from odenet_torch.field import random_state
from odenet_torch.field.differentiating import record, several_at_once
from odenet_torch.field.field import Field, Stand, now, unique
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.kinks import kinked, perhaps
from odenet_torch.field.memory import written
from odenet_torch.field.raised import as_raised
from odenet_torch.field.state import Layout, Leaves, layout
from odenet_torch.field.written_on import version
from odenet_torch.gradients.adjoint import SavedStates, Sums, _retained, refuse_second_derivatives, unhooked
from odenet_torch.gradients.discrete_adjoint import Reversal, alone
from odenet_torch.gradients.stages import advance
from odenet_torch.steps.direct import NotAsBeforeError
from odenet_torch.steps.fixed import Run

_EULER = staged(solver_named("euler"), "a converted model")


def linked(
    layer: Any,
    plain: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    method: DiscreteAdjoint,
) -> Any:
    """What the layer returns, its new state as a node of a chain.

    Args:
        layer: a converted one.
        plain: its own forward pass.
        args, kwargs: of its call.
        method: by which states are rebuilt; with `anchors=1` each is kept.
    """
    x, arguments = arguments_of(layer, args, kwargs)
    arguments = copied(arguments)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise _no_state(layer, f"is called with a {type(x).__name__} as its state")
    way = CallMode((), fresh=False) if method.anchors == 1 else layer._odenet_ways.of(layer, *arguments)
    name, steps = state_name(layer, args), max(1, len(way.branches))
    # where random numbers begin in each branch, and buffers, is known to a replay
    rerun = Rerun(layer, plain, x, arguments, name, steps, looked=way.draws is not False)
    if rerun.replay is not None:
        rerun.replay.sides.anew = True
    states: dict[int, Any] = {}
    since = now()
    with way.noting(layer, states, rerun.device):
        out = rerun.first(x, lambda: plain(*args, **kwargs))
    new = state_of(out)
    if not isinstance(new, Tensor) or new.shape != x.shape or new.dtype != x.dtype:
        raise _no_state(layer, "returns no state of the shape and number type of the one that it is called with")
    if not new.requires_grad:
        return out
    rerun.require_unhooked()
    way.draws = rerun.draws
    if rerun.replay is None and rerun.draws:
        random_state.restore(rerun.device, rerun.random)
        raise NotAsBeforeError
    branches = way.branches
    if way.draws and len(states) + 1 < len(branches):  # it is not known what each branch draws
        branches = ()
    if (replay := rerun.replay) is not None:
        for index, state in states.items():
            replay.random[index, *FIRST[1:]] = state
        if FIRST in replay.buffers:
            for index in range(1, len(branches)):
                replay.buffers[index, *FIRST[1:]] = replay.buffers[FIRST]
    extras = unique(leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad)
    weights = rerun.weights([new], (x, *extras), since)
    link = Link(rerun, layer.odenet_run, method, way, branches, x, new, arguments, extras, weights)
    y = _LinkNode.apply(link, x, *extras, *weights)
    return y if isinstance(out, Tensor) else type(out)((y, *out[1:]))


def _no_state(layer: nn.Module, does: str) -> ConversionError:
    return ConversionError(
        f"{described(layer)} {does}",
        "a state of real numbers that goes in and comes out in one shape and number type",
        "take gradient='checkpoint', which needs none",
    )


class Branches(Field):
    """The branches of a layer as the steps of one run."""

    depth = None
    calls = False

    def __init__(self, link: Link) -> None:
        self.link = link
        self.alone = False
        """Whether there is one, whose step knows the state before it by itself (see `discrete_adjoint.alone`)."""
        self.last: dict[int, tuple[Tensor, Tensor]] = {}
        """Where each branch was evaluated last, and its value."""

    def __call__(self, t: Tensor, y: Any, n: int, position: float, steps: int, stand: Stand | None = None) -> Any:
        link = self.link
        arguments = link.arguments
        if stand and link.extras:
            arguments = tree_map(lambda leaf: stand.get(id(leaf), leaf), arguments)

        def branch(_: Any, y: Tensor) -> Tensor:
            if link.branches:
                return link.branches[n].function(link.rerun.layer, y, tree_leaves(arguments))
            return link.evaluate(y, copied(arguments)) - y

        try:
            value = branch(t, y)
        except RuntimeError as error:
            value = record(error, branch, t, y)
        if not self.alone:
            self.last[n] = y.detach(), value.detach()
        return value

    def seen(self, by: Callable[..., bool]) -> bool | None:
        return vars(self.link.rerun.layer)[WAYS].kinked if by in (kinked, perhaps) else None

    def begin(self, y: Tensor) -> Tensor:
        """The state before the layer as the backward pass from `y` found it."""
        if not self.link.method.correct:
            return self.last[0][0]
        for n in reversed(range(self.link.steps)):
            y = y - self.last[n][1]
        return y

    def explicit(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.link.extras

    def read(self, n: int, steps: int) -> tuple[Tensor, ...]:
        return self.link.weights

    def modules(self, n: int, position: float, steps: int) -> list[tuple[str, nn.Module]]:
        layer = self.link.rerun.layer
        return [(type(layer).__name__, layer)]


class KnownBranches:
    """Those of a settled layer, which steps call directly (as `steps.direct.Direct` does), and what they read (as
    `field.settled.Settled` has it)."""

    single, places = True, ((0.0,), (0.0,))

    def __init__(self, branches: Branches) -> None:
        self.branches = branches

    def slope(self, n: int, position: float, y: Tensor) -> Tensor:
        """A branch at y."""
        before = version(y)
        k = self.branches(y, y, n, position, 1)
        if version(y) != before:
            raise written()
        if k.shape != y.shape or k.dtype is not y.dtype:
            layout(y)[0].slope(k, (y,))  # says what is wrong with it
        return k

    def called(self, n: int) -> tuple[nn.Module, ...]:
        """The layer."""
        return (self.branches.link.rerun.layer,)

    def read(self, blocks: Any) -> tuple[Tensor, ...]:
        """The tensors that the gradient goes to."""
        return self.branches.link.weights

    def once(self, steps: int) -> bool:
        """Whether each is read in one step."""
        return steps == 1


@functools.lru_cache(64)
def _grid(steps: int) -> Grid:
    return Grid(0.0, float(steps), steps, (steps,))


@functools.lru_cache(64)
def _layout(dtype: torch.dtype, device: torch.device) -> Layout:
    """Of states that are called directly, where nothing is known of memory."""
    return layout(torch.empty((), dtype=dtype, device=device))[0]


class Link:
    """One call of a layer in a chain.

    Args:
        rerun: the call.
        run: whose layer it is.
        method: by which states are rebuilt.
        way: the way in which it was called.
        branches: of the layer, each a step; none where all of it is one.
        x: the state before.
        y: the state after it.
        arguments: beside the state.
        extras: the tensors among them that need a gradient.
        weights: the other tensors that do.
    """

    def __init__(
        self,
        rerun: Rerun,
        run: LayerRun,
        method: DiscreteAdjoint,
        way: CallMode,
        branches: tuple[Branch, ...],
        x: Tensor,
        y: Tensor,
        arguments: Arguments,
        extras: tuple[Tensor, ...],
        weights: tuple[Tensor, ...],
    ) -> None:
        self.rerun, self.way, self.branches, self.weights = rerun, way, branches, weights
        self.run, self.method = run, method
        # without a graph: an argument's graph may lead to earlier links, and those hold later ones
        apart = {id(tensor): tensor.detach() for tensor in extras}
        self.arguments = tree_map(lambda leaf: apart.get(id(leaf), leaf), arguments)
        self.extras = tuple(tensor.requires_grad_() for tensor in apart.values())
        self.spent = False
        self.rebuilt: Tensor | None = None
        self.y: Tensor | None = y.detach()
        self.version, self.dtype = version(y), y.dtype
        self.after: Link | None = None
        before = _link(x)
        self.before = None if before is None else weakref.ref(before)
        self.index = 0 if before is None else before.index + before.steps
        anchors = self.method.anchors
        anchor = anchors is not None and -self.index % anchors < self.steps
        self.checks = way.fresh and bool(branches)
        self.x: Tensor | None = x.detach() if before is None or anchor or self.checks else None
        self.x_version = version(x)
        self.alarm = alarm(run) if before is None else None  # told where the backward pass ends
        if before is None:
            self.run.forget()
        elif before.after is None and not before.checks:
            before.after, before.y = self, None

    @property
    def steps(self) -> int:
        """How many branches there are."""
        return max(1, len(self.branches))

    def evaluate(self, x: Tensor, arguments: Arguments) -> Tensor:
        """The layer's new state by its own code."""
        return state_of(self.rerun.call(x, arguments))

    def end(self) -> Tensor:
        """The state after the layer."""
        y, self.rebuilt = self.rebuilt, None
        if y is not None:
            return y
        # the next layer sent nothing back: from the first link on the way that has a state
        links: list[Link] = [self]
        while links[-1].y is None and links[-1].rebuilt is None:
            if links[-1].after is None:
                raise spent()
            links.append(links[-1].after)
        last = links[-1]
        y = last.rebuilt if last.y is None else _unwritten(last.y, last.version, last.rerun.layer)
        assert y is not None
        for link in reversed(links[1:]):
            y = link.undone(y)
        return y

    def undone(self, y: Tensor) -> Tensor:
        """The state before the layer, from `y` after it."""
        if self.x is not None:
            return self.begin()
        with self.rerun.again(), torch.no_grad():
            run, leaves = self.solve(y)
            reversal = Reversal(self.method, self.stats())
            for n in reversed(range(self.steps)):
                z = reversal.predict(run, n, leaves, [])
                leaves = subtract(leaves, run.increment(n, z)) if self.method.correct else z
        return leaves[0]

    def stats(self) -> Stats:
        """For one backward pass through the layer."""
        return Stats("torch", _EULER.label, self.method.label, self.steps, self.steps)

    def solve(self, y: Tensor) -> tuple[Run, Leaves]:
        """The layer's branches as steps of a solve, and a state in the number type that states are carried in."""
        branches, grid = Branches(self), _grid(self.steps)
        if self.rerun.replay is None and not self.extras and self.dtype not in HALF:
            known: Any = KnownBranches(branches)
            kind = _layout(self.dtype, y.device)
            return Run(branches, kind, grid, _EULER, again=True, direct=known, settled=known), (y.to(self.dtype),)
        kind, (leaf,) = layout(y.to(self.dtype))
        return Run(branches, kind, grid, _EULER, self.rerun.replay, again=True), (y.to(leaf.dtype),)

    def pull(self, g: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """The gradients by x, and by the given tensors and weights, from that by y."""
        if self.spent:
            raise spent()
        y = self.end()
        with self.rerun.again(), unhooked(self.weights):
            run, leaves = self.solve(y)
            states = {} if self.x is None else self.states(run, leaves)
            if run.grid.steps != self.steps:  # the branches were not what the layer is
                run, leaves = self.solve(y)
            assert isinstance(run.field, Branches)
            sums, wants = Sums(run.field), (g.to(leaves[0].dtype),)
            # a batch of cotangents may have an error each
            single = self.steps == 1 and run.direct is not None and self.method.tolerance is None
            if single and not several_at_once([g]):
                run.field.alone = True
                one = alone(self.method, run, states.get(0), leaves, wants, sums)
                (gx,), rebuilt = one.g, one.y[0]
                if self.method == self.run.gradient:
                    self.run.note_norms(self.index, self.rerun.layer, one.norms, gx.numel())
            else:
                stats, saved = self.stats(), SavedStates(states | {self.steps: leaves}, ())
                reversal = Reversal(self.method, stats)
                by_x = advance(reversal.back(run, saved, {self.steps: wants}, sums))
                assert by_x is not None
                (gx,), rebuilt = by_x, None
                if self.method == self.run.gradient:
                    self.run.note(self.index, self.rerun.layer, stats, reversal.shares)
        if self.method == self.run.gradient and self.before is None:
            self.run.certify(self.alarm)
        before = None if self.before is None else self.before()
        if before is not None and before.y is None:
            if self.x is not None:
                before.rebuilt = self.begin()
            else:
                before.rebuilt = run.field.begin(leaves[0]) if rebuilt is None else rebuilt
        gradients = [sums.gradient(id(tensor), tensor.dtype) for tensor in (*self.extras, *self.weights)]
        if not _retained():
            self.spent, self.x, self.y, self.after = True, None, None, None
        return gx, gradients

    def begin(self) -> Tensor:
        """The state before the layer, which was kept."""
        assert self.x is not None
        return _unwritten(self.x, self.x_version, self.rerun.layer)

    def states(self, run: Run, end: Leaves) -> dict[int, Leaves]:
        """The states between the branches, from the kept one on; looks whether they lead to the end, if it is asked.

        Where they do not, the layer's own code decides otherwise than its trace: all of it is one branch.
        """
        y: Leaves = (self.begin().to(end[0].dtype),)
        states: dict[int, Leaves] = {0: y}
        with torch.no_grad():
            for n in range(self.steps - (not self.checks)):
                y = run.after(n, y)
                states[n + 1] = y
        if self.checks:
            if difference(end[0], y[0]) > coarse(self.run.tolerance, end[0].to(self.dtype)):
                self.branches = self.way.branches = ()
                return {0: states[0]}
            self.way.fresh = self.checks = False
        return states


def _link(x: Tensor) -> Link | None:
    """The link whose state a tensor is, as it was returned."""
    link = getattr(x.grad_fn, "link", None)
    return link if isinstance(link, Link) and version(x) == link.version else None


def _unwritten(state: Tensor, before: int, layer: nn.Module) -> Tensor:
    if version(state) != before:
        raise GradientError(
            f"a state between two converted layers, before or after {described(layer)}, was modified by an "
            "inplace operation, and is needed to rebuild the others",
            "operations that make new tensors",
            "take the operation that is not in place, or gradient='checkpoint'",
        )
    return state


class _LinkNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: Link, x: Tensor, *tensors: Tensor) -> Tensor:
        ctx.link = link
        assert link.y is not None
        return link.y.detach()

    @staticmethod
    @as_raised
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        link: Link = ctx.link
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            refuse_second_derivatives(link.method.label)
        gx, by_others = link.pull(gradients[0])
        return None, gx, *by_others
