"""The times of an adaptive solve, whose steps are the solver's own choice, and events that end it.

Over 250 lines: half of it says what an event's condition means, and checks it and the times.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from odenet._check import called, real, takes, whole, within
from odenet._errors import GridError, InputError, UnsupportedError, shown
from odenet._solvers.controller import PIDController


@dataclass(frozen=True)
class Event:
    """Ends an adaptive solve at the first time at which `condition(t, y)` changes its sign, or its truth.

    The condition is looked at where the solve begins and at the ends of `subintervals` equal parts of every step, on
    the step's dense output, without evaluating the field. The first part in which an entry has changed is divided once
    more in the same way, and the first part of that is bisected. Two changes of an entry within one part, there and
    back, are not seen: take more subintervals, or bound the steps by `PIDController(max_step=...)`.

    An entry that is zero where the solve begins has no sign until it leaves zero; where it stays there and then becomes
    a whole number at once, as in `where(y > 1, 1.0, 0.0)`, it is read as a boolean is. One that is NaN, before any has
    changed, ends the solve with `Result.EVENT_NAN`: what it was or will be is not known. A solve that goes on from an
    event (a bounce) starts beside zero, on either side by rounding, and with `direction=0` may end at once by the same
    crossing: name the direction of the crossing that counts, as in `direction=-1` for a height that falls to the
    ground.

    Time and state of an event are differentiable (implicit function theorem; Chen, Amos, Nickel 2021). A boolean says
    nothing of the rate at which it is approached, so that their derivative is refused (torch: GradientError; JAX:
    NaN): for gradients write `y < 0` as the number `y`.

    Args:
        condition: `condition(t, y)`, a real number or a boolean, or an array of them of which any may change.
        direction: 1 for changes from negative to positive alone (of a boolean: from false to true), -1 for the others,
            0 for both.
        tolerance: of the located time, absolute; None is as close as its number type allows.
        subintervals: the parts of a step at whose ends the condition is looked at; 1 looks at the ends of steps alone.

    Raises:
        InputError: naming what cannot be used.
    """

    condition: Callable[[Any, Any], Any]
    direction: int = 0
    tolerance: float | None = None
    subintervals: int = 8

    def __post_init__(self) -> None:
        if not callable(self.condition):
            raise InputError(f"condition is a {type(self.condition).__name__}", "a callable condition(t, y)")
        takes(self.condition, 2, "an event's condition", "a condition that can be called as condition(t, y)")
        if isinstance(self.direction, bool) or real(self.direction) not in (-1.0, 0.0, 1.0):
            raise InputError(f"direction={shown(self.direction)} of an event", "-1, 0 or 1")
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", within("tolerance", self.tolerance, 0.0, of="an event"))
        whole("subintervals", self.subintervals, most=_PARTS, of="an event")

    def entries(self, t: Any, y: Any, as_array: Callable[[Any], Any], *, numbers_on: str = "") -> Any:
        """The condition at a time and state, as an array of real numbers or booleans.

        Args:
            t, y: where.
            as_array: an array of what the condition returned.
            numbers_on: a backend that looks for the zero of a number, and would place the change of a boolean wrongly.

        Raises:
            InputError: it returned neither; or it cannot be called so. UnsupportedError: booleans, which this backend
                has not.
        """
        value = called(self.condition, (t, y), "an event's condition", "a condition(t, y)")
        allowed = "a real number or a boolean, or an array of them"
        try:
            entries = as_array(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"an event's condition returned a {type(value).__name__} ({error})", allowed) from error
        kind = str(entries.dtype).rpartition(".")[2]
        if not kind.startswith(("float", "bfloat", "int", "uint", "bool")) or 0 in entries.shape:
            raise InputError(
                f"an event's condition returned a {type(value).__name__} of {kind} and shape {tuple(entries.shape)}",
                allowed,
            )
        if numbers_on and kind.startswith("bool"):
            raise UnsupportedError(
                f"an event's condition that is a boolean, on backend {numbers_on}, which looks for a zero",
                "a real number there; booleans on backends torch, jax and scipy",
                "write y < 0 as the number y",
            )
        return entries

    def positions(self, *, begun: bool = True) -> tuple[float, ...]:
        """Where in a step, from 0 to 1, the condition is looked at, the step's end left out.

        Args:
            begun: whether all entries have a sign. One that has none gets it soon after the step's start, so that an
                entry that begins at zero and comes back to it within the first part is met there.
        """
        parts = _parts(self.subintervals)
        return parts if begun else (_SOON, *parts)


@functools.lru_cache(16)
def _parts(count: int) -> tuple[float, ...]:
    return tuple(i / count for i in range(1, count))


def flag(value: float) -> bool:
    """Whether an entry that has rested at exactly zero is a flag that is set now: 0 for false, a whole number for true.

    A condition that is continuous leaves zero by little, and has no sign before; one such as `where(y > 1, 1.0, 0.0)`,
    or `(y > 1).float()`, has changed.
    """
    return value != 0 and not value % 1


_SOON = 2.0**-10
_PARTS = 2**16  # of a step, which are looked at one by one


@dataclass(frozen=True)
class Span:
    """From t0 to t1 with steps that follow the error.

    Times may be numbers, or scalars of the framework: then they can need a gradient, and in JAX be traced.

    Args:
        t0, t1: first and last time; t1 < t0 solves backward.
        ts: times that are kept, in the order of the solve, repeats allowed; None for t1 alone, "all" for every step.
        control: of step sizes.
        event: that ends the solve before t1.
        dense: whether the solution can be evaluated at any time (`Solution.at`).
    """

    t0: Any
    t1: Any
    ts: Any
    control: PIDController
    event: Event | None = None
    dense: bool = False

    @property
    def final_only(self) -> bool:
        """Whether nothing but y(t1) is kept."""
        return self.ts is None

    @property
    def every(self) -> bool:
        """Whether the state after every step is kept."""
        return isinstance(self.ts, str)

    @property
    def stops(self) -> tuple[float, ...]:
        """`step_t` and `jump_t` together, sorted."""
        return tuple(sorted({*self.control.step_t, *self.control.jump_t}))


def span(t0: Any, t1: Any, ts: Any, control: PIDController, event: Event | None = None, dense: bool = False) -> Span:
    """A checked span.

    Raises:
        GridError: times that cannot be used.
    """
    first, last = number("t0", t0), number("t1", t1)
    if isinstance(ts, str):
        if ts != "all":
            raise GridError(f"ts={shown(ts)}", "None, 'all', or a list of times")
    elif ts is not None:
        ts = _checked(first, last, ts)
    return Span(t0, t1, ts, control, event, dense)


def number(name: str, value: Any) -> float | None:
    """A time as a float; None for one that is traced, and so not known yet.

    Raises:
        GridError: what is no finite number.
    """
    plain = value
    if type(plain) is float and math.isfinite(plain):
        return plain
    refused = GridError(f"{name}={shown(value)} is no number", "a finite number, or a scalar of the framework")
    if shape_of(value) != ():
        raise refused
    if hasattr(value, "item"):
        try:
            # JAX reads the item of a time that jax.grad differentiates, whose gradient would be lost, and not its list
            plain = value.tolist() if hasattr(value, "tolist") else value.item()
        except TypeError:  # JAX: traced
            return None
        except RuntimeError:
            try:
                plain = value.item()  # torch 2.6 makes no list within torch.func.grad
            except RuntimeError as error:  # torch: on the meta device, or under vmap
                raise refused from error
    if isinstance(plain, (str, bytes, bool)):
        raise refused
    try:
        real = float(plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused from error
    except RuntimeError as error:  # torch: within vmap, or on the meta device
        raise GridError(
            f"{name} is a tensor whose value cannot be read here", "numbers, and tensors outside of torch.func.vmap"
        ) from error
    if not math.isfinite(real):
        raise GridError(f"{name}={real}", "a finite number")
    return real


def shape_of(value: Any) -> Any:
    """The shape of an array, () of what is none, None of one that has several (torch: nested tensors)."""
    try:
        return getattr(value, "shape", ())
    except RuntimeError:
        return None


def unlisted(ts: Any) -> GridError:
    """The error for an array of times whose values cannot be listed, as a sparse one's."""
    return GridError(f"ts={shown(ts)} holds no numbers that can be read here", "a list or dense 1-d array of times")


