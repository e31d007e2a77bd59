"""What blocks that run again as they ran consist of: of one, and of all blocks of a stack together."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from odenet_torch.field.called_modules import ClassOfModule, ModuleSnapshot, code_of, state
from odenet_torch.field.field import unique
from odenet_torch.field.knowledge import Knowledge, knowledge
from odenet_torch.field.passing_values import PassingValues
from odenet_torch.field.reachable_objects import ReachableObjects
from odenet_torch.field.stored_values import StoredValues, TensorStates
from odenet_torch.field.surroundings import Surroundings, reach


@dataclass(frozen=True)
class BlockContents:
    """What a block consists of.

    Args:
        reach: all that it can reach.
        modules: the attributes of itself and of the modules in it.
        classes: of these.
        training: their flags.
        parameters: where each stands.
        named: the parameters by name, as in `BlockField.parameters`.
        passing: what is another in each pass, and not among all that; None where nothing is.
    """

    reach: ReachableObjects
    modules: tuple[dict[str, Any], ...]
    classes: tuple[ClassOfModule, ...]
    training: tuple[bool, ...]
    parameters: tuple[tuple[dict[str, Any], str, Tensor], ...]
    named: dict[str, Tensor]
    passing: PassingValues | None = None

    @classmethod
    def of(
        cls,
        reach: ReachableObjects,
        block: nn.Module,
        modules: Sequence[nn.Module],
        parameters: Iterable[tuple[dict[str, Any], str, Tensor]],
        passing: PassingValues | None = None,
    ) -> BlockContents:
        """Those of a block and the modules in it, as they are now."""
        return cls(
            reach,
            tuple(map(vars, modules)),
            tuple(map(ClassOfModule.of, modules)),
            tuple([module.training for module in modules]),
            tuple(parameters),
            dict(block.named_parameters()),
            passing,
        )

    def flags(self) -> tuple[bool, ...]:
        """Training flags as they are now."""
        return tuple([own["training"] for own in self.modules])

    def runs_as_before(self) -> bool:
        """Whether modes and classes are what they were."""
        return self.flags() == self.training and self.classes == tuple(
            [ClassOfModule.of(inner.module) for inner in self.classes]
        )

    def states(self) -> list[Any]:
        """What tells whether parameters are what they were (see `called_modules.state`)."""
        return [state(x) for *_, x in self.parameters]

    def as_called(self, around: Surroundings, states: list[Any]) -> ModuleSnapshot:
        """The same as `Replay` knows it, which says what is no longer as it was."""
        block: Any = around.root
        pairs = zip(self.parameters, states, strict=True)
        places: Any = tuple([((block, key), x, *then) for (_, key, x), then in pairs])
        return ModuleSnapshot(around.name, block, self.classes, self.training, places, ())

    def still(self, block: nn.Module) -> bool:
        """Whether a block still is that."""
        if self.passing is None:
            reached = reach(block) is self.reach and not any(self.reach.hooks)
        else:
            reached = self.reach.current()
        return (
            reached
            and self.runs_as_before()
            and all([owner.get(key) is tensor for owner, key, tensor in self.parameters])
        )

    def stored(self) -> StoredValues:
        """All of it that stands in dicts."""
        flags = [(own, "training", flag) for own, flag in zip(self.modules, self.training, strict=True)]
        return StoredValues.joined(
            [self.reach.stored, StoredValues((), (), code_of(self.classes))], [*flags, *self.parameters]
        )


class StackContents:
    """What the blocks of a stack consist of, for questions that are asked of all of them in every pass.

    Args:
        tree: the block of each layer.
        blocks: these, once each, with what they consist of.
    """

    def __init__(self, tree: tuple[nn.Module, ...], blocks: list[tuple[nn.Module, BlockContents]]) -> None:
        self.tree, self.blocks = tree, blocks
        every = [known for _, known in blocks]
        self._stored = StoredValues.joined([known.stored() for known in every])
        self._others = [pair for known in every for pair in known.reach.others]
        self._parameters = TensorStates([x for known in every for *_, x in known.parameters])
        watched = [array for known in every for _, array in known.reach.watched]
        self._watched = TensorStates([x for x in watched if isinstance(x, Tensor)])
        self._arrays = [x for x in watched if isinstance(x, np.ndarray)]
        self._wants: list[bool] | None = None
        self._reads: dict[int, tuple[Tensor, ...]] = {}

    @classmethod
    def of(cls, tree: tuple[nn.Module, ...], *, passing: bool = False) -> StackContents | None:
        """Of blocks that are all settled, as they are now; None where one is not, or no longer is.

        Args:
            tree: the block of each layer.
            passing: whether they may have passing values.
        """
        memo = knowledge(tree[0])
        if memo is None:
            return None
        key = tree[0].training, passing
        stack = memo.stacks.get(key)
        if stack is None or len(stack.tree) != len(tree) or not all(map(operator.is_, stack.tree, tree)):
            stack = None
        if stack is None or not stack.stands():
            blocks: list[tuple[nn.Module, BlockContents]] = []
            for block in {id(block): block for block in tree}.values():
                memo_of_block = knowledge(block)
                known = None if memo_of_block is None else _settled(memo_of_block, passing).get(block.training)
                if known is None or not known.still(block):
                    return None
                blocks.append((block, known))
            stack = memo.stacks[key] = cls(tree, blocks)
        return stack

    def stands(self) -> bool:
        """Whether all stands where it stood: modules, parameters and what can be reached, and no hooks on modules."""
        return self._stored.stand() and all([place.same(contents) for place, contents in self._others])

    def states(self) -> Any:
        """What is equal as long as nothing was written on that blocks read."""
        return self._parameters.now(), self._watched.now(), [array.tobytes() for array in self._arrays]

    def apart(self, states: Any) -> list[tuple[Surroundings, BlockContents, list[Any]]]:
        """Each block as it was when these were its states: its surroundings, contents, and states of its parameters."""
        parameters, watched, arrays = states
        parameters, watched = iter(self._parameters.apart(parameters)), iter(self._watched.apart(watched))
        arrays, parts = iter(arrays), []
        for n, (block, known) in enumerate(self.blocks):
            values = [next(watched)[::2] if isinstance(x, Tensor) else next(arrays) for _, x in known.reach.watched]
            around = Surroundings(f"block {n} ({type(block).__name__})", block, known.reach, values)
            if known.passing is not None:
                around.own = known.passing.places
            parts.append((around, known, [next(parameters) for _ in known.parameters]))
        return parts

    def reads(self) -> dict[int, tuple[Tensor, ...]]:
        """The parameters that need a gradient, once each, of each block, by its `id`."""
        wants = [x.requires_grad for x in self._parameters.tensors]
        if wants != self._wants:
            self._wants = wants
            self._reads = {
                id(block): unique([x for *_, x in known.parameters if x.requires_grad]) for block, known in self.blocks
            }
        return self._reads


def _settled(memo: Knowledge, passing: bool) -> dict[bool, BlockContents]:
    return memo.passing if passing else memo.settled
