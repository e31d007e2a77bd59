"""Times as they are counted in a solve: since t0, which is kept apart as exactly as it was given.

A float32 state has times of float32, and 1.7e9 seconds do not fit into them: neighbours are 128 s apart. Their
differences do. What is given as a Python float or in float64 is subtracted in float64, whatever the state's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.interpreters import partial_eval

from odenet import GridError
from odenet_jax.field.state import promoted

Parts = tuple[Any, ...]
"""A number as the sum of a few of a narrower type, the largest first: float64 as three float32."""

COARSE = 2.0**-10
"""Of the span: how far apart the times of a number type may be, for a field that reads them."""
_REMEDY = "count the times of field, ts and events from a t0 near zero, or make the state float64 (JAX's x64 on)"


def parts(time: Any, kind: Any) -> Parts:
    """A time in parts of a number type.

    Raises:
        GridError: a known time that is larger than the type's largest number.
    """
    if not isinstance(time, Tracer):
        rest = np.asarray(time, np.float64)
        components: list[Any] = []
        while not components or (rest.any() and len(components) < 3):
            with np.errstate(over="ignore"):
                components.append(rest.astype(kind))
            rest = rest - components[-1].astype(np.float64)
        if not np.isfinite(components[0]).all():
            raise GridError(f"the time {time} does not fit {np.dtype(kind)}", "smaller times", _REMEDY)
        return tuple(components)
    high = time.astype(kind)
    if promoted(time.dtype, kind) == kind and jnp.issubdtype(time.dtype, jnp.floating):
        return (high,)
    low = time - high.astype(time.dtype)
    middle = low.astype(kind)
    return high, middle, (low - middle.astype(time.dtype)).astype(kind)


def since(time: Any, origin: Parts, kind: Any) -> Any:
    """The time between an origin and a time (or times, an array or a list), rounded once where both are known.

    Raises:
        TypeError: dates, truth values, or text, of which NumPy would make numbers.
    """
    if isinstance(time, (list, tuple)):
        time = jnp.stack([jnp.asarray(t) for t in time]) if any(isinstance(t, Tracer) for t in time) else time
    known = not any(isinstance(time_part, Tracer) for time_part in (time, *origin))
    if known:
        if np.asarray(time).dtype.kind in "USMmb":
            raise TypeError(time)
        return (np.asarray(time, np.float64) - sum(np.asarray(part, np.float64) for part in origin)).astype(kind)
    wide = _wide(kind)
    if wide != kind:
        return (jnp.asarray(time, wide) - sum(jnp.asarray(part, wide) for part in origin)).astype(kind)
    these, zero = parts(time, kind), jnp.zeros((), kind)
    longest = max(len(these), len(origin))
    pairs = zip((*these, *[zero] * (longest - len(these))), (*origin, *[zero] * (longest - len(origin))), strict=True)
    differences = [a - b for a, b in pairs]
    return sum(differences[1:], differences[0])


def later(origin: Parts, offset: Any) -> Any:
    """The time at an offset from an origin, in the number type of these."""
    high, *low = origin
    return high + (low[0] + offset) if low else high + offset


def spelled(origin: Parts, offset: Any) -> float:
    """The time at an offset in float64, for messages."""
    return float(sum(np.asarray(part, np.float64) for part in (*origin, offset)))


def _wide(kind: Any) -> Any:
    """The widest type that JAX has."""
    return promoted(kind, jax.dtypes.canonicalize_dtype(np.float64))


def roundings(times: Any, offsets: Any, origin: Parts) -> Any:
    """How far a time may lie outside of a solve by the rounding of the type that it was given in.

    Args:
        times: times as they were given.
        offsets: the same since t0.
        origin: the parts of t0.
    """
    narrow = hasattr(times, "dtype") and jnp.issubdtype(times.dtype, jnp.floating) and jnp.finfo(times.dtype).bits <= 32
    size = jnp.abs(origin[0]) + jnp.abs(offsets)
    return size * 2.0**-22, 1e-2 if narrow else 1e-5


def beyond(offsets: Any, last: Any, rounding: tuple[Any, float]) -> Any:
    """Whether times lie outside of a solve, by more than a rounding; NaN does.

    Args:
        offsets: since t0.
        last: the end, since t0.
        rounding: see `roundings`: an absolute one, and the most of the span that it may be.
    """
    size, most = rounding
    slack = jnp.clip(size, 1e-6 * jnp.abs(last), most * jnp.abs(last))
    sign = jnp.where(last >= 0, 1, -1)
    return ~((sign * offsets >= -slack) & (sign * (offsets - last) <= slack))


def still(time: Any) -> Any:
    """A time, or a list of times, without a derivative; numbers are left as they are."""
    return jax.tree.map(lambda t: lax.stop_gradient(t) if isinstance(t, Tracer) else t, time)


class TimePoint(NamedTuple):
    """A time: since t0, and as the field is told it."""

    offset: Array
    time: Array


@dataclass(frozen=True)
class Clock:
    """From offsets to times.

    Args:
        origin: the parts of t0.
        least, most: the times of the solve, so that none outside of it is told.
        offsets, times: of the ends and of stops, which are to be met exactly.
        zero: whether t0 is known to be 0: offsets are times.
    """

    origin: Parts
    least: Array
    most: Array
    offsets: Array
    times: Array
    zero: bool

    def time(self, offset: Array) -> Array:
        """The time at an offset."""
        if self.zero:
            return offset
        t = jnp.clip(later(self.origin, offset), self.least, self.most)
        same = self.offsets == offset
        return jnp.where(same.any(), jnp.max(jnp.where(same, self.times, self.least)), t)

    def moment(self, offset: Array) -> TimePoint:
        """The moment at an offset."""
        return TimePoint(offset, self.time(offset))


jax.tree_util.register_dataclass(Clock, ["origin", "least", "most", "offsets", "times"], ["zero"])


def clock(t0: Any, t1: Any, stops: tuple[float, ...], kind: Any) -> tuple[Clock, Array, Array]:
    """The clock of a solve, and the offsets of t1 and of the stops."""
    origin, (end, *_) = parts(t0, kind), parts(t1, kind)
    known = not isinstance(t0, Tracer) and not isinstance(t1, Tracer)
    of = np if known else jnp  # what is known is no work of the device
    last, at_stops = since(t1, origin, kind), since(np.asarray(stops, np.float64), origin, kind)
    offsets = of.concatenate([np.zeros(1, kind), at_stops, of.reshape(last, 1)])
    times = of.concatenate([of.reshape(origin[0], 1), np.asarray(stops, kind), of.reshape(end, 1)])
    zero = not isinstance(t0, Tracer) and float(t0) == 0
    least, most = of.minimum(origin[0], end), of.maximum(origin[0], end)
    result: Any = Clock(origin, least, most, offsets, times, zero)  # pyright: ignore[reportArgumentType]
    return jax.tree.map(jnp.asarray, (result, last, at_stops))


def coarse(t0: Any, t1: Any, kind: Any) -> Any:
    """Whether the times from t0 to t1 are so few in a number type that a field which reads them is another field."""
    origin, end = parts(t0, kind), parts(t1, kind)
    of = np if not isinstance(origin[0], Tracer) and not isinstance(end[0], Tracer) else jnp
    largest = of.maximum(of.abs(origin[0]), of.abs(end[0]))
    return (largest * of.finfo(kind).eps > COARSE * of.abs(since(t1, origin, kind))) & (since(t1, origin, kind) != 0)


def require_span(t0: Any, t1: Any, kind: Any, *, least: float = 0.0) -> None:
    """Raises GridError where a known t1 is another time than t0, and the number type cannot tell.

    Args:
        t0, t1: of a solve.
        kind: the number type.
        least: the size of its steps, if that is known.
    """
    if isinstance(t0, Tracer) or isinstance(t1, Tracer) or float(t0) == float(t1):
        return
    tiny = float(np.finfo(kind).tiny)
    if abs(float(since(t1, parts(t0, kind), kind))) < tiny or (least and abs(least) < tiny):
        raise GridError(
            f"t0={t0} and t1={t1} are no two times in {np.dtype(kind)}, that of the state",
            f"times (and steps between them) that are at least {tiny:.0e} apart",
            "scale the time, or make the state float64 (JAX's x64 on)",
        )


def require_fine(t0: Any, t1: Any, kind: Any, *readers: tuple[str, Callable[..., Any], tuple[Any, ...]]) -> bool:
    """Whether times are fine enough for what reads them.

    Args:
        t0, t1, kind: of the solve.
        readers: a name for messages, the function, and examples of its arguments, the time first.

    Returns:
        False where something reads times that may be too coarse, which cannot be told before the solve runs.

    Raises:
        GridError: they are too coarse.
    """
    known = not isinstance(t0, Tracer) and not isinstance(t1, Tracer)
    if known and not coarse(t0, t1, kind):
        return True
    for name, function, arguments in readers:
        if not reads_first(function, *arguments):
            continue
        if not known:
            return False
        apart = float(np.finfo(kind).eps) * max(abs(float(t0)), abs(float(t1)))
        raise GridError(
            f"the {name} reads the time, which from t0={t0} to t1={t1} is rounded to {apart:.1g} in "
            f"{np.dtype(kind)}, the state's number type",
            f"times that are {1 / COARSE:.0f} times closer than t1 to t0; any, where nothing reads them",
            _REMEDY,
        )
    return True


def reads_first(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether what a function returns depends on its first argument, an array."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return used[0]
