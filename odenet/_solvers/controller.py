"""Step sizes of adaptive solves: PID control of the estimated error, and where a step lands, each written once.

Only `+ * / **` and the three operations of an `Arithmetic`: the same lines decide about Python floats (torch, one host
read a step), about a tensor of step sizes (one a sample) and about traced numbers (JAX's while loop).

Over 250 lines: the options of a controller stand beside what they mean to it, with their checks.

Soderlind 2003, "Digital filters in adaptive time-stepping"; Hairer, Norsett, Wanner I, section II.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from odenet import _tree
from odenet._check import whole, yes_or_no
from odenet._errors import GridError, InputError, shown

NORMS = ("rms", "mixed", "max")
SAFETY = 0.85
_FLOOR = 1e-10  # of the error ratio: what is smaller says no more than that the step may grow as far as it is let


class Arithmetic(NamedTuple):
    """What a controller needs beside `+ * / **`."""

    least: Callable[[Any, Any], Any]
    most: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]


FLOATS = Arithmetic(min, max, lambda condition, one, other: one if condition else other)

Past = tuple[Any, Any]
"""Inverse error ratios of the last two accepted steps, the latest first."""


@dataclass(frozen=True)
class PIDController:
    """How an adaptive solve chooses its steps: the error of a step, over `atol + rtol max(|y|, |y'|)`, is held at 1.

    With e the ratio of a step and k the order of the error estimate, the next step is larger by
    `safety e[n]^-(p+i+d)/k e[n-1]^(p+2d)/k e[n-2]^-d/k`, within the factors. A step with e > 1 is rejected.

    Args:
        rtol, atol: numbers, or trees like the state of numbers or arrays that broadcast to its leaves.
        norm: of the scaled error: "rms" over all entries, "mixed" (the largest rms of a leaf), "max" (of an entry), or
            a function of a tree like the state to a scalar.
        pcoeff, icoeff, dcoeff: proportional, integral and derivative part. The default, integral alone, is that of
            torchdiffeq and diffrax; 0.4, 0.3, 0 is gentler where stability limits the steps.
        safety: factor on every new step; None is 0.85 (a peer library takes its own, 0.9). With 0.9 and steps
            that never shrink once accepted, as theirs, DETEST takes 7 % more evaluations at equal error with dopri5 and
            tsit5.
        factor_min, factor_max: the most that a step may shrink or grow.
        first_step: size of the first step; None estimates it with one more evaluation (Hairer, Norsett, Wanner I,
            p. 169).
        min_step: no step is smaller, and one of this size is accepted whatever its error. None: a step that would
            vanish beside t ends the solve (`Result.STEP_TOO_SMALL`).
        max_step: no step is larger.
        max_steps: steps tried before the solve is given up (`Result.MAX_STEPS`).
        step_t: times that steps end at.
        jump_t: times where the field jumps: steps end there, and the field is evaluated anew on the other side.
        per_sample: each row of the state's leading axis has its own steps. The field is called with times of shape
            (batch, 1, ...). torch only; in JAX that is `jax.vmap` of the solve.
        throw: raise a SolveError where the solve cannot go on. False returns what there is, NaN for times that were
            not reached, with `Solution.result` saying why.

    Raises:
        InputError: naming what cannot be used (GridError for times).
    """

    rtol: Any = 1e-6
    atol: Any = 1e-9
    norm: str | Callable[[Any], Any] = "rms"
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    safety: float | None = None
    factor_min: float = 0.2
    factor_max: float = 10.0
    first_step: float | None = None
    min_step: float | None = None
    max_step: float | None = None
    max_steps: int = 4096
    step_t: Any = field(default=())
    jump_t: Any = field(default=())
    per_sample: bool = False
    throw: bool = True

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            _check_tolerance(name, getattr(self, name))
        if not callable(self.norm) and not (isinstance(self.norm, str) and self.norm in NORMS):
            raise InputError(f"norm={shown(self.norm)}", f"{', '.join(NORMS)}, or a function of a tree to a scalar")
        for name in ("pcoeff", "icoeff", "dcoeff"):
            _number(name, getattr(self, name), 0.0)
        if self.safety is not None:
            _number("safety", self.safety, 0.0, 1.0)
        _number("factor_min", self.factor_min, 0.0, 1.0)
        _number("factor_max", self.factor_max, 1.0)
        for name in ("first_step", "min_step", "max_step"):
            if getattr(self, name) is not None:
                _number(name, getattr(self, name), 0.0)
        if self.min_step is not None and self.max_step is not None and self.min_step > self.max_step:
            raise InputError(f"min_step={self.min_step} and max_step={self.max_step}", "a min_step that is smaller")
        whole("max_steps", self.max_steps)
        yes_or_no("per_sample", self.per_sample)
        yes_or_no("throw", self.throw)
        for name in ("step_t", "jump_t"):
            object.__setattr__(self, name, _times(name, getattr(self, name)))

    def judge(self, order: int, error: Any, past: Past, of: Arithmetic = FLOATS) -> tuple[Any, Any, Past]:
        """What follows from the error ratio of a step.

        Args:
            order: k, that of the error estimate.
            error: the ratio; NaN or infinite where the step went astray.
            past: see `Past`; (1, 1) at the start.
            of: operations on numbers of this kind.

        Returns:
            Whether the step is accepted, the factor on its size, and the past for the next step.
        """
        proportional, derivative = self.pcoeff / order, self.dcoeff / order
        accepted, safety = error <= 1.0, SAFETY if self.safety is None else self.safety
        inverse = 1.0 / of.most(error, _FLOOR)
        factor = safety * inverse ** (proportional + self.icoeff / order + derivative)
        if proportional or derivative:
            factor = factor * past[0] ** -(proportional + 2 * derivative) * past[1] ** derivative
        most = of.where(accepted, self.factor_max, safety)  # a rejected step is followed by a smaller one
        factor = of.where(error == error, of.least(of.most(factor, self.factor_min), most), self.factor_min)
        past = of.where(accepted, inverse, past[0]), of.where(accepted, past[0], past[1])
        return accepted, factor, past

    def bounded(self, size: Any, of: Arithmetic = FLOATS) -> Any:
        """A step size (positive) within `min_step` and `max_step`."""
        if self.max_step is not None:
            size = of.least(size, self.max_step)
        return size if self.min_step is None else of.most(size, self.min_step)

    def trial(self, d0: Any, d1: Any, of: Arithmetic = FLOATS) -> Any:
        """The size of an explicit Euler step to estimate the second derivative by.

        Args:
            d0, d1: scaled norms of y(t0) and of f there.
            of: operations on numbers of this kind.
        """
        small = of.where(d0 < 1e-5, True, d1 < 1e-5)
        return of.where(small, 1e-6, 0.01 * d0 / of.most(d1, 1e-15))

    def first(self, order: int, size: Any, d1: Any, d2: Any, of: Arithmetic = FLOATS) -> Any:
        """The size of the first step.

        Args:
            order: k, that of the error estimate.
            size: of the trial step.
            d1, d2: scaled norms of f, and of its change over the trial step divided by its size.
            of: operations on numbers of this kind.
        """
        steepest = of.most(d1, d2)
        flat = of.most(1e-6, size * 1e-3)
        curved = (0.01 / of.most(steepest, 1e-15)) ** (1.0 / order)
        return of.least(100 * size, of.where(steepest <= 1e-15, flat, curved))


def _check_tolerance(name: str, value: Any) -> None:
    _tree.require_finite_tree(name, value)
    if not (leaves := _tree.leaves(value)):
        raise InputError(f"{name}={shown(value)}", "a number, or a tree like the state of numbers or arrays")
    for leaf in leaves:
        kind = str(getattr(leaf, "dtype", ""))
        nested = getattr(leaf, "is_nested", False)  # of torch, without a shape
        if nested or "bool" in kind or "complex" in kind:
            raise InputError(f"{name} is a {type(leaf).__name__} of {kind}", "numbers of at least 0, or arrays")
        if hasattr(leaf, "shape") and not hasattr(leaf, "encode") and not hasattr(leaf, "decode"):
            continue  # arrays are the backend's
        if not _is_number(leaf) or not 0 <= leaf < math.inf:
            raise InputError(f"{name}={shown(value)}", "numbers of at least 0, or arrays of them")


def _is_number(value: Any) -> bool:
    """Whether this is a real number (no bool) that a float holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _number(name: str, value: Any, above: float, most: float = math.inf) -> None:
    inside = _is_number(value) and (value >= above if name.endswith("coeff") else value > above)
    if not inside or not value <= most or (math.isinf(value) and name != "max_step"):
        raise InputError(f"{name}={shown(value)} of a PIDController", f"a number in [{above}, {most}]")


