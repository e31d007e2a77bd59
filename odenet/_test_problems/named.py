"""Named initial value problems with known solutions. A new one is one more `TestProblem` below: `odenet list`, `odenet
solve` and the tests have it at once. DETEST is in `detest.py`, what is stiff in `stiff.py`.

Over 250 lines: a list of problems, each of about ten lines.
"""

from __future__ import annotations

import cmath
import math
from typing import Any

from odenet._names import lookup
from odenet._test_problems.detest import DETEST
from odenet._test_problems.reference import TestProblem
from odenet._test_problems.stiff import STIFF

DECAY = TestProblem(
    "decay",
    "exponential decay y' = -y",
    "Dahlquist 1963, the test equation",
    lambda t, y: -y,
    1.0,
    t1=2.0,
    steps=64,
    solution=lambda t: math.exp(-t),
)
GAUSSIAN = TestProblem(
    "gaussian",
    "y' = -2 t y, linear with a coefficient that depends on time",
    "separable; y = exp(-t^2)",
    lambda t, y: -2 * t * y,
    1.0,
    t1=1.0,
    steps=64,
    solution=lambda t: math.exp(-t * t),
    autonomous=False,
)
ARCTANGENT = TestProblem(
    "arctangent",
    "y' = 4 / (1 + t^2): a quadrature; y(1) is pi",
    "y = 4 arctan(t)",
    lambda t, y: 4 / (1 + t * t) + 0 * y,  # 0 y: the shape and number type of the state
    0.0,
    t1=2.0,  # not 1, where y' is so symmetric that Simpson's rule, which is rk4 here, has order 6
    steps=64,
    solution=lambda t: 4 * math.atan(t),
    autonomous=False,
)
_POPULATIONS = [0.1, 0.5, 1.5]
LOGISTIC = TestProblem(
    "logistic",
    "logistic growth y' = y (1 - y) from three populations at once",
    "Verhulst 1838",
    lambda t, y: y * (1 - y),
    _POPULATIONS,
    t1=4.0,
    steps=64,
    solution=lambda t: [p / (p + (1 - p) * math.exp(-t)) for p in _POPULATIONS],
)
ROTATION = TestProblem(
    "rotation",
    "y' = 3i y, a complex state on the unit circle",
    "Dahlquist 1963, the test equation on the imaginary axis",
    lambda t, y: 3j * y,
    1 + 0j,
    t1=2.0,
    steps=128,
    solution=lambda t: cmath.exp(3j * t),
    period=2 * math.pi / 3,
    orbit=True,
)
OSCILLATOR = TestProblem(
    "oscillator",
    "harmonic oscillator q' = p, p' = -q, one period",
    "Hairer, Lubich, Wanner, Geometric Numerical Integration, section I.1",
    lambda t, y: (y[1], -y[0]),
    (1.0, 0.0),
    t1=2 * math.pi,
    steps=256,
    solution=lambda t: (math.cos(t), -math.sin(t)),
    period=2 * math.pi,
    orbit=True,
)

_CHAIN = ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0), (-2.0, 1.0, -0.3, 0.1), (1.0, -2.0, 0.1, -0.3))
_CHAIN_START = (1.0, 0.0, 0.0, 0.0)


def _chain(t: Any, y: Any) -> Any:
    return tuple(sum(entry * leaf for entry, leaf in zip(row, y, strict=True) if entry) for row in _CHAIN)


def _chain_solution(t: float) -> tuple[float, ...]:
    import numpy as np
    from scipy.linalg import expm

    return tuple((expm(np.asarray(_CHAIN) * t) @ np.asarray(_CHAIN_START)).tolist())


CHAIN = TestProblem(
    "chain",
    "two masses on three springs with friction: a damped linear system y' = A y, 4 x 4",
    "Landau, Lifshitz, Mechanics, sections 23 and 25; y = exp(A t) y0",
    _chain,
    _CHAIN_START,
    t1=8.0,
    steps=256,
    solution=_chain_solution,
)
LOTKA_VOLTERRA = TestProblem(
    "lotka-volterra",
    "predators and prey: a closed orbit around (1, 2)",
    "Lotka 1925, Volterra 1926; Hairer, Lubich, Wanner, Geometric Numerical Integration, eq. I.1.1",
    lambda t, y: {
        "predators": y["predators"] * (y["prey"] - 2),
        "prey": y["prey"] * (1 - y["predators"]),
    },
    {"predators": 2.0, "prey": 2.0},
    t1=5.0,
    steps=256,
    orbit=True,
)
VAN_DER_POL = TestProblem(
    "van-der-pol",
    "van der Pol's oscillator, mild (mu = 1): onto its limit cycle",
    "van der Pol 1926; Hull, Enright, Fellen, Sedgwick 1972, problem E2",
    lambda t, y: (y[1], (1 - y[0] * y[0]) * y[1] - y[0]),
    (2.0, 0.0),
    t1=10.0,
    steps=1024,
    orbit=True,
)


def _duffing_solution(t: float) -> tuple[float, float]:
    from scipy.special import ellipj

    frequency = math.sqrt(5.0)
    sn, cn, dn, _ = ellipj(frequency * t, 0.4)
    return 2 * float(cn), -2 * frequency * float(sn) * float(dn)


