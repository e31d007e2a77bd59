"""`convert`: layers inside a model that somebody else wrote are trained by a gradient method of this library.

Over 250 lines: `convert` and `unconvert` with whole signatures, and the checks between them, in their order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from odenet import (
    Auto,
    Backprop,
    Checkpoint,
    ConversionError,
    DiscreteAdjoint,
    Gradient,
    GradientName,
    InputError,
    SolverName,
    UnsupportedError,
)
from odenet.kit import AnySolver, Compile, compiling, instance, within
from odenet.kit import gradient as gradient_named
from odenet.kit import solver as solver_named
from odenet_torch.conversion.attached import Attached, attach, detach
from odenet_torch.conversion.calls import check_unchanged, outputs
from odenet_torch.conversion.converted import FirstOfRun, RestOfRun
from odenet_torch.conversion.layer import written_to
from odenet_torch.conversion.layer_run import LayerRun, layerwise, rounds
from odenet_torch.conversion.measured import MeasuredError
from odenet_torch.conversion.planned import take_fastest
from odenet_torch.conversion.repeatable import has_kinks, require_repeatable
from odenet_torch.conversion.runs import Place, Run, runs_of
from odenet_torch.conversion.selection import selection
from odenet_torch.field.knowledge import KEY
from odenet_torch.field.surroundings import no_trace
from odenet_torch.field.written_on import writes

Model = TypeVar("Model", bound=nn.Module)
_Entries = list[tuple[Place, FirstOfRun | RestOfRun]]


def convert(
    model: Model,
    where: str | None = None,
    *,
    example: Any,
    solver: SolverName | AnySolver = "euler",
    gradient: GradientName | Gradient = "checkpoint",
    along: str = "piecewise",
    tolerance: float = 1e-6,
    compile: Compile = False,
) -> Model:
    """Train layers that somebody else wrote by a gradient method of this library; the model's function stays.

    With Euler's method, "backprop", "checkpoint" (also with bits) and "discrete-adjoint", each layer goes on computing
    its own output by its own code, and only its gradient is taken in another way. Hooks, loops that stop early,
    features from the middle, losses beside the state and attributes that change are as in the plain model, and get
    their gradients.

    - "checkpoint" (exact) takes any layers in an `nn.Sequential`, `nn.ModuleList` or `nn.ModuleDict`, but for single
      operations of torch's: blocks of every kind, residual or not.
    - "discrete-adjoint" takes runs of two or more layers in a row that return their input plus something of the same
      shape. The layers of a run share `layer.odenet_run`, whose `certificate` tells about the last pass. A layer
      `x1 = x + g1(x)`, `x2 = x1 + g2(x1)`, such as a pre-norm transformer's, is inverted in two steps of h = 1.

    - "auto" measures backprop and checkpoint on the example and takes the faster one that fits `memory=` (bytes of the
      model's forward and backward pass; give an example of the size of a training batch). If neither does, residual
      layers are rebuilt as by a `ResidualStack` with `gradient="auto"`, which audits itself.

    Other gradient methods, options and solvers are those of a `ResidualStack`: the first layer of a run computes all of
    it (its attribute `stack`), and the others return their input; hidden states between the layers do not exist then,
    and reading one is refused.

    The model is changed in place and returned. Parameters are the same objects under the same names: optimizers,
    `state_dict` and the plain model's checkpoints fit. `odenet.unconvert` undoes it.

    Before it returns, the model runs on the example as it was and as it is, in evaluation and in training, with the
    same random numbers; buffers are put back. Where outputs differ, the model is left as it was.

    Args:
        model: any module.
        where: the name of a submodule to look in, such as `"layer3"` or `"encoder.layers"`; None looks everywhere.
        example: what to call the model with: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. A small batch does.
        solver: "euler" is the model itself. Another one makes another network of the same weights.
        gradient: a name or record. The default is exact for any layers. "discrete-adjoint" keeps one state, but with
            h = 1 may be far off, as the certificate says.
        along: as for `ResidualStack`.
        tolerance: the largest difference of an output, relative to its largest entry; in number types coarser than
            float32, 8 roundings if that is more.
        compile: False. Layers run by their own code, which no graph of steps holds; `torch.compile` of their children,
            or of the converted model, works.

    Returns:
        The model.

    Raises:
        ConversionError: no such submodule; no layers that can be converted, with reasons (an activation or norm after
            the addition, another shape, a projection on the shortcut ...); outputs that differ. UnsupportedError: a
            gradient that the solver does not go with, or `compile`.
    """
    if compiling(compile) is not None:
        raise UnsupportedError(
            "compile of converted layers, which run by their own code",
            "compile=False; ResidualStack, NeuralODE and solve compile their steps",
            "call torch.compile on the children of the layers, or on the converted model",
        )
    if not isinstance(model, nn.Module):
        raise InputError(f"a model that is a {type(model).__name__}", "a torch.nn.Module")
    within("tolerance", tolerance, 0.0, of="convert")
    if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
        raise ConversionError(
            "a model with lazy layers, whose parameters its first call makes",
            "models that have their parameters",
            "call the model once on a batch, and then convert it",
        )
    for name, value in (("where", where), ("along", along)):
        instance(name, value, (str, type(None)), "a text, or None")
    method, choices = gradient_named(gradient), {"solver": solver, "gradient": gradient, "along": along}
    itself = solver_named(solver).label == "euler" and along == "piecewise"
    flags = [(module, module.training) for module in model.modules()]
    # layers that initialise themselves by the first batch that they see are to see it in training
    trained = [(p, writes(p), p.detach().clone()) for p in model.parameters() if p.requires_grad]
    try:
        if itself and isinstance(method, Auto):
            _choose(model, where, example, method, tolerance, choices)
        elif itself and layerwise(method):
            _attach(model, where, example, method, tolerance)
        else:
            _replace(model, where, example, tolerance, choices)
    finally:
        for module, flag in flags:
            module.training = flag
        with torch.no_grad():
            for parameter, before, value in trained:
                if writes(parameter) != before:
                    parameter.copy_(value)
    return model


def unconvert(model: Model) -> Model:
    """The model with its own layers again, in place: the same parameters, as they are trained by now.

    Args:
        model: one that was converted, or parts of which were.

    Returns:
        The model. One that was not converted is left as it is.

    Raises:
        ConversionError: a layer whose class was changed since, as by FSDP.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model that is a {type(model).__name__}", "a torch.nn.Module")
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, Attached):
            detach(module)
    for module in modules:
        for key, child in module._modules.items():
            if isinstance(child, FirstOfRun | RestOfRun):
                child.layer.module.train(child.training)
                module._modules[key] = child.layer.module
    for module in model.modules():
        vars(module).pop(KEY, None)
    return model


