"""Runs of residual layers in a row, found in the containers of a model while it runs on an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odenet import ConversionError, InputError
from odenet.kit import shown
from odenet_torch.conversion.branches import PLAIN
from odenet_torch.conversion.calls import Call, calls, leaving_no_trace
from odenet_torch.conversion.converted import FirstOfRun, RestOfRun
from odenet_torch.conversion.layer import Layer, marks, same
from odenet_torch.conversion.sums import in_place

_LISTED = 6
CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Place:
    """The place of a layer in its container."""

    container: nn.Module
    key: str
    name: str

    def put(self, module: nn.Module) -> None:
        """Let a module stand here."""
        self.container.register_module(self.key, module)


@dataclass(frozen=True)
class Member:
    """A layer: where it stands, and the call that it was seen in."""

    place: Place
    layer: Layer
    call: Call


Run = list[Member]


def runs_of(model: nn.Module, where: str | None, example: Any, tolerance: float) -> list[Run]:
    """Runs of two or more layers, outermost first.

    Args:
        model, where, example, tolerance: as for `convert`.

    Raises:
        InputError: no such submodule, or no run: the reasons.
    """
    containers = [
        (name, module)
        for name, module in submodule(model, where).named_modules(prefix=where or "")
        if isinstance(module, CONTAINERS) and len(module) > 1
    ]
    layers = [child for _, container in containers for child in container]
    refuse_torchscript(layers)
    by_module = calls(model, layers, example)
    runs: list[Run] = []
    reasons: list[InputError] = []
    inside: set[int] = set()
    for name, container in containers:
        if id(container) in inside:
            continue
        for run in _in_a_row(_members(name, container, by_module, reasons, tolerance), reasons):
            runs.append(run)
            inside |= {id(module) for member in run for module in member.layer.module.modules()}
    if not runs:
        raise no_run(where, reasons, residual=True)
    return runs


def no_run(where: str | None, reasons: list[InputError], residual: bool) -> ConversionError:
    """The error for a model without layers that could be converted."""
    texts = list(dict.fromkeys(str(reason.given) for reason in reasons))
    listed = "; ".join(texts[:_LISTED]) + (f"; and {len(texts) - _LISTED} more" if texts[_LISTED:] else "")
    remedies = [reason.remedy for reason in reasons if reason.remedy]
    layers = "two residual layers in a row" if residual else "two layers of several operations each"
    return ConversionError(
        f"no {layers} in {where or 'the model'} ({listed or 'no container of two layers'})",
        "an nn.Sequential or nn.ModuleList with layers x -> x + f(x) one after the other, which keep the shape and "
        "end with the addition"
        if residual
        else "an nn.Sequential, nn.ModuleList or nn.ModuleDict of two or more blocks that the model calls, or of one "
        "that it calls in turn",
        remedies[0]
        if remedies
        else "name another submodule with where="
        + ("; or take gradient='checkpoint', for any layers" if residual else ""),
    )


def refuse_torchscript(layers: Iterable[nn.Module]) -> None:
    """Raises ConversionError where a part of a layer is compiled by torch.jit: where its tensors stand is not Python's
    to say."""
    for layer in layers:
        parts = [name for name, inner in layer.named_modules() if name and isinstance(inner, torch.jit.ScriptModule)]
        if parts and not isinstance(layer, torch.jit.ScriptModule):
            raise ConversionError(
                f"{parts[0]} of {type(layer).__name__} is compiled by torch.jit (script or trace)",
                "layers in Python",
                "leave torch.jit out, or build the network from its blocks with ResidualStack",
            )


def submodule(model: nn.Module, where: str | None) -> nn.Module:
    """The part of a model that is looked through."""
    try:
        return model.get_submodule(where or "")
    except AttributeError:
        known = [name for name, module in model.named_modules() if isinstance(module, CONTAINERS) and name]
        raise ConversionError(
            f"where={shown(where)}, which the model does not have",
            f"names of submodules; its containers are {', '.join(known[:12]) or '(none)'}",
        ) from None


def _members(
    name: str, container: nn.Module, by_module: dict[int, list[Call]], reasons: list[InputError], tolerance: float
) -> Iterator[Member | None]:
    """The layers of a container in order; None for one that is not residual."""
    times = [id(child) for child in container._modules.values()]
    for index, (key, child) in enumerate(container._modules.items()):
        if child is None:
            continue
        place, made_calls = Place(container, key, f"{name}.{key}" if name else key), by_module[id(child)]
        try:
            if len(made_calls) != times.count(id(child)):
                raise InputError(
                    f"{type(child).__name__} ({place.name}) is called {len(made_calls)} times on the example"
                )
            call = made_calls[times[:index].count(id(child))]
            _check(child, call)
            with leaving_no_trace([child]):
                layer = Layer(child, call.x, call.arguments, call.state, call.tail, tolerance)
            yield Member(place, layer, call)
        except InputError as error:
            reasons.append(error)
            yield None


def _check(module: nn.Module, call: Call) -> None:
    """What a layer of a run must be, beside a sum.

    Raises:
        InputError: the reason why it is not.
    """
    x, state, name = call.x, call.state, type(module).__name__
    if isinstance(module, FirstOfRun | RestOfRun):
        raise InputError(f"{type(module.layer.module).__name__} is converted already")
    if not isinstance(x, Tensor) or not isinstance(state, Tensor) or not x.is_floating_point():
        raise InputError(f"{name} takes a {type(x).__name__} and returns a {type(call.output).__name__}, not a state")
    if x.shape != state.shape or x.dtype != state.dtype:
        raise InputError(f"{name} changes the state from {_kind(x)} to {_kind(state)}")
    if any(value is not None and type(value) not in PLAIN for value in call.tail or ()):
        raise InputError(f"{name} returns more than its state")
    if call.left[0] != call.written:
        raise in_place(name)
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        raise InputError(f"{name} has hooks, which would not be called any more")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _in_a_row(members: Iterator[Member | None], reasons: list[InputError]) -> list[Run]:
    """The members in runs, cut where the model does something between two; only runs of two or more."""
    runs: list[Run] = [[]]
    for member in members:
        if member is None:
            runs.append([])
            continue
        before = runs[-1][-1].call if runs[-1] else None
        if before is not None and (why := _apart(before, member.call)):
            reasons.append(InputError(f"{member.place.name} {why}"))
            runs.append([])
        runs[-1].append(member)
    reasons += [InputError(f"{run[0].place.name} is residual, and alone") for run in runs if len(run) == 1]
    return [run for run in runs if len(run) > 1]


def _apart(one: Call, other: Call) -> str | None:
    """Why two calls do not follow each other."""
    if other.x is not one.state or other.written != one.left[1]:
        return "gets another state than the layer before it returned"
    if not same(marks(one.arguments), marks(other.arguments)):
        return "is called with other arguments than the layer before it"
    return None
