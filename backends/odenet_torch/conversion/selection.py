"""Which layers of a model are converted: those that stand in a container and run when the model runs on an example.

Any layer can be run again, so that the exact methods take blocks of every kind. What is rebuilt backward has to be a
run of residual layers, each called with the state that the one before it returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from odenet import ConversionError, InputError
from odenet_torch.conversion.attached import Attached
from odenet_torch.conversion.call_modes import CallMode, CallModes
from odenet_torch.conversion.calls import Call, calls
from odenet_torch.conversion.repeatable import alone
from odenet_torch.conversion.residual import Modes, residual_branches
from odenet_torch.conversion.runs import CONTAINERS, no_run, refuse_torchscript, submodule
from odenet_torch.conversion.sums import in_place

_LISTS = (*CONTAINERS, nn.ModuleDict)


@dataclass
class Selected:
    """A layer that is to be converted.

    Args:
        name: in the model.
        module: it.
        calls: of it, on the example.
        why: why it cannot be undone; None where it can.
        branches: of one that can.
        kinked: see `CallModes`.
    """

    name: str
    module: nn.Module
    calls: list[Call]
    why: InputError | None = None
    branches: Modes = field(default_factory=dict)
    kinked: bool = False

    @property
    def steps(self) -> int:
        """The number of steps that the layer takes."""
        return max(1, len(self.branches.get(True, ())))

    def ways(self) -> CallModes:
        """Its branches, called as on the example."""
        ways = CallModes(self.name, self.kinked)
        for mode, branches in self.branches.items():
            ways.add(self.module, mode, self.calls[0].arguments, CallMode(branches, fresh=False))
        return ways


def selection(
    model: nn.Module, where: str | None, example: Any, tolerance: float, residual: bool
) -> list[list[Selected]]:
    """The layers that are converted together, in runs.

    Args:
        model, where, example, tolerance: as for `convert`.
        residual: whether only residual layers in a row are wanted; else any.

    Raises:
        ConversionError: no such submodule, or no such layers: the reasons.
    """
    lists = [
        (name, module)
        for name, module in submodule(model, where).named_modules(prefix=where or "")
        if isinstance(module, _LISTS) and len(module) > residual  # one layer that is called in turn keeps its states
    ]
    modules = [child for _, container in lists for child in container.children()]
    refuse_torchscript(modules)
    by_module = calls(model, modules, example)
    reasons: list[InputError] = []
    selected: list[list[Selected]] = []
    inside: set[int] = set()
    groups = [(container, list(_blocks(name, container, by_module, reasons))) for name, container in lists]
    for container, layers in groups if residual else _levels(groups):
        if id(container) in inside:
            continue
        layers = [layer for layer in layers if residual or not _holds(layer.module, inside)]
        for layer in layers:
            _judge(layer, tolerance)
        runs = _runs(layers)
        chosen = [run for run in runs if not residual or (len(run) > 1 and run[0].why is None)]
        if residual:
            reasons += [layer.why for run in runs for layer in run if layer.why is not None]
            reasons += [InputError(f"{run[0].name} is residual, and alone") for run in runs if len(run) == 1]
        selected += chosen
        inside |= {id(module) for run in chosen for layer in run for module in layer.module.modules()}
    if not selected:
        raise no_run(where, reasons, residual)
    return selected


def _blocks(
    name: str, container: nn.Module, by_module: dict[int, list[Call]], reasons: list[InputError]
) -> Iterator[Selected]:
    """The layers of a container that run, and that are made of several operations."""
    for key, child in container._modules.items():
        if child is None or _is_operation(child):
            continue
        place, made_calls = f"{name}.{key}" if name else key, by_module[id(child)]
        if isinstance(child, Attached):
            reasons.append(ConversionError(f"{place} is converted already", "", "take odenet.unconvert(model) before"))
        elif any(kind.__module__.startswith("torch.distributed") for kind in type(child).__mro__):
            reasons.append(
                ConversionError(
                    f"{type(child).__name__} ({place}) is sharded already", "", "convert before fully_shard"
                )
            )
        elif not made_calls:
            reasons.append(ConversionError(f"{type(child).__name__} ({place}) is not called on the example"))
        elif "forward" in vars(child):
            reasons.append(ConversionError(f"the forward of {type(child).__name__} ({place}) was replaced"))
        elif any(call.left[0] != call.written for call in made_calls):
            reasons.append(in_place(f"{type(child).__name__} ({place})"))
        else:
            yield Selected(place, child, made_calls)


def _is_operation(module: nn.Module) -> bool:
    """Whether a module is one operation of torch's, of which there is nothing to run again."""
    kind = type(module)
    return not module._modules and (kind.__module__.startswith("torch.") or kind is nn.Identity)


def _levels(groups: Sequence[tuple[nn.Module, list[Selected]]]) -> Iterable[tuple[nn.Module, list[Selected]]]:
    """Containers of blocks that keep the state's shape, outermost first; then the others, innermost first."""
    first = [(container, layers) for container, layers in groups if _keep(layers)]
    others = [(container, layers) for container, layers in reversed(groups) if not _keep(layers) and len(layers) > 1]
    return (*first, *others)


def _keep(layers: Sequence[Selected]) -> bool:
    """Whether two layers in a row keep the shape of their state; or one that is called in a row, as ALBERT's."""
    pairs = itertools.pairwise(layers) if len(layers) > 1 else [(layer, layer) for layer in layers]
    return any(_follows(one, other) and _keeps(one) and _keeps(other) for one, other in pairs)


def _keeps(layer: Selected) -> bool:
    x, state = layer.calls[0].x, layer.calls[0].state
    return isinstance(x, Tensor) and isinstance(state, Tensor) and x.shape == state.shape


def _follows(one: Selected, other: Selected) -> bool:
    """Whether a layer is called with the state that another one has returned, as it was returned."""
    return any(
        after.x is before.state and after.written == before.left[1] for before in one.calls for after in other.calls
    )


def _holds(module: nn.Module, inside: set[int]) -> bool:
    return any(id(inner) in inside for inner in module.modules())


def _judge(layer: Selected, tolerance: float) -> None:
    try:
        with alone(layer.module):
            layer.branches = residual_branches(layer.module, layer.calls[0], tolerance)
    except InputError as error:
        # without its traceback, whose frames hold the example's activations, and would for the life of the model
        layer.why = type(error)(error.given, error.allowed, error.remedy)


def _runs(layers: Sequence[Selected]) -> list[list[Selected]]:
    """Residual layers in a row, and what stands between such runs."""
    runs: list[list[Selected]] = []
    for layer in layers:
        last = runs[-1][-1] if runs else None
        same = last is not None and (last.why is None) == (layer.why is None)
        if last is None or not same or (layer.why is None and not _follows(last, layer)):
            runs.append([])
        runs[-1].append(layer)
    return runs
