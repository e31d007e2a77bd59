"""What a gradient method did to a network: right, said with a number, refused, or wrong in silence."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from catalogue import CATALOGUE, Batch
from torch import Tensor, nn

import odenet
from odenet_torch import convert

Verdict = Literal["right", "said", "refused", "wrong in silence", "crashed"]
METHODS = ("checkpoint", "discrete-adjoint")
# The error that a method promises where it says nothing: rounding for what is exact, the tolerance of its default for
# `auto`, and for the others the least error that a `GradientWarning` is given for.
PROMISED = {"checkpoint": 1e-4, "checkpoint:bits=8": 0.1, "discrete-adjoint": 0.1, "auto": 1e-2}
FACTOR = 3.0  # between the number that a warning says and the true error
STEPS, RATE = 5, 3e-3  # of training before the judgement: zero-initialised branches give gradients by then


@dataclass(frozen=True)
class Judgement:
    """The gradient of one network by one method, beside that of plain autograd."""

    network: str
    method: str
    verdict: Verdict
    error: float = math.nan  # relative, over all parameters
    said: float = math.nan  # the largest number in a warning
    reason: str = ""


def judged(network: str, method: str) -> Judgement:
    """Train a network for some steps, convert a copy, and compare gradients of a random functional of all outputs."""
    model, batch = trained(network)
    own = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            convert(own, example=batch, gradient=method)
            value, gradient = loss_and_gradient(own, batch)
        except odenet.OdenetError as error:
            return Judgement(network, method, "refused", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        except Exception as error:
            return Judgement(network, method, "crashed", reason=f"{type(error).__name__}: {error}"[:300])
    expected_value, expected = loss_and_gradient(model, batch)
    error = max(difference(gradient, expected), abs(value - expected_value) / max(abs(expected_value), 1e-3))
    numbers = [number for entry in record for number in numbers_of(entry.message)]
    said = max(numbers, default=math.nan)
    if error <= PROMISED[method]:
        verdict: Verdict = "right"
    elif said >= error / FACTOR and (said <= error * FACTOR or said >= 0.5):
        verdict = "said"
    else:
        verdict = "wrong in silence"
    return Judgement(network, method, verdict, error, said)


def trained(network: str) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    model, batch = CATALOGUE[network]()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional(call(model, batch)).backward()
        optimizer.step()
    model.zero_grad()
    return model, batch


def loss_and_gradient(model: nn.Module, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The second of two passes: what a first call leaves behind would show."""
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(1)
        value = functional(call(model, batch))
        value.backward()
    return float(value), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
    }


def call(model: nn.Module, batch: Batch) -> Any:
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def functional(output: Any) -> Tensor:
    """A fixed random linear functional of each output plus its square, so that no part of it is blind."""
    total = torch.zeros(())
    for number, out in enumerate(tensors(output)):
        generator = torch.Generator().manual_seed(number)
        direction = torch.randn(out.shape, generator=generator)
        total = total + (direction * out).mean() + 0.1 * out.square().mean()
    return total


def tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.requires_grad:
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors(value)


def difference(gradient: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    square = sum(float((gradient[name] - expected[name]).double().square().sum()) for name in expected)
    scale = sum(float(value.double().square().sum()) for value in expected.values())
    return math.sqrt(square / scale) if math.isfinite(square) else math.inf


def numbers_of(message: Warning | str) -> list[float]:
    """What a warning of ours says of the error."""
    error = getattr(message, "error", None)
    return [float(error)] if error is not None else []
