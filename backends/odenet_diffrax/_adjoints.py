"""diffrax's adjoint for each of odenet's gradient methods.

With equal steps a `Way` of diffrax is `(problem, layers, count, length, time)`, for one layer of `count` steps; with
tolerances `(problem, norm, controller)`, where `controller(norm, rtol=, atol=)` is that of the backward solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import jax.numpy as jnp
import optimistix

from odenet import Checkpoint, ContinuousAdjoint, Problem, UnsupportedError

Controller = Callable[..., diffrax.AbstractStepSizeController[Any, Any]]


def backprop_fixed(problem: Problem, layers: int, count: int, length: float, time: Any) -> diffrax.AbstractAdjoint:
    """A state a step is kept."""
    return diffrax.RecursiveCheckpointAdjoint(count)


def backprop_adaptive(problem: Problem, norm: Callable[[Any], Any], controller: Controller) -> diffrax.AbstractAdjoint:
    """The default number of states, since memory would follow `max_steps`."""
    return diffrax.RecursiveCheckpointAdjoint()


def checkpoint_fixed(problem: Problem, layers: int, count: int, length: float, time: Any) -> diffrax.AbstractAdjoint:
    """The adjoint of diffrax that keeps as many states as are asked for."""
    assert isinstance(problem.gradient, Checkpoint)
    states = problem.gradient.states
    if states is not None and layers > 1:
        raise UnsupportedError(
            f"{problem.gradient.label} with weights along depth on backend diffrax: a state of each layer is kept",
            "shared weights, or checkpoint without states",
            "take backend='jax'",
        )
    return diffrax.RecursiveCheckpointAdjoint(count if states is None else min(states, count))


def checkpoint_adaptive(
    problem: Problem, norm: Callable[[Any], Any], controller: Controller
) -> diffrax.AbstractAdjoint:
    """As many states as are asked for, by default as many as diffrax takes."""
    assert isinstance(problem.gradient, Checkpoint)
    return diffrax.RecursiveCheckpointAdjoint(problem.gradient.states)


def backsolve_fixed(problem: Problem, layers: int, count: int, length: float, time: Any) -> diffrax.AbstractAdjoint:
    """The continuous adjoint."""
    assert isinstance(problem.gradient, ContinuousAdjoint)
    steps = problem.gradient.steps
    back = count if steps is None else steps // layers
    # within diffrax times increase, whatever ours do; between two kept times, whose difference is rounded, it
    # would otherwise now and then take a step too many
    size = abs(length) / back * (1 + 4 * count * float(jnp.finfo(time).eps))
    return diffrax.BacksolveAdjoint(dt0=-size, max_steps=back)


def backsolve_adaptive(problem: Problem, norm: Callable[[Any], Any], controller: Controller) -> diffrax.AbstractAdjoint:
    """The continuous adjoint, with tolerances of its own."""
    method = problem.gradient
    assert isinstance(method, ContinuousAdjoint)
    both = _seminorm(norm) if method.seminorm else norm
    return diffrax.BacksolveAdjoint(stepsize_controller=controller(both, rtol=method.rtol, atol=method.atol))


def _seminorm(norm: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of y and its adjoint alone (`diffrax.adjoint_rms_seminorm` where the norm is theirs)."""
    if norm is optimistix.rms_norm:
        return diffrax.adjoint_rms_seminorm
    return lambda aug: jnp.maximum(norm(aug[0]), norm(aug[1]))
