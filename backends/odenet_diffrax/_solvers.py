"""diffrax's solver for each of our names, how often it evaluates f, and how a solve ended in our words."""

from __future__ import annotations

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import optimistix
from jax import Array
from jax.core import Tracer

from odenet import Result, SolveError
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
