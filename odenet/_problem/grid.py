"""Equal steps in time, counted in integers: `steps=N` is exactly N steps, for every N."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from odenet import _tree
from odenet._errors import GridError, shown
from odenet._problem.span import number, shape_of, unlisted

_CLOSE = 2.0**-22  # of the largest time: how far a time in `ts` may lie from its grid point, a few roundings of float32
_WITHIN = 1e-6, 1e-2  # of a step: that much is always allowed, and more than that never


_MOST = 2**31 - 1


@dataclass(frozen=True)
class Grid:
    """`t[n] = t0 + (t1 - t0) n / steps`, and which of these times are kept.

    Args:
        t0: first time. `t1 < t0` solves backward in time; `t1 == t0` is the identity.
        t1: last time.
        steps: how many steps, at least one.
        saved: the indices n that are kept, in the order asked for.
        moving: t0, t1 and `ts` as they were given, where one of them may need a gradient; else None.
    """

    t0: float
    t1: float
    steps: int
    saved: tuple[int, ...]
    moving: tuple[Any, Any, Any] | None = dataclasses.field(default=None, compare=False)

    @property
    def h(self) -> float:
        """The step size, negative where time decreases."""
        return (self.t1 - self.t0) / self.steps

    def size(self, n: Any) -> float:
        """Size of step n, signed: the same for all."""
        return (self.t1 - self.t0) / self.steps  # h, without another call a step

    @property
    def final_only(self) -> bool:
        """Whether nothing but y(t1) is kept."""
        return self.saved == (self.steps,)

    def time(self, n: Any, position: float = 0.0) -> Any:
        """Time at `position` in [0, 1] within step n; n may be an int or a backend's integer."""
        return self.t0 + (self.t1 - self.t0) * ((n + position) / self.steps)

    @property
    def kept(self) -> tuple[int, ...]:
        """The saved indices once each, in increasing order."""
        return tuple(sorted(set(self.saved)))

    @property
    def spread(self) -> tuple[int, ...] | None:
        """The index of each saved time in `kept`; None where they are the same."""
        distinct = self.kept
        return None if distinct == self.saved else tuple(distinct.index(n) for n in self.saved)

    @property
    def times(self) -> tuple[float, ...]:
        """The times that are kept."""
        return tuple(self.time(n) for n in self.saved)


def grid(t0: Any, t1: Any, steps: Any, ts: Any = None) -> Grid:
    """A checked grid.

    Args:
        t0, t1: finite numbers.
        steps: a whole number, at least 1.
        ts: None keeps y(t1) alone; "all" keeps every step, t0 included; else times on the grid, in the direction of
            time, repeats allowed.

    Raises:
        GridError: saying which of these does not hold.
    """
    first, last = _time("t0", t0), _time("t1", t1)
    try:
        count = operator.index(steps)
        if isinstance(steps, bool) or str(getattr(steps, "dtype", "")).endswith("bool"):
            raise TypeError
    except (TypeError, ValueError, RuntimeError):  # of torch: on the meta device
        raise GridError(
            f"steps={shown(steps)} is a {type(steps).__name__}", "a whole number of steps, at least 1"
        ) from None
    if count < 1:
        raise GridError(
            f"steps={count}", "at least 1", "to solve backward in time give t1 < t0 and a positive number of steps"
        )
    if count > _MOST:
        raise GridError(f"steps={shown(count)}", f"at most {_MOST}: steps are counted in 32 bits")
    _tree.require_finite_tree("ts", ts)
    moving = (t0, t1, ts) if any(map(_may_need_gradient, (t0, t1, ts))) else None
    whole = Grid(first, last, count, (count,), moving)
    if ts is None:
        return whole
    if isinstance(ts, str):
        if ts != "all":
            raise GridError(f"ts={shown(ts)}", "None, 'all', or a list of times on the grid")
        return dataclasses.replace(whole, saved=tuple(range(count + 1)))
    return dataclasses.replace(whole, saved=_saved(whole, ts))


def _time(name: str, value: Any) -> float:
    """A time as a float.

    Raises:
        GridError: what is no finite number, or not known yet (in JAX: traced).
    """
    if shape_of(value) == (1,):
        with contextlib.suppress(RuntimeError):  # torch: a sparse one, which is refused below
            value = value.reshape(())
    known = number(name, value)
    if known is None:
        raise GridError(
            f"{name}={shown(value)} is no number that is known before the solve",
            "with equal steps finite numbers",
            "pass a Python float; rtol and atol in the place of steps, whose times may be traced and differentiated; "
            "or scale the field: t1 f(t1 s, y) from s=0 to s=1",
        )
    return known


def _may_need_gradient(value: Any) -> bool:
    """Whether a time, or one of a list of times, is a tensor of torch (which may need one in ways it alone knows)."""
    if isinstance(value, (list, tuple)):
        return any(map(_may_need_gradient, value))
    return hasattr(value, "requires_grad")


def _saved(whole: Grid, ts: Any) -> tuple[int, ...]:
    if not isinstance(ts, Iterable):
        ts = [ts]
    try:
        listed: Any = ts.tolist() if hasattr(ts, "tolist") else ts  # pyright: ignore[reportAttributeAccessIssue]
        times = [_time("ts", t) for t in listed]
    except RuntimeError as error:  # torch: sparse, on the meta device, or under vmap
        raise unlisted(ts) from error
    except TypeError as error:  # a 0-dimensional array claims to be iterable
        raise GridError(
            f"ts={shown(ts)} is no list of times",
            "a list or 1-d array of times",
            "pass Python floats; in JAX take rtol and atol in the place of steps, for times that are traced",
        ) from error
    if not times:
        raise GridError("ts is empty", "at least one time", "leave ts out to keep y(t1) alone")
    saved = [_index(whole, t) for t in times]
    if any(late < early for early, late in itertools.pairwise(saved)):
        raise GridError(
            f"ts={times} does not run from t0={whole.t0} to t1={whole.t1}", "times in the order of the solve"
        )
    return tuple(saved)


def _index(whole: Grid, t: float) -> int:
    if whole.h == 0:
        if t != whole.t0:
            raise GridError(f"ts holds {t} but t0 == t1 == {whole.t0}", "t0 itself")
        return whole.steps
    place = (t - whole.t0) / (whole.t1 - whole.t0) * whole.steps
    least, most = _WITHIN
    close = min(most, max(least, _CLOSE * max(abs(whole.t0), abs(whole.t1)) / abs(whole.h)))
    n = round(place) if math.isfinite(place) else -1
    if not 0 <= n <= whole.steps:
        raise GridError(f"ts holds {t}, outside [{whole.t0}, {whole.t1}]", "times between t0 and t1")
    if abs(place - n) > close:
        raise GridError(
            f"ts holds {t}, which no step of a fixed grid of {whole.steps} steps ends at",
            f"the grid's times, here {whole.time(n - 1) if n else whole.t0}, {whole.time(n)} and so on",
            "choose steps so that each time is a multiple of (t1 - t0) / steps",
        )
    return n
