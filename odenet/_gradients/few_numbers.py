"""Normalisations over very few numbers: what they divide by may be tiny, and so they count as jumps.

A program computes one by its parts: a mean of few numbers is subtracted from them, and their rest divided by the size
of that. Or nothing is subtracted, and something is divided by the size of one number, two or three (`y / |y|`). A
backend tells what its operations are; what follows from that is the same in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from odenet._gradients.certified import channel_axes

MOST = 4
"""Numbers, normalised together, whose spread is too small too often. With GroupNorm and BatchNorm gradients were off
by up to fifty times what the state was off by with 2 of them, by ten with 3 and 4, and by about as much with 8."""
MOST_OF_SIZE = 3
"""The same of numbers from which no mean is taken: their size is as small as the spread of one number more."""
NEAR_ZERO = 0.05
"""A number that is added to a size, and is no larger, does not keep what is divided by it from jumping."""


class Level(NamedTuple):
    """What an array is of the state; of several levels, the largest counts.

    Attributes:
        kind: one of `APART` to `JUMPING`.
        number: of how many numbers each entry is made, where it is of few; a complex one counts as two.
        groups: how often few numbers were put together; infinity where they are too few however often.
    """

    kind: int
    number: int = 0
    groups: float = math.inf


APART, SMOOTH, SIZE, FEW, CENTRED, SPREAD, DIVIDED, JUMPING = (Level(kind) for kind in range(8))
"""No function of the state; one that has no jump that can be seen here; the size, or its square, of few of its numbers;
a sum of few of them; what is left of these without their mean; the size of that; what was divided by one of these
sizes; and a function that jumps."""


def may_vanish(level: Level) -> bool:
    """Whether what is divided by it jumps."""
    return level.kind == SPREAD.kind or (level.kind == SIZE.kind and level.number <= MOST_OF_SIZE)


def divided(by: Level) -> Level:
    """Of what is divided by something that may vanish."""
    return DIVIDED._replace(groups=by.groups)


def sized(number: int, groups: float) -> Level:
    """Of the size of so many numbers.

    Args:
        number: of these.
        groups: how many such sizes there are along rows; infinity for another axis.
    """
    if number > MOST:
        return SMOOTH
    return Level(SIZE.kind, number, groups if number == MOST_OF_SIZE else math.inf)


def subtracted(most: Level, first: Level) -> Level:
    """Of `first - few`, where few is a sum of few numbers.

    Args:
        most: the largest level of both.
        first: of what it is taken from.
    """
    # a mean of squares, less the mean's square, is the spread
    return most._replace(kind=SPREAD.kind if first.kind in (SIZE.kind, FEW.kind) else CENTRED.kind)


def reduced(most: Level, number: int, groups: float, *, parts: int = 1, square: bool, centred: bool) -> Level:
    """Of a sum, a largest or least number, or a sum of products.

    Args:
        most: the largest level of what is summed.
        number: how many numbers are.
        groups: how many sums there are along rows, which are normalised over their last axis; infinity for another one.
        parts: real numbers in each.
        square: whether these are sizes of numbers.
        centred: whether their mean was taken from them.
    """
    if square or most.kind == SIZE.kind:
        return sized(number * max(most.number, parts), groups)
    if number == 1:
        return most
    number *= most.number if most.kind in (FEW.kind, SPREAD.kind) else 1
    if number > MOST:
        return SMOOTH
    return Level((SPREAD if centred else FEW).kind, number, groups if number == MOST else math.inf)


def rows(shapes: Iterable[Sequence[int]]) -> set[int]:
    """How many rows arrays of a state may have.

    4 numbers (3, if no mean is taken from them) that are a whole row are normalised once a row, as in a narrow
    network's layer normalisation, and not in each of many groups.
    """
    return {math.prod(shape) // max(shape[axis], 1) for shape in shapes for axis in channel_axes(len(shape))}
