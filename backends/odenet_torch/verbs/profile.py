"""Gradient methods on a model, leaving it as it was: how each solve is done, and what each method takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from odenet import Auto, Choices, Gradient, InputError, Profiles
from odenet.kit import quiet
from odenet_torch.conversion.layer_run import ConvertedRun
from odenet_torch.field.surroundings import no_trace
from odenet_torch.gradients.adjoint import unhooked
from odenet_torch.gradients.profiles import Groups, measurable, profiles
from odenet_torch.nets.modules import OdeNet, ResidualStack
from odenet_torch.verbs.batch import pair, scalar
from odenet_torch.verbs.examine import Solved, coarsest, solved, trainable, unchanged


def choices(model: nn.Module) -> dict[str, Choices]:
    """The solver, gradient method and steps of each solve in the model."""
    return {name: Choices(module.solver, _gradient(module), _steps(module)) for name, module in solved(model).items()}


def with_gradient(model: nn.Module, gradient: Gradient) -> nn.Module:
    """The model with that gradient method in each of its solves."""
    for module in solved(model).values():
        wish = module.gradient
        module.gradient = dataclasses.replace(wish, method=gradient) if isinstance(wish, Auto) else gradient
    return model


def profile(
    model: nn.Module,
    batch: Any,
    loss: Callable[..., Any] | None,
    gradients: Sequence[Gradient],
    reference: Gradient,
    memory: int | None,
    repeats: int,
) -> Profiles:
    """Time, memory and gradient error of each method on the model."""
    solves = solved(model)
    named = trainable(model)
    example = next(iter(named.values()))
    inputs, target = pair(example, batch)
    parameters = list(named.values())
    groups = _groups(solves, parameters)

    def gradient_of(method: Gradient) -> tuple[Groups, float | None]:
        with (
            unchanged(model, solves),
            no_trace([model]),
            unhooked(parameters),
            torch.inference_mode(False),
            torch.enable_grad(),
            quiet(),
        ):
            for tensors in solves.values():
                tensors.gradient = method
                if not isinstance(tensors, ConvertedRun):  # whose stats are those of the new method
                    tensors.stats = None
            value = scalar(loss, model(inputs), target)
            if not value.requires_grad:
                raise InputError("a loss that does not depend on the model's parameters", "one that does")
            derivatives = torch.autograd.grad(value, parameters, allow_unused=True)
            residuals = [tensors.certificate for tensors in solves.values() if tensors.certificate is not None]
            if all(tensors.stats is None for tensors in solves.values()):
                names = ", ".join(name or type(model).__name__ for name in solves)
                raise InputError(f"{names} not called in the forward pass", "a model that calls one of its solves")
        by_id = {id(p): g for p, g in zip(parameters, derivatives, strict=True)}
        return {key: [by_id[id(p)] for p in group] for key, group in groups.items()}, max(residuals, default=None)

    exact, _ = gradient_of(reference)
    inside = {key: tensors for key, tensors in exact.items() if key != _OUTSIDE} or exact
    if not (known := measurable(inside)):  # what is outside is exact in every method, and tells nothing
        exact = {key: [None for _ in tensors] for key, tensors in exact.items()}
    rows, counted = profiles(gradients, gradient_of, exact, example.device, memory=memory, repeats=repeats)
    return Profiles(rows, coarsest(named), counted, not known)


_OUTSIDE = "outside of every solve"


def _groups(solves: dict[str, Solved], parameters: list[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each solve, and all others; a shared one counts where it is met first."""
    left = {id(p): p for p in parameters}
    groups: dict[str, list[nn.Parameter]] = {}
    for name, module in solves.items():
        owners = module.blocks if isinstance(module, ConvertedRun) else [module]
        owned = [(key, p) for owner in owners for key, p in owner.named_parameters()]
        inside = [p for key, p in owned if not isinstance(module, OdeNet) or key.startswith("block.")]
        groups[name] = [left.pop(id(p)) for p in inside if id(p) in left]
    groups[_OUTSIDE] = list(left.values())
    return {key: group for key, group in groups.items() if group}


def _gradient(module: Solved) -> Gradient:
    """The method; of `auto` with what is chosen now."""
    auditor = None if isinstance(module, ConvertedRun) else module.auditor
    return module.gradient if auditor is None else dataclasses.replace(auditor.auto, method=auditor.method)


def _steps(module: Solved) -> int | None:
    if isinstance(module, ResidualStack):
        return len(module.blocks) - (module.along == "linear")
    return module.spec.depth if isinstance(module, OdeNet) else module.steps
