"""Time, memory and error of gradient methods, one after the other, on the same pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import Gradient, OdenetError, Profile
from odenet.kit import seconds
from odenet_torch.field.live_bytes import TooMuch, finished, peak_bytes

Groups = Mapping[str, Sequence[Tensor | None]]
"""Gradients by what they belong to; None is zero."""
GradientOf = Callable[[Gradient], tuple[Groups, float | None]]
"""Runs forward and back by a method: the gradients, and the certificate where there is one."""
_BUDGET = 0.1
"""Seconds of timing for each method, after which no further round begins."""
_FAILURES = (OdenetError, RuntimeError, MemoryError)


def profiles(
    methods: Sequence[Gradient],
    gradient_of: GradientOf,
    exact: Groups,
    device: torch.device,
    *,
    memory: int | None = None,
    repeats: int = 3,
) -> tuple[tuple[Profile, ...], str]:
    """A row a method, and how bytes were counted.

    Args:
        methods: what to run.
        gradient_of: runs one.
        exact: what it is compared with; where it is not `measurable`, rows have no error.
        device: of the tensors.
        memory: bytes; see `Backend.profile`.
        repeats: rounds of timing; 0 leaves time and memory out.
    """
    rows: dict[Gradient, dict[str, Any]] = {}
    counted, known = "", measurable(exact)
    for method in methods:
        run = _GradientRun(method, gradient_of)
        row: dict[str, Any] = {}
        rows[method] = row
        try:
            if repeats:
                row["peak_bytes"], counted = peak_bytes(run, device, memory)
            else:
                run()
        except TooMuch as error:
            row.update(peak_bytes=error.size, trouble=f"it was stopped where it had taken {error.size} bytes")
            continue
        except _FAILURES as error:
            text = str(error) if isinstance(error, OdenetError) else f"{type(error).__name__}: {error}"
            row["trouble"] = text.partition("\n")[0]
            continue
        gradient, row["certificate"] = run.result
        row["gradient_error"] = off(gradient, exact) if known else None
        del gradient, run
    ran = [method for method, row in rows.items() if "trouble" not in row]
    if repeats and ran:
        again = [finished(lambda m=method: gradient_of(m), device) for method in ran]
        for method, duration in zip(ran, seconds(again, repeats, _BUDGET * len(ran)), strict=True):
            rows[method]["seconds"] = duration
    return tuple(Profile(method, **row) for method, row in rows.items()), counted


class _GradientRun:
    """One run, and what it found."""

    def __init__(self, method: Gradient, gradient_of: GradientOf) -> None:
        self.method, self.gradient_of = method, gradient_of

    def __call__(self) -> None:
        self.result = self.gradient_of(self.method)


def measurable(exact: Groups) -> bool:
    """Whether the exact gradient is finite and not zero, so that an error relative to it says something."""
    size = math.hypot(*(_norm(tensors) for tensors in exact.values()))
    return math.isfinite(size) and size > 0


def off(gradient: Groups, exact: Groups) -> float:
    """The relative error of a gradient: the largest over groups; of a group that is zero, relative to all of them."""
    size_of_all = math.hypot(*(_norm(tensors) for tensors in exact.values()))
    errors = [0.0]
    for name, truth in exact.items():
        size, defect = _norm(truth), _norm([_minus(g, r) for g, r in zip(gradient[name], truth, strict=True)])
        errors.append(defect / (size or size_of_all) if defect else 0.0)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _minus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one - other


def _norm(tensors: Sequence[Tensor | None]) -> float:
    """Euclidean, over all of them; half precision in float32, where squares do not vanish."""
    norms = [
        torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
        for g in tensors
        if g is not None and g.numel()
    ]
    return math.hypot(*torch.stack([norm.double() for norm in norms]).tolist()) if norms else 0.0
