"""diffrax's solver for each of our names, how often it evaluates f, and how a solve ended in our words; and its adjoint
for each of odenet's gradient methods.

With equal steps a `Way` of diffrax is `(problem, layers, count, length, time)`, for one layer of `count` steps; with
tolerances `(problem, norm, controller)`, where `controller(norm, rtol=, atol=)` is that of the backward solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import optimistix
from jax import Array
from jax.core import Tracer

from odenet import Checkpoint, ContinuousAdjoint, Problem, Result, SolveError, UnsupportedError
from odenet.kit import AnySolver

EXPLICIT: dict[str, type[diffrax.AbstractSolver]] = {
    "euler": diffrax.Euler,
    "heun": diffrax.Heun,
    "midpoint": diffrax.Midpoint,
    "ralston": diffrax.Ralston,
    "bosh3": diffrax.Bosh3,
    "dopri5": diffrax.Dopri5,
    "tsit5": diffrax.Tsit5,
    "dopri8": diffrax.Dopri8,
    "reversible-heun": diffrax.ReversibleHeun,
}
IMPLICIT: dict[str, Any] = {
    "implicit-euler": diffrax.ImplicitEuler,
    "kvaerno3": diffrax.Kvaerno3,
    "kvaerno4": diffrax.Kvaerno4,
    "kvaerno5": diffrax.Kvaerno5,
}


def diffrax_solver(solver: AnySolver, time: Any, *, adaptive: bool) -> diffrax.AbstractSolver:
    """Their solver.

    Args:
        solver: ours.
        time: number type of times.
        adaptive: whether there is a controller whose tolerances the roots of implicit steps are found to.
    """
    if solver.name in EXPLICIT:
        return EXPLICIT[solver.name]()
    if adaptive:
        return IMPLICIT[solver.name]()
    exact = 1e-10 if time == jnp.float64 else 1e-5
    return IMPLICIT[solver.name](root_finder=optimistix.Newton(exact, exact))


def evaluations(solver: diffrax.AbstractSolver, steps: Any, starts: int, jumps: int = 0) -> Any:
    """Of f in a solve by an explicit solver; None by an implicit one, whose iterations diffrax does not tell.

    Args:
        solver: theirs.
        steps: taken, the rejected ones included.
        starts: how often a solve is begun.
        jumps: how many times are jumped over.
    """
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        return None
    if isinstance(solver, diffrax.ReversibleHeun):
        return steps + 1  # its state is handed from layer to layer
    if not isinstance(solver, diffrax.AbstractERK):
        return steps
    tableau: Any = solver.tableau
    stages = tableau.num_stages
    return (stages - 1) * steps + starts + jumps if tableau.fsal else stages * steps


def coded(result: Any) -> Array:
    """The place in `odenet.Result` of one of their results."""
    places = list(Result)
    known = {
        "successful": Result.SUCCESS,
        "event_occurred": Result.EVENT,
        "max_steps_reached": Result.MAX_STEPS,
        "dt_min_reached": Result.STEP_TOO_SMALL,
    }
    code = jnp.int32(places.index(Result.IMPLICIT))
    for name, end in known.items():
        code = jnp.where(result == getattr(diffrax.RESULTS, name), places.index(end), code)
    return code.astype(jnp.int32)


_BAD = (Result.MAX_STEPS, Result.STEP_TOO_SMALL, Result.IMPLICIT)


def gave_up(code: Array) -> Array:
    """Whether the solve could not go on."""
    return jnp.isin(code, jnp.asarray([list(Result).index(end) for end in _BAD]))


def thrown(code: Array, ys: Any) -> Any:
    """The states, unless the solve could not go on.

    Raises:
        SolveError: at once where the code is known; where it is traced, equinox's runtime error with the same words.
    """
    ends = list(Result)
    if not isinstance(code, Tracer):
        if ends[int(code)] in _BAD:
            raise SolveError(f"the solve ended: {ends[int(code)].value}")
        return ys
    for end in _BAD:
        ys = eqx.error_if(ys, code == ends.index(end), f"the solve ended: {end.value}")
    return ys


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
