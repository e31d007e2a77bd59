"""Stiff problems, for implicit solvers: an explicit one needs steps as small as the fastest decay all the way."""

from __future__ import annotations

from typing import Any

from odenet._test_problems.reference import TestProblem


def _robertson(t: Any, y: Any) -> Any:
    gain, back, spent = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return back - gain, gain - back - spent, spent


def _oregonator(t: Any, y: Any) -> Any:
    a, b, c = y
    return 77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)


VAN_DER_POL = TestProblem(
    "stiff-van-der-pol",
    "van der Pol's oscillator with mu = 1000, in the time scale of its cycle",
    "Hairer, Wanner II, eq. IV.1.5' with epsilon = 1e-6; Mazzia, Magherini, Test Set for IVP Solvers",
    lambda t, y: (y[1], 1e6 * ((1 - y[0] ** 2) * y[1] - y[0])),
    (2.0, 0.0),
    t1=2.0,
    steps=1024,
    stiff=True,
)
ROBERTSON = TestProblem(
    "robertson",
    "a chemical reaction whose rates are 0.04, 1e4 and 3e7",
    "Robertson 1966; Hairer, Wanner II, eq. IV.1.4",
    _robertson,
    (1.0, 0.0, 0.0),
    t1=40.0,
    steps=1024,
    stiff=True,
)
OREGONATOR = TestProblem(
    "oregonator",
    "the Belousov-Zhabotinskii reaction: long rests, then pulses",
    "Field, Noyes 1974; Hairer, Wanner II, eq. IV.1.4'; Test Set for IVP Solvers",
    _oregonator,
    (1.0, 2.0, 3.0),
    t1=360.0,
    steps=1024,
    stiff=True,
)

STIFF = {problem.name: problem for problem in (VAN_DER_POL, ROBERTSON, OREGONATOR)}
