"""Whether a field jumps where a comparison of its state changes sides, by its values on either side.

`where(u > c, a, b)` may be one function in pieces, as ReLU is, or one that jumps: no operation tells which. So the
field is evaluated along lines through a state, as far as some comparison comes out otherwise. Between two states that
differ in this, the place where it changes is found by halving. A jump changes as much there over a sixteen times as
long a way; at a kink, or on a steep slope, that changes sixteen times as much.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

LEAST = 1e-3
"""The least jump that counts, beside the root mean square of what the field returns."""
COARSE = 0.05
"""The same where it computes in half precision, whose rounding jumps by as much as a hundredth."""
LINES = 3
_FAR = (1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 64.0)
MOST = 16
"""Comparisons that are looked at; a field of more, as of one that loops, counts by these."""
_WIDER = 16
_PARTS = 4


class Place(NamedTuple):
    """Where on the lines, which meet in the state.

    Attributes:
        line: which of `LINES`, each in a direction by chance.
        s: how far from the state, in sizes of it.
    """

    line: int
    s: float


STATE = Place(0, 0.0)
REACH = tuple(Place(n % LINES, sign * far) for n, far in enumerate(_FAR) for sign in (1.0, -1.0))
"""Where comparisons are looked for."""


class Look(Protocol):
    """An evaluation of the field."""

    @property
    def sides(self) -> Sequence[int]:
        """What each comparison found, in their order, as a number that is another one if any of it is."""
        ...

    def change(self, other: Any) -> float:
        """The largest difference to what another one returned, beside its root mean square."""
        ...


Looks = Callable[[Place], Look | None]


def jumps(look: Looks, width: float, *, least: float = LEAST, hidden: bool = False) -> bool:
    """Whether the field was seen to jump where a comparison changes.

    Args:
        look: evaluates at a place; None where the field cannot be evaluated or is not finite.
        width: how closely places are told apart, beside 1.
        least: see `LEAST`.
        hidden: whether there may be comparisons that `look` does not see; what changes most is then looked at.
    """
    look = functools.cache(look)
    start, seen = look(STATE), set[int]()
    if start is None:
        return False
    for place in REACH:
        end = look(place)
        for k in () if end is None else _changed(start, end) - seen:
            seen.add(k)
            by_side = functools.partial(_differ, k)
            if _jumps(look, by_side, STATE._replace(line=place.line), place, width, least):
                return True
        if len(seen) >= MOST or seen.issuperset(range(len(start.sides))):
            break
    return hidden and any(_jumps(look, _larger, *part, width, least) for place in REACH[:2] for part in _parts(place))


def _parts(end: Place) -> list[tuple[Place, Place]]:
    places = [end._replace(s=end.s * n / _PARTS) for n in range(_PARTS + 1)]
    return [*itertools.pairwise(places)]


def _changed(one: Look, other: Look) -> set[int]:
    pairs = zip(one.sides, other.sides, strict=False)  # another branch of a program has others
    return {k for k, (side, there) in enumerate(pairs) if side != there}


def _differ(k: int, near: Look, middle: Look, far: Look) -> bool:
    """Whether it is in the nearer half that comparison k changes."""
    return k in _changed(near, middle)


def _larger(near: Look, middle: Look, far: Look) -> bool:
    """Whether it is there that more changes."""
    return near.change(middle) > middle.change(far)


def _jumps(
    look: Looks, nearer: Callable[[Look, Look, Look], bool], near: Place, far: Place, width: float, least: float
) -> bool:
    """Whether it does between two places, in the half where there is a change, and half of that, and so on."""
    line, width = near.line, width * abs(far.s)
    one, two = look(Place(line, near.s)), look(far)
    while abs(far.s - near.s) > width:
        middle = Place(line, (near.s + far.s) / 2)
        at = look(middle)
        if one is None or at is None or two is None:
            return False
        if nearer(one, at, two):
            far, two = middle, at
        else:
            near, one = middle, at
    more = (far.s - near.s) * (_WIDER - 1) / 2
    before, after = look(Place(line, near.s - more)), look(Place(line, far.s + more))
    if one is None or two is None or before is None or after is None:
        return False
    across = one.change(two)
    return across > least and before.change(after) < _WIDER**0.5 * across
