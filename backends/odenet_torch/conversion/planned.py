"""`convert(gradient="auto")` where layers compute their own outputs: the fastest exact method that fits the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odenet import Auditor, Auto, Backprop, Checkpoint, Gradient, InputError, Plan, Profile
from odenet.kit import quiet, tree_leaves
from odenet_torch.conversion.calls import called, leaving_no_trace
from odenet_torch.conversion.layer_run import LayerRun
from odenet_torch.gradients.adjoint import unhooked
from odenet_torch.gradients.profiles import Groups, profiles

_EXACT = (Backprop(), Checkpoint())


def take_fastest(model: nn.Module, example: Any, runs: Sequence[LayerRun], auto: Auto) -> None:
    """Measure both exact methods on the example, in training, and let all runs have the faster one that fits.

    Neither is ever off, so that there is nothing to audit.

    Args:
        model: with converted layers.
        example: what it is called with.
        runs: of its layers.
        auto: what is wished; its memory is that of forward and backward pass of the whole model.

    Raises:
        InputError: neither fits the memory: how much the lesser one needs.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        _give(runs, Checkpoint(), None)
        return
    device = parameters[0].device

    def gradient_of(method: Gradient) -> tuple[Groups, float | None]:
        for run in runs:
            run.gradient = method
        with leaving_no_trace([model], recorded=True), unhooked(parameters), quiet(), torch.inference_mode(False):
            gradient = torch.autograd.grad(_functional(model, example), parameters, allow_unused=True)
        return {"weights": list(gradient)}, None

    model.train()
    reference, _ = gradient_of(Backprop())

    def measured(methods: Sequence[Gradient], memory: int | None, repeats: int) -> tuple[Sequence[Profile], str]:
        return profiles(methods, gradient_of, reference, device, memory=memory, repeats=repeats)

    where = ("torch", runs[0].solver, max(run.steps for run in runs), str(parameters[0].dtype).removeprefix("torch."))
    plan = Auditor(auto).plan_of(where, measured(_EXACT, auto.memory, 3), lambda stopped: measured(stopped, None, 1)[0])
    _give(runs, plan.gradient, plan)


def _give(runs: Sequence[LayerRun], gradient: Gradient, plan: Plan | None) -> None:
    for run in runs:
        run.gradient, run.plan = gradient, plan


def _functional(model: nn.Module, example: Any) -> Tensor:
    """A fixed random linear functional of all outputs that have a gradient, so that no cotangent is zero."""
    total = None
    for leaf in tree_leaves(called(model, example)):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            real = torch.view_as_real(leaf) if leaf.is_complex() else leaf
            direction = torch.linspace(-1.0, 1.0, max(1, real.numel()), device=real.device, dtype=real.dtype)
            part = (direction[: real.numel()].reshape(real.shape) * real).sum()
            total = part if total is None else total + part
    if total is None:
        raise InputError(
            "a model none of whose outputs has a gradient on the example",
            "one with an output that depends on its parameters",
            "take gradient='checkpoint' or 'backprop', which need no plan",
        )
    return total
