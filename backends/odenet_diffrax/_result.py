"""How a solve ended, in odenet's words."""

from __future__ import annotations

from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from odenet import Result, SolveError


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
