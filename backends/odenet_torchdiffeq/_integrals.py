"""torchdiffeq's function for each of odenet's gradient methods.

A `Way` of torchdiffeq makes `integrate(f, y0, times)` of a problem: with equal steps from `(problem, options, tensors,
between)`, with tolerances from `(problem, options, tensors)`. `options` are those of `odeint`, `tensors()` are all that
f reads, and `between` makes the grid of the backward solve between two times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torchdiffeq
from torch import Tensor

from odenet import ContinuousAdjoint, Problem

Integrate = Callable[..., Any]
Tensors = Callable[[], tuple[Tensor, ...]]


def backprop_fixed(problem: Problem, options: Mapping[str, Any], tensors: Tensors, between: Any) -> Integrate:
    """A solve that autograd differentiates through its steps."""
    return functools.partial(torchdiffeq.odeint, **options)


def backprop_adaptive(problem: Problem, options: Mapping[str, Any], tensors: Tensors) -> Integrate:
    """A solve that autograd differentiates through its steps."""
    return functools.partial(torchdiffeq.odeint, **options)


def adjoint_fixed(problem: Problem, options: Mapping[str, Any], tensors: Tensors, between: Any) -> Integrate:
    """The continuous adjoint."""
    return functools.partial(
        torchdiffeq.odeint_adjoint,
        **options,
        adjoint_params=tensors(),
        adjoint_options={"grid_constructor": between},
    )


def adjoint_adaptive(problem: Problem, options: Mapping[str, Any], tensors: Tensors) -> Integrate:
    """The continuous adjoint, with tolerances of its own."""
    method = problem.gradient
    assert isinstance(method, ContinuousAdjoint)
    back = {name: value for name, value in options["options"].items() if name not in ("norm", "first_step")}
    return functools.partial(
        torchdiffeq.odeint_adjoint,
        **options,
        adjoint_rtol=_scalar(options["rtol"], method.rtol),
        adjoint_atol=_scalar(options["atol"], method.atol),
        adjoint_options=back | ({"norm": "seminorm"} if method.seminorm else {}),
        adjoint_params=tensors(),
    )


def _scalar(forward: Any, own: float | None) -> Any:
    """The tolerance of the backward solve, whose state has other shapes."""
    if own is not None or isinstance(forward, (int, float)):
        return forward if own is None else own
    leaves: Sequence[Tensor] = (forward,) if isinstance(forward, Tensor) else forward
    return min(float(leaf.min()) for leaf in leaves)
