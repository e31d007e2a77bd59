"""The limit of a sequence over N, 2N, 4N, ...: what it has of powers of 1/N, taken away (Richardson 1911); and which
limit a network is near, by its weights along depth and its steps, with what to expect of gradients there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from odenet._check import array_of_numbers, several, whole, within
from odenet._errors import InputError
from odenet._literals import BackendName
from odenet._problem.depth import Depth
from odenet.theory._network import as_numpy, network
from odenet.theory._smoothness import Roughness, roughness

_HIGHEST = 64.0  # 2**-64 is below the rounding of float64


@dataclass(frozen=True)
class Limit:
    """The limit of a sequence as N grows.

    Args:
        value: the extrapolated array, NumPy, of the terms' shape.
        error: an estimate of the largest absolute error of an entry of `value`: how far the last elimination moved it.
            It is that of the extrapolation before the last, so it is too large where the expansion holds, and it means
            nothing where it does not (see `order`).
        order: the p that is observed in `term = limit + c / N**p`: from the last three terms, in the Euclidean norm;
            None with two terms, or where they agree to the last bit.
    """

    value: np.ndarray
    error: float
    order: float | None


def limit(terms: Sequence[Any], *, order: float | None = 1, eliminations: int | None = None) -> Limit:
    """Richardson's extrapolation of arrays at N, 2N, 4N, ... to N = infinity.

    `a(N) = a + c1 N**-p + c2 N**-(p+1) + ...` is what is assumed: one-sided methods such as Euler's have p = 1. Each
    elimination takes the next power away, and needs one more term. Quantities along depth (weights, states) are given
    where all of the networks have them: of 2N layers every second one.

    Args:
        terms: at least two arrays of one shape, from the shallowest to the deepest, of NumPy or of any known framework.
        order: p; None takes the observed one (three terms) and eliminates that power alone.
        eliminations: how many powers are taken away; None as many as there are terms to.

    Raises:
        InputError: too few terms, terms of different shapes, or an order that is not positive.

    Source: Richardson 1911; Stoer and Bulirsch, section 3.4. For ResNets, Sander, Ablin and Peyre 2022, section 3, has
    the limit; that it is approached in powers of 1/N is Euler's expansion of the error.
    """
    arrays = [np.asarray(as_numpy(term)) for term in several("terms", terms)]
    for array in arrays:
        array_of_numbers("a term", array)
    least = 2 if order is not None else 3
    if len(arrays) < least or any(array.shape != arrays[0].shape for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays) or "none"
        raise InputError(f"terms of shapes {shapes} to be extrapolated", f"at least {least}, all of one shape")
    if order is not None:
        within("order", order, 0.0, _HIGHEST, of="an extrapolation")
    most = len(arrays) - 1 if order is not None else 1
    if eliminations is not None:
        whole("eliminations", eliminations, 1, most, "an extrapolation")
    observed = _observed(arrays)
    power = observed if order is None else order
    if power is None or not power > 0:
        raise InputError(f"terms whose observed order is {power}", "terms that converge", "give order=")
    column = arrays
    before = column[-1]
    for step in range(eliminations or most):
        before = column[-1]
        ratio = 2.0 ** (power + step)
        column = [(ratio * fine - coarse) / (ratio - 1) for coarse, fine in itertools.pairwise(column)]
    return Limit(column[-1], float(np.abs(column[-1] - before).max(initial=0.0)), observed)


def _observed(arrays: Sequence[np.ndarray]) -> float | None:
    if len(arrays) < 3:
        return None
    coarse, fine = (float(np.linalg.norm(np.ravel(b - a))) for a, b in (arrays[-3:-1], arrays[-2:]))
    return float(np.log2(coarse / fine)) if coarse > 0 and fine > 0 else None


LimitName = Literal["ODE", "mean ODE", "SDE", "none"]

FUNCTION = 0.25
"""The exponent from which on weights are called a function of depth, and under it independent."""

SMOOTH = 0.75
"""Exponent from which on the weights are a smooth function of depth."""

SMALL, WANDER = 0.5, 0.5


@dataclass(frozen=True)
class Limits:
    """Which limit a network is near as its depth grows, and what follows for its gradients.

    Args:
        name: "ODE": weights are a function of depth, and the network is Euler's method for it; "mean ODE": layers are
            independent and their noise averages out (steps of about 1/N); "SDE": it does not, but the steps are small
            (about N**-1/2); "none": the steps are too large for any of them.
        roughness: of the weights along depth, with the interval of its exponent.
        increment: the most that a step moves the state by, relative to it: root mean square over samples, of the
            largest step, where a state was given; the step size |h| where none was.
        wander: how far independent steps lead: the root of the sum of their squares, `sqrt(N) |h|` without a state.
        gradient: the gradient method to expect to work, by its label.
        reason: of both, in a sentence or two.
    """

    name: LimitName
    roughness: Roughness
    increment: float
    wander: float
    gradient: str
    reason: str

    @property
    def decided(self) -> bool:
        """Whether the interval of the exponent lies on one side of what tells a function from independent layers."""
        return self.roughness.low > FUNCTION or self.roughness.high < FUNCTION


def limits(
    model: Any,
    x: Any = None,
    *,
    t0: float | None = None,
    t1: float | None = None,
    steps: int | None = None,
    batched: bool = True,
    backend: BackendName | None = None,
    device: str = "cpu",
) -> Limits:
    """The limit that a network is near, by the roughness of its weights along depth and the size of its steps.

    A network of N steps `y[n+1] = y[n] + h f(y[n], w[n])` whose weights go as `|w[n+k] - w[n]| ~ k**H` with H > 0 is
    near the ODE through them, from which it is O(N**-H), or O(1/N) where they are smooth (Sander, Ablin, Peyre 2022).
    With independent layers, H = 0, the noise of N steps of size h adds up to h sqrt(N): to nothing for h = 1/N, where
    the limit is the ODE of the mean field (Chizat 2025), and to a diffusion for h = N**-1/2, a stochastic
    differential equation (Marion, Fermanian, Biau and Vert 2025). At one depth these are not limits but magnitudes:
    H below 1/4 is called independent, and `sqrt(N)` times what a step moves the state by, below 1/2, nothing.

    Args:
        model: a ResidualStack of either backend, or a `Depth` (`stack.depth`).
        x: a state that goes into it; then steps are measured along the network's own trajectory. None takes |h| for
            what a step moves the state by, as where f is as large as its state. Not of a `Depth`.
        t0, t1, steps: of a `Depth`: 0, 1 and its layers where left out; of a stack they are its own.
        batched: whether the first axis of x is one of samples.
        backend, device: as in `distance`.

    Raises:
        InputError: neither a stack nor a Depth, fewer than 8 layers, shared weights without steps, x of a Depth.

    Source: the papers above; the thresholds are odenet's.
    """
    depth = model if isinstance(model, Depth) else getattr(model, "depth", None)
    stack: Any = None if isinstance(model, Depth) else model
    if not isinstance(depth, Depth):
        raise InputError(f"the limit of a {type(model).__name__}", "a ResidualStack or a Depth", "give its .depth")
    if stack is None and x is not None:
        raise InputError("a state x for a Depth, which has no field", "a ResidualStack with x, or a Depth without")
    if stack is not None and not (t0 is None and t1 is None and steps is None):
        raise InputError("t0, t1 or steps of a stack, which has its own", "none of them with a stack")
    start, end = (stack.t0, stack.t1) if stack is not None else (0.0 if t0 is None else t0, 1.0 if t1 is None else t1)
    for name, time in (("t0", start), ("t1", end)):
        within(name, time)
    if steps is not None:
        whole("steps", steps)
    count = steps or depth.intervals or getattr(stack, "steps", None)
    if count is None:
        raise InputError("shared weights without steps", "steps=N", "give the number of steps")
    along_depth = roughness(depth)
    moves = np.full(count, abs(float(end) - float(start)) / count)
    if x is not None and stack is not None:
        net = network(
            stack.field, x, depth, t0=start, t1=end, steps=count, backend=backend, device=device, batched=batched
        )
        states = net.trajectory(net.depth, stack.solver, net.steps)
        sizes, moved = ((np.abs(vectors) ** 2).sum(axis=(1, 2)) for vectors in (states[:-1], np.diff(states, axis=0)))
        moves = np.sqrt(moved / np.maximum(sizes, np.finfo(float).tiny))
    return _named(along_depth, float(moves.max()), float(np.sqrt((moves**2).sum())))


def _named(along_depth: Roughness, increment: float, wander: float) -> Limits:
    exponent = f"lag**{along_depth.exponent:.2f} [{along_depth.low:.2f}, {along_depth.high:.2f}] along depth"
    share = f"{100 * along_depth.independent:.2g} % of their variance is new from layer to layer"
    smooth = along_depth.exponent >= SMOOTH
    if increment >= SMALL:
        name, gradient = "none", "checkpoint"
        reason = (
            f"A step moves the state by {increment:.2g} of its size, too far to be inverted; weights go as {exponent}."
        )
    elif along_depth.exponent >= FUNCTION:
        name, gradient = "ODE", "discrete-adjoint"
        more = (
            "Neighbouring layers have nearly the same weights: solvers keep their orders, and "
            "discrete-adjoint:predictor=extrapolate works, too."
            if smooth
            else "Solvers that read two layers in a step lose orders, and extrapolation gains nothing."
        )
        rate = "1/N" if smooth else f"N**-{along_depth.exponent:.2g}"
        reason = (
            f"Weights go as {exponent} ({share}): the distance to the ODE through them is to fall as {rate}. {more}"
        )
    elif wander < WANDER:
        name, gradient = "mean ODE", "discrete-adjoint"
        reason = (
            f"Layers are independent: weights go as {exponent} ({share}), and the noise of N steps leads no farther "
            f"than {wander:.2g} of the state's size. Take Euler: solvers that read two layers in a step gain no order."
        )
    else:
        name, gradient = "SDE", "checkpoint"
        reason = (
            f"Layers are independent: weights go as {exponent} ({share}), and the noise of N steps leads {wander:.2g} "
            "of the state's size away. The discrete adjoint loses h**3 a step, h**2 without its correction: over N "
            "steps of N**-1/2 that is N**-1/2, or O(1). checkpoint is exact."
        )
    return Limits(name, along_depth, increment, wander, gradient, reason)
