"""Blocks called directly: the steps of a stack without what only unknown blocks need.

The first pass over a block looks at everything: whether it writes on its input, returns slopes in memory that it uses
again, keeps results by the side, draws random numbers, changes buffers. What was seen there is known from then on, and
later passes call the block alone, comparing version counters and shapes. Where a block behaves in another way than it
did, the pass is given up and run again by the careful loop, from the state and the random numbers that it began with.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from odenet import Grid, Solver, StateError
from odenet.kit import positions, tree_leaves
from odenet_torch.field.field import BlockField
from odenet_torch.field.half_precision import HALF
from odenet_torch.field.memory import overwritten, written
from odenet_torch.field.state import Layout, Leaves

if TYPE_CHECKING:
    from odenet.kit import StagedSolver

# by training flag: blocks that neither wrote on their input nor returned the same memory twice
_TIDY: dict[bool, weakref.WeakSet[nn.Module]] = {flag: weakref.WeakSet() for flag in (False, True)}


class NotAsBeforeError(Exception):
    """A block does what it did not do before; caught where the pass began."""


class NotSettledError(NotAsBeforeError):
    """A block is known, but not yet as one that runs again as it ran."""


class Direct:
    """The blocks that each stage of each step calls.

    Args:
        field: whose blocks are known.
        layout: of the state.
        places: of the stages within a step, forwards and reversed.
        steps: how many.
    """

    def __init__(
        self, field: BlockField, layout: Layout, places: tuple[Sequence[float], Sequence[float]], steps: int
    ) -> None:
        assert field.depth is not None
        self.field, self.layout = field, layout
        self.extra = field.extra
        self.blocks: Sequence[nn.Module] = field.depth.tree
        self.steps_per_block = steps // (field.depth.intervals or 1)
        self.linear = field.depth.kind == "linear"
        self.places = places
        self.single = len(places[0]) == 1
        self.guarded = False  # whether the forward pass is over, so that it cannot be run again

    @classmethod
    def of(cls, field: Any, layout: Layout, grid: Any, solver: StagedSolver) -> Direct | None:
        """For a solve whose every block is known; None where one is not, or has to do more than to be called."""
        if type(field) is not BlockField or type(grid) is not Grid or field.depth is None:
            return None
        plain = layout.memory.counted and layout.single and layout.dtypes == layout.carried
        if not plain or field.keepers or any(isinstance(leaf, Tensor) for leaf in tree_leaves(field.extra)):
            return None
        if any(block not in _TIDY[block.training] for block in field.functions()):
            return None
        kinds = dict.fromkeys((layout.device.type, "cpu"))
        if torch._C._are_functorch_transforms_active() or any(torch.is_autocast_enabled(kind) for kind in kinds):
            return None
        if grid.moving is not None or grid.steps % (field.depth.intervals or 1):
            return None
        tableau = getattr(solver, "increments", None)
        if tableau is None or (field.depth.kind == "linear" and not isinstance(solver, Solver)):
            return None
        places = tableau.c[: tableau.step_stages], positions(tableau, reverse=True)
        direct = cls(field, layout, places, grid.steps)
        between = direct.linear and (direct.steps_per_block > 1 or not {*places[0], *places[1]} <= {0, 1})
        return None if between else direct

    def block(self, n: int, position: float) -> nn.Module:
        """The block that is called at `position` of step n."""
        return self.blocks[n + int(position)] if self.linear else self.blocks[n // self.steps_per_block]

    def called(self, n: int) -> tuple[nn.Module, ...]:
        """The blocks that step n calls, once each."""
        if not self.linear:
            return (self.blocks[n // self.steps_per_block],)
        one, other = self.blocks[n], self.blocks[n + 1]
        return (one,) if one is other else (one, other)

    def slope(self, n: int, position: float, y: Tensor) -> Tensor:
        """The block's value at y."""
        block = self.block(n, position)
        arguments, named = self.extra
        if n == 0 and not self.guarded and not (y.is_leaf and y.requires_grad and torch.is_grad_enabled()):
            y = y.clone()  # it may be the caller's
        before = y._version
        if self.field.moved:
            parameters = self.field.parameters[id(block)]
            k = torch.func.functional_call(block, parameters, (y, *arguments), named)
        else:
            k = block(y, *arguments, **named)
        if y._version != before:
            raise self._other(written())
        if type(k) is not Tensor or k.shape != y.shape or k.dtype is not y.dtype:
            if not self.guarded:
                raise NotAsBeforeError
            (k,) = self.layout.slope(k, (y,))  # says what is wrong with it
        return k

    def _other(self, error: StateError) -> Exception:
        """What is raised where a block does something else now: in the forward pass, that it is to run again."""
        return error if self.guarded else NotAsBeforeError()

    def stage(self, n: int, reverse: bool) -> Callable[[int, Leaves], Leaves]:
        """The stages of step n (`odenet.kit.Stage`)."""
        places, slope = self.places[reverse], self.slope
        if self.single:
            return lambda i, at: (slope(n, places[i], at[0]),)
        returned: list[tuple[Tensor, int]] = []

        def stage_of_several(i: int, at: Leaves) -> Leaves:
            k = slope(n, places[i], at[0])
            if any(before is k or before._version != version for before, version in returned):
                raise self._other(overwritten())
            returned.append((k, k._version))
            return (k,)

        return stage_of_several


def learn(field: Any, layout: Layout) -> None:
    """After a careful pass: what was seen of the blocks."""
    memory = layout.memory
    odd = memory.lends or memory.takes or memory.switches or memory.suspects
    if type(field) is BlockField and memory.evaluated > 1 and not odd:
        for block in field.functions():
            # what many steps add to weights of half precision is added up in float32 by a field that looks at them
            if not any(p.dtype in HALF for p in block.parameters()):
                _TIDY[block.training].add(block)


def forget(field: BlockField) -> None:
    """A block was not as before: it is looked at again."""
    for block in field.functions():
        for known in _TIDY.values():
            known.discard(block)
