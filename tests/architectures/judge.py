"""What a gradient method did to a network: right, said with its number, refused, or wrong in silence.

The gradient of a random functional of all outputs, by all parameters and all inputs of real numbers, is held against
that of plain autograd on a copy of the model. Two errors are taken, both relative and Euclidean: `error` of the whole
gradient, all tensors together, and `worst`, the largest of one tensor (of those that hold at least a thousandth of the
whole gradient: of less, nothing but rounding may be left). Where the first is over what the method promises, a
warning has to say a number between a third of the first and three times the second.
"""

from __future__ import annotations

import copy
import functools
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
from odenet_torch.verbs.examine import solved

Verdict = Literal["right", "said", "refused", "said wrongly", "wrong in silence", "crashed"]
State = Literal["start", "trained"]
LIMITED, BEGUN = "auto, little memory", "auto, begun with discrete-adjoint"
"""`auto` with a limit that exact methods by layers do not meet (see `limit`), and with a method that is not exact."""
METHODS = ("checkpoint", "checkpoint:bits=8", "discrete-adjoint", "auto", LIMITED, BEGUN)
STATES: tuple[State, ...] = ("start", "trained")
PROMISED = {"checkpoint": 1e-6, "checkpoint:bits=8": 0.1, "discrete-adjoint": 0.1}
PROMISED |= dict.fromkeys(("auto", LIMITED, BEGUN), 1e-2)
"""The error of the whole gradient that a method promises where it says nothing: rounding for what is exact, the
tolerance for `auto`, and for the others the certificate that a `GradientWarning` is given above."""
FACTOR = 3.0  # between the number that a warning says and the true errors
PASSES = dict.fromkeys(
    ("auto", LIMITED, BEGUN), 4
)  # it plans in the first pass, audits itself in the second and third, and these are exact
STEPS, RATE = 20, 3e-3  # of Adam, to the trained state
_SMALL = 1e-3  # of the whole gradient


@dataclass(frozen=True)
class Judgement:
    """The gradient of one network by one method, beside that of plain autograd."""

    network: str
    state: State
    method: str
    verdict: Verdict
    error: float = math.nan  # of the whole gradient
    worst: float = math.nan  # of one tensor
    said: float = math.nan  # the largest number in a warning
    reason: str = ""


def judged(network: str, state: State, method: str) -> Judgement:
    """Convert a copy of a network, and compare its loss and gradient with the network's own."""
    model, batch, expected_value, expected = exactly(network, state)
    own = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        try:
            convert(own, example=batch, gradient=_gradient(method, network))
            value, gradient = loss_and_gradient(own, batch, PASSES.get(method, 2))
        except odenet.OdenetError as error:
            return Judgement(network, state, method, "refused", reason=f"{type(error).__name__}: {error}"[:400])
        except Exception as error:
            return Judgement(network, state, method, "crashed", reason=f"{type(error).__name__}: {error}"[:400])
    error, worst = differences(gradient, expected)
    if not abs(value - expected_value) <= 1e-5 * max(abs(expected_value), 1e-3):
        error = math.inf  # another function
    numbers = [w.message.certificate for w in record if isinstance(w.message, odenet.GradientWarning)]
    said = math.nan if any(number != number for number in numbers) else max(numbers, default=math.nan)
    return Judgement(network, state, method, verdict(method, error, worst, said), error, worst, said)


def _gradient(method: str, network: str) -> str | odenet.Auto:
    if method == LIMITED:
        return odenet.Auto(PROMISED[method], memory=limit(network))
    return odenet.Auto(PROMISED[method], method=odenet.DiscreteAdjoint()) if method == BEGUN else method


@functools.cache
def limit(network: str) -> int:
    """Bytes: half of plain autograd's, or one less than the exact methods by layers need where that is less."""
    model, batch = made(network, "start")
    convert(model, example=batch, gradient="auto")
    profiles = next(iter(solved(model).values())).plan.profiles
    peaks = {profile.gradient: profile.peak_bytes for profile in profiles}
    return min(peaks[odenet.Backprop()] // 2, min(peaks.values()) - 1)


def verdict(method: str, error: float, worst: float, said: float) -> Verdict:
    """Of a gradient with these errors, and the number that a warning said; NaN where none did."""
    if error <= PROMISED[method]:
        return "right"
    if said != said:
        return "wrong in silence"
    # more than all of the gradient is as much as all of it: a `UselessGradientWarning` says no more than that
    low, high = min(error, 1.0) / FACTOR, min(worst, 1.0) * FACTOR
    return "said" if low <= min(said, 1.0) <= high else "said wrongly"


@functools.cache
def exactly(network: str, state: State) -> tuple[nn.Module, Batch, float, dict[str, Tensor]]:
    """A network with its batch, and its loss and gradient by plain autograd."""
    model, batch = made(network, state)
    return model, batch, *loss_and_gradient(model, batch)


def made(network: str, state: State) -> tuple[nn.Module, Batch]:
    """A network at its start, or after some steps of training by plain autograd."""
    torch.manual_seed(0)
    model, batch = CATALOGUE[network]()
    model.train()
    if state == "trained":
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        for _ in range(STEPS):
            optimizer.zero_grad()
            functional(call(model, batch)).backward()
            optimizer.step()
        model.zero_grad()
    return model, batch


def loss_and_gradient(model: nn.Module, batch: Batch, passes: int = 2) -> tuple[float, dict[str, Tensor]]:
    """The last of several passes, all on the same: what a first call leaves behind would show."""
    inputs: dict[str, Tensor] = {}
    value = torch.zeros(())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(passes):
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        model.zero_grad()
        torch.manual_seed(1)
        named = dict(batch) if isinstance(batch, Mapping) else {str(i): x for i, x in enumerate(batch)}
        inputs = {key: x.clone().requires_grad_() for key, x in named.items() if _is_real(x)}
        named |= inputs
        value = functional(model(**named) if isinstance(batch, Mapping) else model(*named.values()))
        value.backward()
    tensors = {**dict(model.named_parameters()), **{f"input {key}": x for key, x in inputs.items()}}
    return float(value.detach()), {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in tensors.items()
    }


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


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


def differences(gradient: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, float]:
    """The relative error of the whole gradient, and the largest of one tensor."""
    sizes = {name: float(value.double().norm()) for name, value in expected.items()}
    defects = {name: float((gradient[name] - value).double().norm()) for name, value in expected.items()}
    if not all(map(math.isfinite, defects.values())):
        return math.inf, math.inf
    whole = math.hypot(*sizes.values())
    each = [defects[name] / size for name, size in sizes.items() if size > _SMALL * whole]
    return math.hypot(*defects.values()) / whole, max(each, default=0.0)


def difference(gradient: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The relative error of the whole gradient."""
    return differences(gradient, expected)[0]