def _checked(first: float | None, last: float | None, ts: Any) -> Any:
    """Times in the order of the solve and between its ends, as given."""
    if hasattr(ts, "shape"):
        if len(ts.shape) > 1:
            raise GridError(f"ts has shape {tuple(ts.shape)}", "a list or 1-d array of times")
        ts = ts if len(ts.shape) == 1 else ts.reshape(1)
        try:
            known = ts.tolist()
        except TypeError:  # traced
            if ts.shape[0]:
                return ts
            known = []
        except (RuntimeError, AttributeError) as error:  # torch: sparse, on meta, or under vmap; JAX: random keys
            raise unlisted(ts) from error
        times = [number("ts", t) for t in known]
    else:
        ts = list(ts) if isinstance(ts, Iterable) else [ts]
        times = [number("ts", t) for t in ts]
    if not times:
        raise GridError("ts is empty", "at least one time", "leave ts out to keep y(t1) alone")
    if first is None or last is None or None in times:
        return ts
    reached = [t for t in times if t is not None]
    sign = 1 if last >= first else -1
    slack = 2.0**-22 * max(abs(first), abs(last))  # a few roundings of float32
    if any(sign * (late - early) < 0 for early, late in itertools.pairwise(reached)):
        raise GridError(f"ts={reached} does not run from t0={first} to t1={last}", "times in the order of the solve")
    if sign * (reached[0] - first) < -slack or sign * (reached[-1] - last) > slack:
        raise GridError(f"ts={reached} leaves [{first}, {last}]", "times between t0 and t1")
    return ts