def _choose(
    model: nn.Module, where: str | None, example: Any, auto: Auto, tolerance: float, choices: dict[str, Any]
) -> None:
    """The fastest exact method that fits; where none does, residual runs that are rebuilt and audited."""
    if auto.method is not None:  # as it was chosen before, and audited if it is not exact
        if auto.method in (Backprop(), Checkpoint()):
            _attach(model, where, example, auto.method, tolerance)
        else:
            _replace(model, where, example, tolerance, choices)
        return
    runs = _attach(model, where, example, Checkpoint(), tolerance)
    try:
        take_fastest(model, example, runs, auto)
    except BaseException as too_much:
        unconvert(model)
        if auto.memory is None or not isinstance(too_much, InputError):
            raise
        try:
            _replace(model, where, example, tolerance, choices)
        except InputError as refused:
            reason = f"where states are rebuilt, which needs less: {refused.given}"
            raise InputError(f"{too_much.given}; {reason}", too_much.allowed, too_much.remedy) from refused


def _attach(model: nn.Module, where: str | None, example: Any, gradient: Gradient, tolerance: float) -> list[LayerRun]:
    """Let each layer's own forward pass be recorded."""
    residual = isinstance(gradient, DiscreteAdjoint)
    with torch.no_grad(), no_trace([model]):
        runs = selection(model, where, example, tolerance, residual=residual)
        complete = residual or rounds(gradient)  # which read a layer's weights before it runs
        expected = [outputs(model, example, training, complete=complete) for training in (False, True)]
        for run in runs:
            for layer in run:
                if gradient != Backprop() and not written_to(layer.calls[0].arguments):
                    require_repeatable(layer.module, layer.calls[0])
                    if residual:
                        layer.kinked = has_kinks(layer.module, layer.calls[0])
    once = any(written_to(call.arguments) for run in runs for layer in run for call in layer.calls)
    attached: dict[int, nn.Module] = {}  # one may stand at several places
    measured = MeasuredError()
    shared = [LayerRun(gradient, sum(layer.steps for layer in run), tolerance, run[0].why, measured) for run in runs]
    for run, layer_run in zip(runs, shared, strict=True):
        for layer in run:
            if id(layer.module) not in attached:
                attach(layer.module, layer_run, layer.ways())
                attached[id(layer.module)] = layer.module
    try:
        for training in (False, True):
            after = outputs(model, example, training, recorded=not once)
            subject = f"the model in {'training' if training else 'evaluation'}"
            check_unchanged(expected[training], after, subject, tolerance)
    except BaseException:
        for module in attached.values():
            detach(module)
        raise
    for module in attached.values():
        vars(module)["_odenet_ways"].calls = 0  # those were not of a training
    return shared


def _replace(model: nn.Module, where: str | None, example: Any, tolerance: float, choices: dict[str, Any]) -> None:
    """Let the first layer of each run compute all of it."""
    exact = {"tolerance": tolerance}
    itself = solver_named(choices["solver"]).label == "euler"
    with torch.no_grad(), no_trace([model]):
        runs = runs_of(model, where, example, tolerance)
        entries = _entries(runs, exact | choices)
        expected = [outputs(model, example, training) for training in (False, True)]
        with _replaced(entries if itself else _entries(runs, exact)):
            for training in (False, True):
                subject = f"the model in {'training' if training else 'evaluation'}"
                check_unchanged(expected[training], outputs(model, example, training), subject, tolerance)
        if not itself:
            with _replaced(entries):
                outputs(model, example, training=False)
    for place, entry in entries:
        place.put(entry)


def _entries(runs: Sequence[Run], choices: dict[str, Any]) -> _Entries:
    """What will stand in the places of the layers."""
    entries: _Entries = []
    for run in runs:
        first = FirstOfRun([member.layer for member in run], run[0].call.arguments, **choices)
        entries.append((run[0].place, first))
        entries += [(run[index].place, RestOfRun(run[index].layer, first, index)) for index in range(1, len(run))]
    return entries


@contextlib.contextmanager
def _replaced(entries: _Entries) -> Iterator[None]:
    """Inside, these modules stand in the places of the layers."""
    for place, entry in entries:
        place.put(entry)
    try:
        yield
    finally:
        for place, entry in entries:
            place.put(entry.layer.module)
