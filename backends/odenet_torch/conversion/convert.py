"""`convert`: runs of residual layers inside a model that somebody else wrote become residual stacks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from odenet import Gradient
from odenet.kit import AnySolver
from odenet.kit import solver as solver_named
from odenet_torch.conversion.calls import check_unchanged, outputs
from odenet_torch.conversion.converted import FirstOfRun, RestOfRun
from odenet_torch.conversion.runs import Place, Run, runs_of
from odenet_torch.field.surroundings import no_trace

Model = TypeVar("Model", bound=nn.Module)
_Entries = list[tuple[Place, FirstOfRun | RestOfRun]]


def convert(
    model: Model,
    where: str | None = None,
    *,
    example: Any,
    solver: str | AnySolver = "euler",
    gradient: str | Gradient = "checkpoint",
    along: str = "piecewise",
    tolerance: float = 1e-6,
) -> Model:
    """Train a residual network that somebody else wrote by a gradient method of this library; its function stays.

    In each `nn.Sequential` or `nn.ModuleList`, every run of two or more layers in a row that return their input plus
    something of the same shape becomes one `ResidualStack` with h = 1. A layer `x1 = x + g1(x)`, `x2 = x1 + g2(x1)`,
    such as a pre-norm transformer's, is two steps. The first layer of a run computes all of it (its attribute `stack`
    is the `ResidualStack`, for statistics and the certificate) and the others hand the state on, so that the model's
    own loop works as before.

    The model is changed in place and returned. Parameters are the same objects under the same names: optimizers,
    `state_dict` and the plain model's checkpoints fit. In the places of the layers stand modules of other classes that
    have the layers' children and attributes. The model sees the run's last state after each of its layers: hidden
    states between them are not to be had.

    Before it returns, the model runs on the example as it was and as it is, in evaluation and in training, with the
    same random numbers; buffers are put back. Where outputs differ, the model is left as it was.

    Args:
        model: any module.
        where: the name of a submodule to look in, such as `"layer3"` or `"encoder.layers"`; None looks everywhere.
        example: what to call the model with: a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments. A small batch does.
        solver: "euler" is the model itself. Another one makes another network of the same weights.
        gradient: a name or record. The default is exact for any layers. "discrete-adjoint" keeps one state, but with
            h = 1 may be far off, as `stack.certificate` says.
        along: as for `ResidualStack`.
        tolerance: the largest difference of an output, relative to its largest entry; in number types coarser than
            float32, 8 roundings if that is more.

    Returns:
        The model.

    Raises:
        InputError: no such submodule; no run of two layers, with reasons (an activation or norm after the addition,
            another shape, a projection on the shortcut ...); outputs that differ. UnsupportedError: a gradient that the
            solver does not go with.
    """
    exact = {"tolerance": tolerance}
    choices = {**exact, "solver": solver, "gradient": gradient, "along": along}
    itself = solver_named(solver).label == "euler"
    flags = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), no_trace([model]):
            runs = runs_of(model, where, example, tolerance)
            entries = _entries(runs, choices)
            expected = [outputs(model, example, training) for training in (False, True)]
            with _replaced(entries if itself else _entries(runs, exact)):
                for training in (False, True):
                    what = f"the model in {'training' if training else 'evaluation'}"
                    check_unchanged(expected[training], outputs(model, example, training), what, tolerance)
            if not itself:
                with _replaced(entries):
                    outputs(model, example, training=False)
    finally:
        for module, flag in flags:
            module.training = flag
    for place, entry in entries:
        place.put(entry)
        entry.training = entry.layer.module.training
    return model


def _entries(runs: Sequence[Run], choices: dict[str, Any]) -> _Entries:
    """What will stand in the places of the layers."""
    made: _Entries = []
    for run in runs:
        first = FirstOfRun([member.layer for member in run], run[0].call.arguments, **choices)
        made.append((run[0].place, first))
        made += [(run[index].place, RestOfRun(run[index].layer, first, index)) for index in range(1, len(run))]
    return made


@contextlib.contextmanager
def _replaced(entries: _Entries) -> Iterator[None]:
    """With these in the places of the layers."""
    for place, entry in entries:
        place.put(entry)
    try:
        yield
    finally:
        for place, entry in entries:
            place.put(entry.layer.module)
