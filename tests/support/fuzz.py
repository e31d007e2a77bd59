"""Makes a random call (`fuzz_calls`) on a backend and judges it: right, or refused by an error of our own.

Values are compared with a loop over the tableau in NumPy (equal steps) or with SciPy (tolerances), in 64 bits.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fuzz_calls import BAD_CONDITIONS, BAD_FIELDS, CONDITIONS, FIELDS, FLOATS, INF, ROUNDING, Call, Numbers, calls
from scipy.integrate import solve_ivp

import odenet
from odenet import OdenetError, _tree


@dataclass(frozen=True)
class Framework:
    """What the calls need of a framework.

    Args:
        name: of the backend.
        array: from NumPy numbers and the name of a number type to an array. A call is left out where it raises.
        numpy: from an array to NumPy, half precision as float32.
        gradient: `gradient(loss, y0)` of a real scalar by the leaves of y0, as NumPy arrays in the same order.
    """

    name: str
    array: Callable[[np.ndarray, str], Any]
    numpy: Callable[[Any], np.ndarray]
    gradient: Callable[[Callable[[Any], Any], Any], list[np.ndarray]]


class WrongError(AssertionError):
    """A call whose result is wrong."""


def outcome(drawn: Call, framework: Framework) -> str:
    """Makes a call and judges it.

    Returns:
        "left out", "refused", "solved" (and compared), or "unchecked" (solved, and nothing is known to compare with).

    Raises:
        WrongError: a value that is wrong. What the library raises outside of its own tree of exceptions goes on.
    """
    try:
        y0 = _built(drawn.choices["y0"], framework)
    except Exception:  # the framework does not have this number type, or it is switched off
        return "left out"
    function = FIELDS.get(drawn.field) or BAD_FIELDS[drawn.field]
    try:
        with np.errstate(all="ignore"):
            solution, found = _made(drawn, function, y0, framework)
    except OdenetError as error:
        if not str(error).strip():
            raise WrongError(f"{drawn}: an error that says nothing") from error
        return "refused"
    return _judged(drawn, framework, solution, found)


def _made(drawn: Call, function: Any, y0: Any, framework: Framework) -> tuple[Any, Any]:
    """The solution, and the gradient of the sum of its last state."""
    choices = {name: value for name, value in drawn.choices.items() if name != "y0"}
    if drawn.controls is not None:
        choices["control"] = odenet.PIDController(**drawn.controls)
    if drawn.watch is not None:
        watch = dict(drawn.watch)
        name = watch.pop("condition")
        watch["condition"] = CONDITIONS.get(name) or BAD_CONDITIONS[name]
        choices["event"] = odenet.Event(**watch)

    def solve(y0: Any) -> Any:
        return odenet.solve(function, y0, backend=framework.name, **choices)

    found = None
    if drawn.differentiate and not drawn.bad:
        found = framework.gradient(lambda y0: sum(leaf.real.sum() for leaf in _tree.leaves(solve(y0).y1)), y0)
    return solve(y0), found


def _built(tree: Any, framework: Framework) -> Any:
    if isinstance(tree, Numbers):
        return framework.array(tree.values, tree.dtype)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_built(child, framework) for child in tree)
    return {k: _built(v, framework) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _judged(drawn: Call, framework: Framework, solution: Any, found: Any) -> str:
    """Compares with NumPy or SciPy; only where state, field and times are good is there anything to compare with."""
    leaves = [np.asarray(framework.numpy(leaf)) for leaf in _tree.leaves(solution.y1)]
    known = drawn.field in FIELDS and _times_known(drawn) and all(_good(n) for n in _tree.leaves(drawn.choices["y0"]))
    if not known or (drawn.watch is not None and drawn.watch["condition"] not in CONDITIONS):
        return "unchecked"
    if solution.result is odenet.Result.EVENT and isinstance(drawn.choices.get("ts"), list):
        return "unchecked"  # times after an event are not reached
    given = [leaf for leaf in _tree.leaves(drawn.choices["y0"])]
    right = reference(drawn, [leaf.values for leaf in given])
    kind = given[0].dtype
    error = ROUNDING[kind] + (0 if "steps" in drawn.choices else 100 * _loosest(drawn))
    for leaf, expected in zip(leaves, right, strict=True):
        if leaf.shape != expected.shape or not np.abs(leaf - expected).max() <= error * (1 + np.abs(expected).max()):
            raise WrongError(f"{drawn}: {leaf} for {expected}, {solution.result}")
    if found is not None and drawn.choices["gradient"] in ("backprop", "checkpoint") and drawn.watch is None:
        _judge_gradient(drawn, given, found, error)
    return "solved"


def _judge_gradient(drawn: Call, given: list[Numbers], found: list[np.ndarray], error: float) -> None:
    """The gradient along the ones, beside a central difference of the reference."""
    shift = 1e-4
    sums = [
        sum(leaf.real.sum() for leaf in reference(drawn, [leaf.values + sign * shift for leaf in given]))
        for sign in (1, -1)
    ]
    right, total = (sums[0] - sums[1]) / (2 * shift), sum(leaf.real.sum() for leaf in found)
    if not abs(total - right) <= 4 * (error + 1e-5) * (1 + abs(right)) * len(given):
        raise WrongError(f"{drawn}: gradient {total} for {right}")


def reference(drawn: Call, leaves: list[np.ndarray]) -> list[np.ndarray]:
    """The leaves of y1 in 64 bits: by the tableau itself with equal steps, else by SciPy."""
    function, choices = FIELDS[drawn.field], drawn.choices
    t0, t1 = float(choices.get("t0", 0.0)), float(choices.get("t1", 1.0))
    if "steps" in choices:
        tableau, count = odenet.solver(str(choices["solver"] or "euler")).tableau, int(choices["steps"])
        h, y = (t1 - t0) / count, [np.asarray(leaf) for leaf in leaves]
        for n in range(count):
            slopes: list[Any] = []
            for row, node in zip(tableau.a, tableau.c, strict=True):
                at = [leaf + h * sum(a * k[i] for a, k in zip(row, slopes, strict=False)) for i, leaf in enumerate(y)]
                slopes.append(function(t0 + h * (n + node), at))
            y = [leaf + h * sum(b * k[i] for b, k in zip(tableau.b, slopes, strict=True)) for i, leaf in enumerate(y)]
        return y
    if drawn.watch is not None and drawn.watch["condition"] == "half":
        t1 = _met(t0, t1, 0.5, drawn.watch)
    if drawn.watch is not None and drawn.watch["condition"] == "later":
        t1 = _met(t0, t1, 0.6, drawn.watch)
    if t0 == t1:
        return leaves
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    y = solve_ivp(lambda t, y: function(t, y), (t0, t1), flat, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
    sizes = np.cumsum([leaf.size for leaf in leaves])[:-1]
    return [part.reshape(leaf.shape) for part, leaf in zip(np.split(y, sizes), leaves, strict=True)]


def _met(t0: float, t1: float, at: float, watch: dict[str, Any]) -> float:
    """Where `t - at` ends a solve from t0 to t1."""
    crossed = min(t0, t1) < at <= max(t0, t1) if t1 > t0 else min(t0, t1) <= at < max(t0, t1)
    direction = watch.get("direction", 0)
    return at if crossed and direction in (0, 1 if t1 > t0 else -1) else t1


def _times_known(drawn: Call) -> bool:
    """Whether the times are plain numbers that float32 holds closely, and the last kept state is that at the end."""
    numbers = [drawn.choices.get(name, default) for name, default in (("t0", 0.0), ("t1", 1.0))]
    plain = all(type(t) in (int, float, bool) and abs(t) < 100 for t in numbers)
    ts, steps = drawn.choices.get("ts"), drawn.choices.get("steps", 1)
    ends = ts is None or isinstance(ts, str) or (isinstance(ts, list) and ts[-1:] == [numbers[1]])
    return plain and ends and (steps is None or steps < 10**5)


def _loosest(drawn: Call) -> float:
    """The largest tolerance; infinite where it is no number."""
    found = [drawn.choices.get("rtol"), drawn.choices.get("atol")]
    found = [1e-6 if value is None else value for value in found]
    return max((float(v) if isinstance(v, (int, float)) else INF) for v in found)


def _good(leaf: Any) -> bool:
    return isinstance(leaf, Numbers) and leaf.dtype in FLOATS and bool(np.abs(leaf.values).max(initial=0) < 100)


def judged(seed: int, count: int, framework: Framework, seconds: int, after: Callable[[Call], object]) -> Counter[str]:
    """How many calls ended how.

    Args:
        seed, count: which calls.
        framework: that they are made on.
        seconds: that one call may take; one that takes longer hangs.
        after: called after each.

    Raises:
        AssertionError: naming the call that was wrong, hung, or raised something foreign.
    """

    def ring(*_: Any) -> None:
        raise TimeoutError(f"{seconds} s")

    endings: Counter[str] = Counter()
    before = signal.signal(signal.SIGALRM, ring)
    try:
        for drawn in calls(seed, count):
            signal.alarm(seconds)
            try:
                endings[outcome(drawn, framework)] += 1
            except Exception as error:
                raise AssertionError(f"{drawn}") from error
            finally:
                signal.alarm(0)
            after(drawn)
    finally:
        signal.signal(signal.SIGALRM, before)
    return endings
