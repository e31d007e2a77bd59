"""jax.experimental.ode's function over odenet's steps: a script changes its import line and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from odenet import ContinuousAdjoint, DtypeError, GridError, InputError, PIDController, Solution, StateError, Stats
from odenet.kit import Alarm, alarm, called, problem, real, shown, takes
from odenet_jax.drop_in.words import speaking
from odenet_jax.field.state import flattened
from odenet_jax.gradients.adaptive import solve_adaptive
from odenet_jax.gradients.adaptive_costate import AdaptiveCostate

_MOST = 2**31 - 1  # steps are counted in int32
_FUNC = "a function that can be called as func(y, t, *args)"


@speaking("odeint")
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Array,
    *args: Any,
    rtol: Any = 1.4e-8,
    atol: Any = 1.4e-8,
    mxstep: float = jnp.inf,
    hmax: float = jnp.inf,
) -> Any:
    """The solution of `dy/dt = func(y, t, *args)`, `y(t[0]) = y0` at times t, by dopri5 and the continuous adjoint.

    Signature and behaviour are those of `jax.experimental.ode.odeint` (JAX 0.10). Derivatives with respect to y0, t and
    args are those of the ODE, by one solve backward with the same tolerances, of which atol holds for the adjoint as it
    is, as there: a gradient that this leaves off by more than 0.1, or that a drifting state does, is said
    (`GradientWarning`).

    Args:
        func: `func(y, t, *args)` to a slope like y.
        y0: an array, or any tree of arrays.
        t: times, increasing or (there not) decreasing.
        args: trees of arrays.
        rtol, atol: tolerances.
        mxstep: steps between one time and the next, on average (there: at most).
        hmax: no step is larger.

    Returns:
        The tree of y0 with a leading axis of length len(t).

    Raises:
        DtypeError: t is not of floats; the slope of a real state is complex. GridError: t has not one axis.
        StateError: the slope has not the state's shapes.
        SolveError: the solve could not go on. Inside of `jax.jit` what was not reached is NaN, and so is the gradient
            of a loss that reads it.
    """
    if not callable(func):
        raise InputError(f"func is a {type(func).__name__}", "a function func(y, t, *args)")
    takes(func, 2 + len(args), "func", _FUNC)
    try:
        t = t if isinstance(t, np.ndarray) else jnp.asarray(t)  # float64 times of NumPy are not rounded
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise GridError(f"t={shown(t)}", "a one-dimensional array of times") from error
    most, largest = _bounded("mxstep", mxstep, 1.0), _bounded("hmax", hmax, 0.0)
    for name, value in (("rtol", rtol), ("atol", atol)):
        _require_tolerance(name, value)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise DtypeError(f"t is {t.dtype}", "an array of floats")
    if t.ndim != 1 or not t.size:
        raise GridError(f"t has shape {t.shape}", "a one-dimensional array of times")
    for leaf in flattened(y0, "y0")[0]:
        if not isinstance(leaf, (Array, np.ndarray, np.generic, int, float, complex)) or not _holds(leaf):
            raise StateError(
                f"y0 holds {shown(leaf)}, a {type(leaf).__name__}", "arrays, or numbers that a float holds"
            )
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, y0))
    if not flat.size:  # an empty batch
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(t), *jnp.shape(leaf))), y0)
    leaves, structure = flattened(args, "args")

    def field(t: Array, y: Array, leaves: Any) -> Array:
        # as there: steps of low precision would be rejected
        with jax.default_matmul_precision("highest"):
            state = unravel(y)
            slope = called(func, (state, t, *jax.tree.unflatten(structure, leaves)), "func", _FUNC)
        _require_alike(slope, state)
        return ravel_pytree(slope)[0].astype(y.dtype)

    most = _MOST if most is None else min(int(most) * max(len(t) - 1, 1), _MOST)
    control = PIDController(rtol, atol, max_steps=most, max_step=largest)
    of_field = field if leaves else lambda t, y: field(t, y, ())
    solution = _solve(of_field, flat, leaves or None, t[0], t[-1], t, control, alarm(func))
    return jax.vmap(unravel)(solution.ys)


def _bounded(name: str, value: Any, least: float) -> float | None:
    """A bound as a number; None where it is infinite.

    Raises:
        InputError: no number, or none from `least` on.
    """
    bound = real(value)
    if bound is None or not (bound >= least and bound > 0):
        raise InputError(
            f"{name}={shown(value)}", f"a number, at least {least:g}, or infinity" if least else "a positive number"
        )
    return None if math.isinf(bound) else bound


def _require_tolerance(name: str, value: Any) -> None:
    """Raises InputError unless a tolerance is a number, or an array of real numbers."""
    array = isinstance(value, (Array, np.ndarray, np.generic))
    kind: Any = value.dtype if array else None
    if array and not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)):
        raise InputError(f"{name} is of {kind}", "a number of at least 0, or an array of them")
    if not array and real(value) is None:
        raise InputError(f"{name}={shown(value)}", "a number of at least 0, or an array of them")


def _holds(leaf: Any) -> bool:
    """Whether this is a number, or an array of numbers, that JAX holds."""
    if isinstance(leaf, int):
        return leaf.bit_length() < 32
    if isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return False  # keys of random numbers
    return not isinstance(leaf, (np.ndarray, np.generic)) or leaf.dtype.kind in "biufcV"


def _require_alike(slope: Any, state: Any) -> None:
    """Raises StateError unless a slope has the places and shapes of the state (a list may stand for a tuple).

    DtypeError if it is complex and the state is not: the imaginary part would be lost.
    """
    shapes = [{jax.tree_util.keystr(path): _shape(leaf) for path, leaf in _leaves(tree)} for tree in (slope, state)]
    if shapes[0] != shapes[1]:
        raise StateError(
            f"func returned leaves {shapes[0]} for a state of {shapes[1]}",
            "a slope of the state's own tree and shapes",
            "expand it where one number stands for all, as in jnp.broadcast_to(slope, y.shape)",
        )
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(state), strict=True):
        if jnp.iscomplexobj(one) and not jnp.iscomplexobj(other):
            raise DtypeError(
                f"func returned {one.dtype} for a state of {other.dtype}", "a real slope", "give a complex y0"
            )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _shape(leaf: Any) -> Any:
    try:
        return jnp.shape(leaf)
    except (TypeError, ValueError):  # no array: the message names its type
        return type(leaf).__name__


def _solve(
    field: Callable[..., Any],
    y0: Any,
    weights: Any,
    t0: Array,
    t1: Array,
    ts: Array | None,
    control: PIDController,
    told: Alarm | None = None,
) -> Solution:
    """A solve whose gradient can be differentiated again, as there: the backward solve is one like this."""
    gradient = ContinuousAdjoint(seminorm=False)
    choices = {"t0": t0, "t1": t1, "ts": ts, "solver": "dopri5", "gradient": gradient, "control": control}
    ivp = problem(field, y0, weights, **choices)

    def resolve(field: Callable[..., Any], state: Any, weights: Any, t0: Array, t1: Array) -> Any:
        return _solve(field, state, weights, t0, t1, None, _by_number(control)).y1

    def method(stats: Stats) -> AdaptiveCostate:
        named = dataclasses.replace(stats, gradient="odeint")
        return AdaptiveCostate(gradient, ivp.solver, control, named, told, resolve=resolve)

    return solve_adaptive(ivp, method)


def _by_number(control: PIDController) -> PIDController:
    """The controller with tolerances that suit any state: the tightest of each, where they are arrays."""
    least = {name: _least(getattr(control, name)) for name in ("rtol", "atol")}
    return dataclasses.replace(control, **least)


def _least(tolerance: Any) -> Any:
    return tolerance if isinstance(tolerance, (int, float)) else jnp.min(jnp.asarray(tolerance))
