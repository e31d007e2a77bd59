"""One gradient of a model by a method that is not its own, leaving the model as it was."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from odenet import Backprop, Gradient, InputError, Part, Sample, Stats
from odenet.kit import Place, made_reversible, places, quiet
from odenet_torch.conversion.attached import Attached
from odenet_torch.conversion.converted import FirstOfRun
from odenet_torch.conversion.layer_run import ConvertedRun
from odenet_torch.nets.modules import NeuralODE, OdeNet, ResidualStack
from odenet_torch.verbs.batch import pair, scalar

Solved = ResidualStack | NeuralODE | OdeNet | ConvertedRun
SOLVED = (ResidualStack, NeuralODE, OdeNet)


def examine(
    model: nn.Module, batch: Any, loss: Callable[..., Any] | None, gradient: Gradient, reversible: bool
) -> Sample:
    """The gradient of one batch by one method, with the weights and layers that it belongs to."""
    solves = solved(model)
    named = trainable(model)
    example = next(iter(named.values()))
    inputs, target = pair(example, batch)
    stats: dict[str, list[Stats]] = {name: [] for name in solves}
    with (
        unchanged(model, solves),
        torch.inference_mode(False),
        torch.enable_grad(),
        quiet(),
        contextlib.ExitStack() as hooks,
    ):
        for name, module in solves.items():
            module.gradient = gradient
            module.solver = made_reversible(module.solver) if reversible else module.solver
            hooks.callback(module.register_forward_hook(_note(stats[name])).remove)
        value = scalar(loss, model(inputs), target)
        if not value.requires_grad:
            raise InputError("a loss that does not depend on the model's parameters", "one that does")
        derivatives = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        names = {id(p): name for name, p in named.items()}
        parts = [_part(name, solves[name], calls, names) for name, calls in stats.items() if calls]
    if not parts:
        raise InputError(
            f"{', '.join(name or type(model).__name__ for name in solves)} not called in the forward pass",
            "a model that calls at least one of its solves",
        )
    gradients = {
        name: to_numpy(torch.zeros_like(p) if g is None else g)
        for (name, p), g in zip(named.items(), derivatives, strict=True)
    }
    weights = {name: to_numpy(p) for name, p in named.items()}
    return Sample(value.item(), gradients, weights, tuple(parts), coarsest(named))


def trained(model: nn.Module, batch: Any, loss: Callable[..., Any] | None, steps: int, rate: float) -> nn.Module:
    """A copy of the model after some steps of Adam on the batch."""
    copied = copy.deepcopy(model)
    solves = solved(copied)
    parameters = [p for p in copied.parameters() if p.requires_grad]
    inputs, target = pair(parameters[0], batch)
    descent = torch.optim.Adam(parameters, rate)
    # the copy shares no buffer with the model, and the random state is put back
    with unchanged(copied, solves), torch.inference_mode(False), torch.enable_grad():
        for module in solves.values():
            module.gradient = Backprop()
        for _ in range(steps):
            descent.zero_grad()
            scalar(loss, copied(inputs), target).backward()
            descent.step()
    descent.zero_grad()
    return copied


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that need a gradient, by name.

    Raises:
        InputError: there are none.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise InputError(f"a {type(model).__name__} without a parameter that needs a gradient", "at least one")
    return parameters


def solved(model: nn.Module) -> dict[str, Solved]:
    """The solves in a model by path; "" for the model itself, "layers.0.odenet_run" for a run of converted layers.

    Of converted layers those that can be undone, if there are any: the others keep their own method.

    Raises:
        InputError: there are none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model that is a {type(model).__name__}", "a torch.nn.Module")
    solves: dict[str, Solved] = {}
    runs: dict[int, ConvertedRun] = {}
    layers = [
        (name, module, module.odenet_run) for name, module in model.named_modules() if isinstance(module, Attached)
    ]
    for name, module, run in [entry for entry in layers if entry[2].why is None] or layers:
        if id(run) not in runs:
            runs[id(run)] = solves[f"{name}.odenet_run" if name else "odenet_run"] = ConvertedRun(run)
        runs[id(run)].blocks.append(module)
    for name, module in model.named_modules():
        if isinstance(module, FirstOfRun):
            solves[f"{name}.stack" if name else "stack"] = module.stack  # which is no submodule of its own
        elif isinstance(module, SOLVED):
            solves[name] = module
    if not solves:
        raise InputError(
            f"a {type(model).__name__} without a solve in it",
            "a module that is or contains a ResidualStack, NeuralODE or OdeNet of odenet_torch",
            "build one, or let odenet_torch.convert find the residual layers of a model",
        )
    return solves


@contextlib.contextmanager
def unchanged(model: nn.Module, solves: Mapping[str, Solved]) -> Iterator[None]:
    """Afterwards the solves have their solvers, methods and stats again, and buffers and random states their values."""
    choices = [(module, module.solver, module.gradient, module.stats) for module in solves.values()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for module, solver, gradient, stats in choices:
                module.solver, module.gradient, module.stats = solver, gradient, stats
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    module._buffers[name] = buffer
                    if not torch.equal(buffer, value):  # batch_norm changes its statistics and not their version
                        buffer.copy_(value)


def _note(calls: list[Stats]) -> Callable[..., None]:
    def hook(module: Any, inputs: Any, outputs: Any) -> None:
        calls.append(module.stats)

    return hook


def _part(name: str, module: Solved, calls: list[Stats], names: Mapping[int, str]) -> Part:
    certificates = [stats.certificate for stats in calls if stats.certificate is not None]
    certificate = max(certificates, default=None)
    kind, layers = _layers(name, module, names)
    return Part(name, module.solver, calls[0].steps, kind, layers, certificate, len(calls))


def _layers(name: str, module: Solved, names: Mapping[int, str]) -> tuple[Any, tuple[Mapping[str, Place], ...]]:
    if isinstance(module, OdeNet):
        prefix = f"{name}." if name else ""
        return module.spec.along, places(module.spec, prefix)
    blocks = list(module.blocks) if isinstance(module, ResidualStack | ConvertedRun) else [module.field]
    layers = tuple(
        {key: (names[id(p)], None) for key, p in block.named_parameters() if id(p) in names} for block in blocks
    )
    return (module.along if isinstance(module, ResidualStack | ConvertedRun) else "shared"), layers


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """On the host; half precision, which NumPy has not, as float32."""
    plain = tensor.detach().cpu()
    return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()


def coarsest(named: Mapping[str, torch.Tensor]) -> str:
    """The coarsest number type among these, by name."""
    kind = max((p.dtype for p in named.values()), key=lambda dtype: torch.finfo(dtype).eps)
    return str(kind).removeprefix("torch.")