DUFFING = TestProblem(
    "duffing",
    "Duffing's oscillator x'' = -x - x^3 without friction, from x = 2",
    "Duffing 1918; x = 2 cn(sqrt(5) t | 2/5), Digital Library of Mathematical Functions, section 22.13",
    lambda t, y: (y[1], -y[0] - y[0] ** 3),
    (2.0, 0.0),
    t1=5.0,
    steps=512,
    solution=_duffing_solution,
    orbit=True,
)


def _rigid_body_solution(t: float) -> tuple[float, ...]:
    from scipy.special import ellipj

    return tuple(float(part) for part in ellipj(t, 0.51)[:3])


RIGID_BODY = TestProblem(
    "rigid-body",
    "Euler's equations of a rigid body without external forces",
    "Hull, Enright, Fellen, Sedgwick 1972, problem B5; y = (sn, cn, dn)(t | 0.51)",
    lambda t, y: (y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]),
    (0.0, 1.0, 1.0),
    t1=12.0,
    steps=256,
    solution=_rigid_body_solution,
)
LORENZ = TestProblem(
    "lorenz",
    "Lorenz' chaotic system, over a horizon short enough to be predicted",
    "Lorenz 1963: sigma = 10, rho = 28, beta = 8/3",
    lambda t, y: (10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]),
    (1.0, 1.0, 1.0),
    t1=2.0,
    steps=1024,
)
BRUSSELATOR = TestProblem(
    "brusselator",
    "an oscillating chemical reaction",
    "Lefever, Nicolis 1971; Hairer, Norsett, Wanner I, eq. II.4.15",
    lambda t, y: (1 + y[0] * y[0] * y[1] - 4 * y[0], 3 * y[0] - y[0] * y[0] * y[1]),
    (1.5, 3.0),
    t1=20.0,
    steps=2048,
    orbit=True,
)
FITZHUGH_NAGUMO = TestProblem(
    "fitzhugh-nagumo",
    "a nerve cell that fires: fast voltage v, slow recovery w",
    "FitzHugh 1961; Nagumo, Arimoto, Yoshizawa 1962: a = 0.7, b = 0.8, epsilon = 0.08, current 0.5",
    lambda t, y: {
        "v": y["v"] - y["v"] ** 3 / 3 - y["w"] + 0.5,
        "w": 0.08 * (y["v"] + 0.7 - 0.8 * y["w"]),
    },
    {"v": -1.0, "w": 1.0},
    t1=40.0,
    steps=1024,
    orbit=True,
)
_ECCENTRICITY = 0.5


def _kepler(t: Any, y: Any) -> Any:
    x, z, vx, vz = y
    cube = (x * x + z * z) ** 1.5
    return vx, vz, -x / cube, -z / cube


def _kepler_solution(t: float) -> tuple[float, ...]:
    """Kepler's equation `u - e sin u = t` by Newton's method."""
    e, u = _ECCENTRICITY, t
    for _ in range(60):
        u -= (u - e * math.sin(u) - t) / (1 - e * math.cos(u))
    minor, distance = math.sqrt(1 - e * e), 1 - e * math.cos(u)
    return math.cos(u) - e, minor * math.sin(u), -math.sin(u) / distance, minor * math.cos(u) / distance


KEPLER = TestProblem(
    "kepler",
    "a planet on an ellipse of eccentricity 0.5, one period",
    "Hull, Enright, Fellen, Sedgwick 1972, problem D3",
    _kepler,
    (1 - _ECCENTRICITY, 0.0, 0.0, math.sqrt((1 + _ECCENTRICITY) / (1 - _ECCENTRICITY))),
    t1=2 * math.pi,
    steps=1024,
    solution=_kepler_solution,
    period=2 * math.pi,
    orbit=True,
)
_MOON = 0.012277471
_EARTH = 1 - _MOON
_ARENSTORF_PERIOD = 17.0652165601579625588917206249


def _arenstorf(t: Any, y: Any) -> Any:
    x, z, vx, vz = y
    earth = _EARTH / ((x + _MOON) ** 2 + z * z) ** 1.5
    moon = _MOON / ((x - _EARTH) ** 2 + z * z) ** 1.5
    return vx, vz, x + 2 * vz - earth * (x + _MOON) - moon * (x - _EARTH), z - 2 * vx - (earth + moon) * z


ARENSTORF = TestProblem(
    "arenstorf",
    "a satellite on a closed orbit around earth and moon, for high orders and many steps",
    "Arenstorf 1963; Hairer, Norsett, Wanner I, eq. II.0.1",
    _arenstorf,
    (0.994, 0.0, 0.0, -2.00158510637908252240537862224),
    t1=_ARENSTORF_PERIOD,
    steps=24576,
    period=_ARENSTORF_PERIOD,
    orbit=True,
)

PROBLEMS: dict[str, TestProblem] = {
    **{problem.name: problem for problem in list(globals().values()) if isinstance(problem, TestProblem)},
    **DETEST,
    **STIFF,
}


def problem_named(name: str) -> TestProblem:
    """The test problem of that name.

    Raises:
        UnknownNameError: with the nearest names.
    """
    return lookup("problem", name, PROBLEMS)
