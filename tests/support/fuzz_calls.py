"""Random calls of `odenet.solve`, good and bad, as plain data that knows no framework.

Every argument is drawn from a list of good and of bad values; what only a framework can make is a `Numbers`.
Over 250 lines: the values that are drawn from are most of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import odenet
from odenet import _tree

HUGE = 10**400
WIDE = ("float64", "complex128")
ROUNDING = {"float16": 1e-2, "bfloat16": 8e-2, "float32": 1e-4, "complex64": 1e-4, "float64": 1e-9, "complex128": 1e-9}
FLOATS = tuple(ROUNDING)
SOLVERS = ("euler", "heun", "midpoint", "bosh3", "rk4", "dopri5", "tsit5", "dopri8")


@dataclass(frozen=True)
class Numbers:
    """An array that the framework is to make.

    Args:
        values: the numbers.
        dtype: of the framework, by name.
    """

    values: np.ndarray
    dtype: str = "float32"


@dataclass(frozen=True)
class Call:
    """One call.

    Args:
        seed: that it was drawn with.
        field: the name in FIELDS or BAD_FIELDS.
        choices: the arguments of `odenet.solve`, `y0` among them.
        controls: those of a `PIDController`; None for no controller.
        watch: those of an `Event`; None for no event.
        differentiate: whether a gradient with respect to y0 is asked for.
        bad: the names of the arguments that are bad.
    """

    seed: int
    field: str
    choices: dict[str, Any]
    controls: dict[str, Any] | None = None
    watch: dict[str, Any] | None = None
    differentiate: bool = False
    bad: tuple[str, ...] = field(default_factory=tuple)


def each(rate: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """The field that is this on every leaf."""
    return lambda t, y: _tree.map(lambda leaf: rate(t, leaf), y)


FIELDS = {
    "decay": each(lambda t, y: -0.7 * y),
    "growth": each(lambda t, y: 0.4 * y),
    "saturating": each(lambda t, y: 0.5 * y - 0.2 * y * y),
    "timed": each(lambda t, y: -(0.3 + 0.2 * t) * y),
    "still": each(lambda t, y: 0.0 * y),
}
BAD_FIELDS = {
    "explosion": each(lambda t, y: 40.0 * y * y * y),
    "none": lambda t, y: None,
    "word": lambda t, y: "slope",
    "number": lambda t, y: 1.0,
    "listed": lambda t, y: [y],
    "short": lambda t: t,
    "long": lambda t, y, w: y,
    "raveled": each(lambda t, y: y.reshape(-1)[:1]),
    "nan": each(lambda t, y: y * float("nan")),
    "infinite": each(lambda t, y: y / (0.0 * y)),
    "no function": "decay",
}
CONDITIONS = {
    "half": lambda t, y: t - 0.5,
    "never": lambda t, y: t + 1e3,
    "later": lambda t, y: t - 0.6,
}
BAD_CONDITIONS = {
    "short": lambda t: t,
    "long": lambda t, y, z: t,
    "none": lambda t, y: None,
    "word": lambda t, y: "met",
    "tree": lambda t, y: {"a": t},
    "nan": lambda t, y: t * float("nan"),
    "no function": 3,
}
NAN, INF = float("nan"), float("inf")
BAD_TIMES = (
    NAN,
    INF,
    -INF,
    HUGE,
    -HUGE,
    "a",
    "1.0",
    None,
    b"1",
    1j,
    [1.0],
    (0, 1),
    {},
    np.str_("1"),
    1e308,
    True,
    object(),
)
BAD_STATES = (
    None, "a", np.str_("a"), np.array(["a"]), np.array([None]), HUGE, [HUGE, 1.0], [], {}, (), np.ones(2, int), [True],
    np.ones((2, 0), np.float32), NAN, [1.0, INF], np.array([NAN]), object(), {1: 1.0, "a": 2.0}, np.float16(1),
    np.longdouble(1), np.array(["2020-01-01"], "datetime64[D]"), {1.0, 2.0}, 1e308, b"ab", [np.ones(2), "a"],
    Numbers(np.ones(2), "int32"), Numbers(np.ones(2), "bool"), Numbers(np.ones(2), "float8_e4m3fn"),
    Numbers(np.ones(2), "float8_e5m2"), Numbers(np.ones(2), "uint8"), Numbers(np.ones((0, 3))),
    Numbers(np.array([NAN, 1.0])), Numbers(np.array([INF, 1.0])), Numbers(np.array([3e38, 1.0])),
)  # fmt: skip
BAD = {
    "y0": BAD_STATES,
    "t0": BAD_TIMES,
    "t1": BAD_TIMES,
    "steps": (0, -3, 2.5, True, "4", 10**30, HUGE, NAN, [4], 4.0, np.float64(4), np.str_("4"), 2**31, 2**63, {}),
    "ts": ("a", "", [], [[0.0, 1.0]], [1.0, 0.0], [5e5], [NAN], [INF], [HUGE], ["a"], [None], 3j, {}, np.str_("every")),
    "solver": ("", 0, False, 1.5, "eulr", np.str_("nothing"), b"euler", "euler:", "rk4 ", ["rk4"], {}, object()),
    "gradient": ("", 0, False, None, "backprob", np.str_("x"), "checkpoint:", "checkpoint:states=0", ":", b"backprop",
                 "checkpoint:states=1e400", f"checkpoint:segments={10**30}", "discrete-adjoint:tolerance=nan"),
    "rtol": (-1.0, NAN, INF, HUGE, "a", np.str_("1e-3"), b"1", 1j, True, [], {}, [1e-3, 1e-3, 1e-3], object()),
    "atol": (-1.0, NAN, INF, HUGE, "a", np.str_("1e-3"), 1j, False, [[]], (1e-3, "a"), object()),
    "control": ("a", 0, False, {}, odenet.PIDController),
    "event": (0, False, "", "t", [], {}),
    "dense": ("yes", 2, [], NAN),
}  # fmt: skip
BAD_CONTROLS = {
    "jump_t": ("a", ["a"], [NAN], [HUGE], 3, [None], [[0.5]], {0.5: 1}, "0.5"),
    "step_t": ("a", [INF], [HUGE], 0.5, [1j], [np.str_("a")]),
    "first_step": (0, -1.0, NAN, INF, HUGE, "a", True, [0.1], 1e-300),
    "min_step": (0, -1.0, NAN, HUGE, "a", 1e300),
    "max_step": (0, -1.0, NAN, "a", 1e-300),
    "max_steps": (0, -1, 2.5, HUGE, "a", True, 10**30, None, 1),
    "norm": ("", 0, "l2", np.str_("a"), False, None),
    "safety": (0, 2.0, "a", HUGE, NAN),
    "factor_max": (0.5, "a", HUGE, NAN, INF),
    "pcoeff": (-1, "a", HUGE, NAN, 1j),
    "throw": (1, "no", None),
    "per_sample": (1, "no"),
}
BAD_WATCHES = {"direction": (2, "up", 0.5, None, HUGE, True), "tolerance": (0, -1, NAN, "a", HUGE, INF)}


def calls(seed: int, count: int) -> Iterator[Call]:
    """Calls with the seeds `seed`, ..., `seed + count - 1`: each can be drawn again alone."""
    for number in range(seed, seed + count):
        yield call(number)


def call(seed: int) -> Call:
    """The call of a seed."""
    draw = random.Random(seed)
    dtype = draw.choice((*FLOATS, "float32", "float32"))
    y0 = _state(draw, dtype)
    reverse = draw.random() < 0.2
    first = draw.choice((0.0, 0.0, -0.5, 0, 1.25))
    span = draw.choice((1.0, 0.5, 1.0, 2.0, 0.0))
    choices: dict[str, Any] = {"y0": y0, "t0": first, "t1": first - span if reverse else first + span}
    name, controls, watch = draw.choice(tuple(FIELDS)), None, None
    choices["gradient"] = draw.choice(("backprop", "backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint"))
    if draw.random() < 0.6:
        choices |= {"steps": draw.choice((1, 2, 5, 8, np.int64(4))), "solver": draw.choice((*SOLVERS, None))}
        choices["ts"] = draw.choice((None, None, "all", [choices["t1"]], [choices["t0"], choices["t1"]]))
    else:
        choices |= {"rtol": draw.choice((1e-3, 1e-4, 1e-5)), "solver": draw.choice(("bosh3", "dopri5", "tsit5", None))}
        choices["atol"] = draw.choice((None, 1e-6, 1e-4))
        middle = (choices["t0"] + choices["t1"]) / 2
        choices["ts"] = draw.choice((None, None, "all", [choices["t1"]], [middle, choices["t1"]], [middle, middle]))
        choices["dense"] = draw.random() < 0.1
        if draw.random() < 0.4:
            controls = draw.choice(({}, {"jump_t": [middle]}, {"max_step": 0.1}, {"first_step": 0.05}, {"norm": "max"}))
        if draw.random() < 0.2:
            watch = {"condition": draw.choice(tuple(CONDITIONS)), "direction": draw.choice((0, 0, 1, -1))}
    drawn = Call(seed, name, choices, controls, watch, draw.random() < 0.25)
    for _ in range(draw.choice((0, 0, 1, 1, 1, 2))):
        drawn = _spoiled(draw, drawn)
    return drawn


def _state(draw: random.Random, dtype: str) -> Any:
    """A good state: an array, a number, or a tree of arrays of one number type."""

    def leaf() -> Numbers:
        shape = draw.choice(((), (1,), (3,), (2, 2)))
        values = np.array([draw.uniform(0.3, 1.6) for _ in range(int(np.prod(shape)))]).reshape(shape)
        return Numbers(values * (1 - 0.5j) if dtype.startswith("complex") else values, dtype)

    shape = draw.choice(("array", "array", "array", "tuple", "dict", "nested"))
    return {
        "array": leaf,
        "tuple": lambda: (leaf(), leaf()),
        "dict": lambda: {"q": leaf(), "p": leaf()},
        "nested": lambda: [leaf(), {"a": (leaf(),)}],
    }[shape]()


def _spoiled(draw: random.Random, drawn: Call) -> Call:
    """The call with one bad argument more."""
    made = {**vars(drawn), "choices": dict(drawn.choices)}
    kinds = ["argument"] * 6 + ["field", "field", "condition", "control", "control", "watch"]
    kind = draw.choice(kinds)
    if kind == "field":
        name = made["field"] = draw.choice(tuple(BAD_FIELDS))
    elif kind == "condition":
        name = draw.choice(tuple(BAD_CONDITIONS))
        made["watch"] = {"condition": name}
    elif kind == "argument":
        name = draw.choice(tuple(BAD))
        made["choices"][name] = draw.choice(BAD[name])
    else:
        table, place = (BAD_CONTROLS, "controls") if kind == "control" else (BAD_WATCHES, "watch")
        name = draw.choice(tuple(table))
        made[place] = {**({"condition": "half"} if kind == "watch" else {}), **(made[place] or {})}
        made[place][name] = draw.choice(table[name])
    if kind in ("condition", "control", "watch") and "steps" in made["choices"] and draw.random() < 0.8:
        for fixed in ("steps", "ts", "solver"):
            made["choices"].pop(fixed, None)
        made["choices"]["rtol"] = 1e-3
    return Call(**{**made, "bad": (*drawn.bad, f"{kind} {name}")})
