"""DETEST: the 25 problems by which Hull, Enright, Fellen and Sedgwick compared codes in 1972, all from t = 0 to 20.

A: one equation. B: small systems. C: moderate systems, up to 51 equations. D: an orbit of growing eccentricity. E:
equations of higher order. The tests hold them against the end points of Enright and Pryce 1987, "Two FORTRAN packages
for assessing initial value methods" (NSDTST).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from odenet._test_problems.detest_systems import PLANETS, PULLS, births, decays, heat, matrix, planets
from odenet._test_problems.reference import TestProblem

SOURCE = "Hull, Enright, Fellen, Sedgwick 1972"
_UNIT = cmath.exp(1j)  # cos t is the real part of its power t, and powers are what fields are written with
_FORCE = cmath.exp(2.78535j)


def _problem(name: str, summary: str, field: Callable[..., Any], y0: Any, steps: int, **rest: Any) -> TestProblem:
    whole = f"{SOURCE}, problem {name.upper()}"
    return TestProblem(f"detest-{name}", summary, whole, field, y0, t1=20.0, steps=steps, **rest)


def _spiral(t: float) -> float:
    """A5 is `r = 4 exp(pi/2 - theta)` in polar coordinates; theta by bisection."""
    low, high = -math.pi / 4, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        if 4 * math.exp(math.pi / 2 - middle) * math.cos(middle) > t:
            low = middle
        else:
            high = middle
    return 4 * math.exp(math.pi / 2 - low) * math.sin(low)


A1 = _problem("a1", "exponential decay", lambda t, y: -y, 1.0, 512, solution=lambda t: math.exp(-t))
A2 = _problem(
    "a2", "a special case of Riccati's equation", lambda t, y: -(y**3) / 2, 1.0, 512, solution=lambda t: (1 + t) ** -0.5
)
A3 = _problem(
    "a3",
    "an oscillating coefficient: y' = y cos t",
    lambda t, y: y * (_UNIT**t).real,
    1.0,
    256,
    solution=lambda t: math.exp(math.sin(t)),
    autonomous=False,
)
A4 = _problem(
    "a4",
    "a logistic curve",
    lambda t, y: y / 4 * (1 - y / 20),
    1.0,
    64,
    solution=lambda t: 20 / (1 + 19 * math.exp(-t / 4)),
)
A5 = _problem("a5", "a spiral", lambda t, y: (y - t) / (y + t), 4.0, 256, solution=_spiral, autonomous=False)

B1 = _problem(
    "b1",
    "two populations in conflict",
    lambda t, y: (2 * (y[0] - y[0] * y[1]), -(y[1] - y[0] * y[1])),
    (1.0, 3.0),
    2048,
    orbit=True,
)
B2 = _problem(
    "b2",
    "a linear chemical reaction",
    lambda t, y: (-y[0] + y[1], y[0] - 2 * y[1] + y[2], y[1] - y[2]),
    (2.0, 0.0, 1.0),
    64,
    solution=lambda t: tuple(
        1 + s * math.exp(-t) / 2 + u * math.exp(-3 * t) / 2 for s, u in ((1, 1), (0, -2), (-1, 1))
    ),
)
B3 = _problem(
    "b3",
    "a nonlinear chemical reaction",
    lambda t, y: (-y[0], y[0] - y[1] ** 2, y[1] ** 2),
    (1.0, 0.0, 0.0),
    128,
)


def _torus(t: Any, y: Any) -> Any:
    distance = (y[0] ** 2 + y[1] ** 2) ** 0.5
    return -y[1] - y[0] * y[2] / distance, y[0] - y[1] * y[2] / distance, y[0] / distance


def _rigid_body(t: float) -> tuple[float, ...]:
    from scipy.special import ellipj

    return tuple(float(part) for part in ellipj(t, 0.51)[:3])


B4 = _problem("b4", "the integral surface of a torus", _torus, (3.0, 0.0, 0.0), 1024)
B5 = _problem(
    "b5",
    "Euler's equations of a rigid body without external forces",
    lambda t, y: (y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]),
    (0.0, 1.0, 1.0),
    512,
    solution=_rigid_body,
)


def _linear(
    name: str, summary: str, entries: list[list[float]], steps: int, solution: Callable[[float], Any]
) -> TestProblem:
    y0 = [1.0] + [0.0] * (len(entries) - 1)
    return _problem(name, summary, lambda t, y, w: w @ y, y0, steps, weights=entries, solution=solution)


C1 = _linear(
    "c1",
    "a radioactive decay chain, 10 equations",
    matrix(10, lambda i: -1.0 if i < 9 else 0.0, lambda i: 1.0, 0.0),
    64,
    decays,
)
C2 = _linear(
    "c2",
    "another radioactive decay chain, with rates from 1 to 9",
    matrix(10, lambda i: -(i + 1.0) if i < 9 else 0.0, lambda i: float(i), 0.0),
    256,
    births,
)
C3 = _linear(
    "c3",
    "the heat equation on 10 points",
    matrix(10, lambda i: -2.0, lambda i: 1.0, 1.0),
    64,
    heat(10),
)
C4 = _linear(
    "c4",
    "the heat equation on 51 points",
    matrix(51, lambda i: -2.0, lambda i: 1.0, 1.0),
    64,
    heat(51),
)

C5 = _problem("c5", "the five outer planets, from the sun", planets, PLANETS, 64, weights=PULLS)


def _orbit(t: Any, y: Any) -> Any:
    place, velocity = y
    return velocity, -place / (place @ place) ** 1.5


@dataclass(frozen=True)
class _Ellipse:
    """The orbit of an eccentricity by Kepler's equation `u - e sin u = t`, by Newton's method."""

    e: float

    def __call__(self, t: float) -> tuple[list[float], list[float]]:
        e = self.e
        u = t + e * math.sin(t)
        for _ in range(60):
            u -= (u - e * math.sin(u) - t) / (1 - e * math.cos(u))
        minor, distance = math.sqrt(1 - e * e), 1 - e * math.cos(u)
        place = [math.cos(u) - e, minor * math.sin(u)]
        return place, [-math.sin(u) / distance, minor * math.cos(u) / distance]


D1, D2, D3, D4, D5 = (
    _problem(
        f"d{k}", f"an orbit of eccentricity {e}", _orbit, _Ellipse(e)(0.0), steps, solution=_Ellipse(e), period=math.tau
    )
    for k, e, steps in ((1, 0.1, 1024), (2, 0.3, 1024), (3, 0.5, 2048), (4, 0.7, 8192), (5, 0.9, 32768))
)


def _bessel(t: float) -> tuple[float, float]:
    s, scale = t + 1, math.sqrt(2 / math.pi)
    return scale * math.sin(s) / math.sqrt(s), scale * (math.cos(s) / math.sqrt(s) - math.sin(s) / (2 * s**1.5))


_FALL = math.sqrt(0.032 * 0.4)
E1 = _problem(
    "e1",
    "Bessel's equation of order 1/2, from 1",
    lambda t, y: (y[1], -(y[1] / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * y[0])),
    _bessel(0.0),
    512,
    solution=_bessel,
    autonomous=False,
)
E2 = _problem(
    "e2",
    "van der Pol's oscillator",
    lambda t, y: (y[1], (1 - y[0] ** 2) * y[1] - y[0]),
    (2.0, 0.0),
    1024,
    orbit=True,
)
E3 = _problem(
    "e3",
    "Duffing's oscillator, driven",
    lambda t, y: (y[1], y[0] ** 3 / 6 - y[0] + 2 * (_FORCE**t).imag),
    (0.0, 0.0),
    512,
    autonomous=False,
)
E4 = _problem(
    "e4",
    "a body falls through air",
    lambda t, y: (y[1], 0.032 - 0.4 * y[1] ** 2),
    (30.0, 0.0),
    64,
    solution=lambda t: (30 + math.log(math.cosh(_FALL * t)) / 0.4, math.sqrt(0.08) * math.tanh(_FALL * t)),
)
E5 = _problem(
    "e5",
    "a dog pursues its master in a straight line",
    lambda t, y: (y[1], (1 + y[1] ** 2) ** 0.5 / (25 - t)),
    (0.0, 0.0),
    64,
    solution=lambda t: (
        (25 * math.log(25 / (25 - t)) - (25 * t - t * t / 2) / 25) / 2,
        (25 / (25 - t) - (25 - t) / 25) / 2,
    ),
    autonomous=False,
)

DETEST = {problem.name: problem for problem in list(globals().values()) if isinstance(problem, TestProblem)}
