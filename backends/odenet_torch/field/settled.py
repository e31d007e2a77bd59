"""Blocks that run again as they ran, known from earlier passes: what `Replay` would look at step by step, once a pass.

A block is settled when a careful pass has seen that it draws no random numbers, has no buffers and no hooks, leaves
nothing by the side, and can reach no other tensor with a gradient than its parameters. As long as all that it can reach
stands where it stood, that is taken to hold; what it holds is compared before the backward pass as `Replay` compares
it, and a pass that drew a random number or left something is run again with a `Replay`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet_torch.field import random_state
from odenet_torch.field.block_contents import BlockContents, StackContents
from odenet_torch.field.field import BlockField, unique
from odenet_torch.field.knowledge import knowledge
from odenet_torch.field.passing_values import FoundValues
from odenet_torch.field.replay import Replay
from odenet_torch.field.settings import Settings
from odenet_torch.field.shared_hooks import SharedHooks, present
from odenet_torch.field.surroundings import Surroundings, put_back


class SettledBlocks:
    """Blocks of one forward pass, for its backward pass.

    Args:
        stack: these, and what they consist of.
        device: of the state.
    """

    def __init__(self, stack: StackContents, device: torch.device) -> None:
        self.stack, self.device = stack, device
        self.random = random_state.state(device)
        self.shared, self.settings = SharedHooks(), Settings()
        self.states, self.reads = stack.states(), stack.reads()
        self.passing: FoundValues | None = None
        """Of a single block: its passing values."""

    @functools.cached_property
    def parameters(self) -> tuple[Tensor, ...]:
        """All that need a gradient, once each."""
        return unique([tensor for tensors in self.reads.values() for tensor in tensors])

    @functools.cached_property
    def blocks(self) -> list[tuple[Surroundings, BlockContents, list[Any]]]:
        """Each block as it was in the forward pass (see `StackContents.apart`)."""
        return self.stack.apart(self.states)

    def drew(self) -> bool:
        """After the forward pass: whether random numbers were drawn."""
        return not random_state.same(random_state.state(self.device), self.random)

    def left(self) -> bool:
        """After the forward pass: whether something was left where others find it, which is put back."""
        kept = self.passing is None or self.passing.ordinary()
        if kept and self.stack.stands():
            return False
        changes = [(around, difference) for around, *_ in self.blocks for difference in around.differences()]
        leftovers = [change for around, change in changes if (id(change[0]), change[1]) not in around.own]
        put_back(leftovers)
        return bool(leftovers) or not kept

    def same(self) -> bool:
        """After the forward pass: whether nothing was drawn or left; else all is as it was before."""
        if drew := self.drew():
            random_state.restore(self.device, self.random)
        return not self.left() and not drew

    def stand(self) -> bool:
        """Whether all stands where it stood in the forward pass, and nothing was written on."""
        return self.stack.stands() and self.stack.states() == self.states

    @contextlib.contextmanager
    def back(self, blocks: Sequence[nn.Module] | None = None) -> Iterator[bool]:
        """The backward pass: blocks find what they found (see `Surroundings.again`).

        Yields whether a block holds other parameters now.

        Args:
            blocks: those that are to run again; None for all.

        Raises:
            GradientError: a block is not what it was in the forward pass.
        """
        moves, roots = False, None if blocks is None else set(map(id, blocks))
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.settings.again())
            stack.enter_context(self.shared.again())
            if roots is not None or not self.stand():
                for around, known, states in self.blocks:
                    if roots is not None and id(around.root) not in roots:
                        continue
                    if not known.runs_as_before() or known.states() != states:
                        known.as_called(around, states).require_unchanged((), moves=True)
                    around.require_unwritten()
                    if not around.untouched():
                        stack.enter_context(around.again())
                    moves = moves or any([owner.get(key) is not tensor for owner, key, tensor in known.parameters])
            yield moves


class Settled(SettledBlocks):
    """All blocks of a field.

    Args:
        field: whose blocks are all known.
        stack, device: of its blocks.
    """

    def __init__(self, field: BlockField, stack: StackContents, device: torch.device) -> None:
        super().__init__(stack, device)
        self.field = field

    @classmethod
    def of(cls, field: BlockField, device: torch.device) -> Settled | None:
        """None where a block is not settled."""
        assert field.depth is not None
        stack = contents(field.depth.tree)
        return None if stack is None else cls(field, stack, device)

    def once(self, steps: int) -> bool:
        """Whether no two of so many steps read the same parameter."""
        depth = self.field.depth
        return depth is not None and not self.tied and depth.layers == steps

    def read(self, blocks: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """The parameters of some blocks that need a gradient, once each."""
        if len(blocks) == 1:
            return self.reads[id(blocks[0])]
        return unique([x for block in blocks for x in self.reads[id(block)]])

    @functools.cached_property
    def tied(self) -> bool:
        """Whether a parameter is read in several layers."""
        depth = self.field.depth
        assert depth is not None
        return depth.kind == "linear" or sum(len(self.reads[id(block)]) for block in depth.tree) > len(self.parameters)

    @contextlib.contextmanager
    def back(self, blocks: Sequence[nn.Module] | None = None) -> Iterator[bool]:
        with super().back(blocks) as moves:
            if moves:
                self.field.parameters = {id(around.root): known.named for around, known, _ in self.blocks}
            self.field.moved = moves
            yield moves


def contents(blocks: tuple[nn.Module, ...], *, passing: bool = False) -> StackContents | None:
    """What settled blocks consist of; None where one is not settled."""
    if present():
        return None
    return StackContents.of(blocks, passing=passing)


def settle(field: BlockField, replay: Replay) -> None:
    """After a careful forward pass: the blocks that it showed to be settled are known from now on."""
    if not replay.random and not field.captured:
        settle_blocks(field.functions(), replay)


def settle_blocks(blocks: Iterable[nn.Module], replay: Replay) -> None:
    """The same for any blocks, whose random numbers, if they draw any, are the caller's business."""
    sides = replay.sides
    if replay.buffers or replay.moving or replay.noticed or sides.differentiable:
        return
    if any(tensors for _, before in sides.caches for tensors in before.values()):
        return
    for block in blocks:
        modules = tuple(block.modules())
        around = replay.sides.around.get(id(block))
        if around is None or not around.untouched() or any(around.reach.hooks):
            continue
        if around.reach.generators or None in around.values:  # which it wrote on
            continue
        if any(module._buffers or "parametrizations" in module._modules for module in modules):
            continue
        places = [
            (module._parameters, key, tensor)
            for module in modules
            for key, tensor in module._parameters.items()
            if tensor is not None
        ]
        own = {id(tensor) for *_, tensor in places}
        if any(isinstance(x, Tensor) and x.requires_grad and id(x) not in own for _, x in around.reach.watched):
            continue
        if not all(tensor.is_leaf for *_, tensor in places):
            continue
        known = BlockContents.of(around.reach, block, modules, places)
        if (memo := knowledge(block)) is not None:
            memo.settled[block.training] = known


def forget(block: nn.Module) -> None:
    """A block is not as it was known: it is looked at again."""
    if (memo := knowledge(block)) is not None:
        memo.settled.clear()
        memo.passing.clear()
        memo.stacks.clear()