def _times(name: str, values: Any) -> tuple[float, ...]:
    """Times of `step_t` or `jump_t` as floats, sorted."""
    try:
        values = values if isinstance(values, (str, bytes, dict)) else list(values)
        if isinstance(values, (str, bytes, dict)) or any(isinstance(t, (str, bytes)) for t in values):
            raise TypeError
        moving = any(getattr(t, "requires_grad", False) for t in values)  # of torch
        times = () if moving else tuple(sorted(float(t) for t in values))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise GridError(f"{name}={shown(values)}", "a list or 1-d array of times known before the solve") from error
    if not all(map(math.isfinite, times)):
        raise GridError(f"{name}={times}", "finite times")
    if moving:
        remedy = "take time.detach(); or solve up to that time and on from it, whose t1 and t0 may need one"
        raise GridError(f"{name} has a time that needs a gradient", "times that need none, of which steps know", remedy)
    return times


_ROUNDINGS = 64
_ALWAYS, _NEVER = 1e-10, 1e-3  # of a step: it may always be stretched by the one, and never by more than the other


class Landing(NamedTuple):
    """The end of a step that is to be tried, and whether that is the next time that the solve has to meet: the same in
    all adaptive loops."""

    t1: Any
    lands: Any


def landing(t: Any, size: Any, stop: Any, direction: Any, spacing: Any, of: Arithmetic = FLOATS) -> Landing:
    """The step from t, clipped to the stop.

    A step that ends short of the stop by no more than the roundings of a few dozen steps is stretched to it:
    `max_step=1/49` is 49 steps in every number type, and none of them is a sliver.

    Args:
        t: where the step begins.
        size: that the controller wants, positive.
        stop: the next time that a step ends at.
        direction: of time, 1 or -1.
        spacing: that of the number type of the times at the largest of them, t0 and t1 included.
        of: operations on numbers of this kind.
    """
    t1 = t + direction * size
    slack = of.least(_NEVER * size, of.most(_ALWAYS * size, _ROUNDINGS * spacing))
    lands = direction * (stop - t1) <= slack
    return Landing(of.where(lands, stop, t1), lands)


def resumed(size: Any, before: Any, lands: Any, of: Arithmetic = FLOATS) -> Any:
    """The size of the step after an accepted one: one that was clipped says nothing against the size that it would have
    had.

    Args:
        size: that follows from the step's error.
        before: that the controller had wanted of the step.
        lands: whether it ended at a stop.
        of: operations on numbers of this kind.
    """
    return of.where(lands, of.most(size, before), size)
