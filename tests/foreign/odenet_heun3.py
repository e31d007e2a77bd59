"""Heun's third-order method."""

from fractions import Fraction

from odenet import Solver, Tableau

HEUN3 = Solver(
    name="heun3",
    tableau=Tableau(
        a=((), (Fraction(1, 3),), (0, Fraction(2, 3))),
        b=(Fraction(1, 4), 0, Fraction(3, 4)),
        c=(0, Fraction(1, 3), Fraction(2, 3)),
        order=3,
    ),
    summary="Heun's third-order method",
    source="Heun 1900",
)
