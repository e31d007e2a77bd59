"""The same pass by another gradient method, begun anew inside of its backward pass, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import Backprop, Gradient, Problem
from odenet.kit import Leaves as AnyLeaves
from odenet.kit import quiet, tree_flatten, tree_leaves, tree_map
from odenet_torch.field import random_state
from odenet_torch.field.field import BlockField, Field, FunctionField
from odenet_torch.field.state import Leaves
from odenet_torch.field.surroundings import no_trace
from odenet_torch.gradients.profiles import Groups
from odenet_torch.gradients.solve import solve_problem
from odenet_torch.steps.fixed import Run

Make = Callable[[Gradient], Problem]
"""A problem, with a gradient method."""


@dataclass(frozen=True)
class ForwardSnapshot:
    """What a forward pass begins with, and may change: the random state, and buffers of the modules in the field."""

    device: torch.device
    random: list[Tensor]
    buffers: list[tuple[torch.nn.Module, str, Tensor, Tensor]]
    roots: tuple[Any, ...]

    @classmethod
    def of(cls, problem: Problem, field: Field) -> ForwardSnapshot:
        """A snapshot of what a pass that is about to begin may change."""
        roots = tuple(field.functions())
        modules = [inner for root in roots if isinstance(root, torch.nn.Module) for inner in root.modules()]
        buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in dict.fromkeys(modules)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        device = next(leaf.device for leaf in tree_leaves(problem.y0) if isinstance(leaf, Tensor))
        return cls(device, random_state.state(device), buffers, roots)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Inside, all is as it was then; afterwards, as it is now."""
        now = random_state.state(self.device)
        kept = [module._buffers.get(name) for module, name, _, _ in self.buffers]
        with no_trace(self.roots):
            for module, name, _, value in self.buffers:
                module._buffers[name] = value.clone()
            random_state.restore(self.device, self.random)
            try:
                yield
            finally:
                random_state.restore(self.device, now)
                for (module, name, _, _), buffer in zip(self.buffers, kept, strict=True):
                    module._buffers[name] = buffer


class RepeatedPass:
    """The same pass by another method: called with it, forward and back from y0.

    Args:
        make, field: the problem of the exact pass.
        before: what its forward pass began with.
        run: its solve.
        y0: where it began.
        gradients: of the loss with respect to the states that were returned, by index.
    """

    def __init__(
        self, make: Make, field: Field, before: ForwardSnapshot, run: Run, y0: Leaves, gradients: dict[int, AnyLeaves]
    ) -> None:
        self.make, self.field, self.before, self.y0 = make, field, before, y0
        self.steps = run.grid.steps
        self.cotangent: AnyLeaves = gradients[self.steps]
        self.tensors = run.field.everything(self.steps)

    def __call__(self, method: Gradient) -> tuple[Groups, float | None]:
        problem = self.make(method)
        leaves, unflatten = tree_flatten(problem.y0)
        y0 = [y.to(leaf.dtype).requires_grad_(leaf.requires_grad) for y, leaf in zip(self.y0, leaves, strict=True)]
        with quiet(), self.before.again(), torch.enable_grad():
            field, stand = renewed(self.field)
            solution = solve_problem(dataclasses.replace(problem, y0=unflatten(y0)), field)
            ys = [leaf[-1] for leaf in tree_leaves(solution.ys)]
            inputs = [leaf for leaf in y0 if leaf.requires_grad]
            sources = [*inputs, *(stand.get(id(tensor), tensor) for tensor in self.tensors)]
            pairs = [(y, g.to(y.dtype)) for y, g in zip(ys, self.cotangent, strict=True) if y.requires_grad]
            outputs, cotangents = zip(*pairs, strict=True)
            gradients = torch.autograd.grad(outputs, sources, cotangents, allow_unused=True)
        count = len(inputs)
        return self.groups(gradients[:count], gradients[count:]), solution.stats.certificate

    def groups(self, g: Any, weights: Any) -> Groups:
        """The gradient by what it belongs to."""
        needed = [leaf.requires_grad for leaf in tree_leaves(self.make(Backprop()).y0)]
        inputs = [part for part, need in zip(g, needed, strict=True) if need] if len(g) == len(needed) else [*g]
        return {"input": inputs, "weights": [*weights]}


def renewed(field: Field) -> tuple[Field, dict[int, Tensor]]:
    """The same field on fresh leaves in the place of the tensors handed to it, and these by `id` of the tensor."""
    stand: dict[int, Tensor] = {}

    def fresh(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            return leaf
        return stand.setdefault(id(leaf), leaf.detach().requires_grad_())

    result = copy.copy(field)
    if isinstance(result, BlockField):
        result.extra = tree_map(fresh, result.extra)
        result.extra_tensors = tuple(map(fresh, result.extra_tensors))
    elif isinstance(result, FunctionField) and result.depth is not None:
        moved, parameters = result.moved, result.parameters
        result = FunctionField(
            result.function, dataclasses.replace(result.depth, tree=tree_map(fresh, result.depth.tree))
        )
        result.moved, result.parameters = moved, parameters
    return result, stand
