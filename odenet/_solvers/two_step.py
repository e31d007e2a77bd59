"""Two-step recurrences `x[n+1] = g x[n-1] + (1-g) x[n] + (1+g) h f(x[n])`, undone by solving them for x[n-1].

One evaluation a step, at the start of the step and with its weights, as in a ResNet: g = 0 is Euler's method. The way
back divides by g at every step, so that rounding errors grow by |g|^-N. With states on a grid of whole numbers times
2^-bits nothing is rounded in the backward pass at all: see `TwoStep.bits`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from odenet._errors import InputError, shown
from odenet._solvers.reversible import Back, Forth, Pair, ReversibleSolver
from odenet._solvers.step import Leaves, add, combine, subtract


class TwoStep(ReversibleSolver):  # no dataclass, which would put its `bits` and `guard` before the fields of others
    """What the two-step recurrences share.

    With `bits` every state is a whole number times 2^-bits: y0 and what is added to x[n-1] are rounded to such numbers
    (gradients go straight through the rounding, by every gradient method), and |g| is a power of two. What `g x[n-1]`
    loses are the lowest bits of x[n-1], log2(1/|g|) of each number, which are kept as side information (see `side`).
    x[n-1] is then had back bit by bit, as long as |x| < 2^(24-bits) in float32, 2^(53-bits) in float64.
    """

    evaluations_at_start = 0

    bits: ClassVar[int | None]  # pyright: ignore[reportRedeclaration]
    guard: ClassVar[bool]  # pyright: ignore[reportRedeclaration]
    doubled: ClassVar[bool] = False
    """Whether the state before y0 is y0, too; else there is none, and step 0 is Euler's."""

    @property
    def label(self) -> str:
        """The name and the options that are not at their default, as a flag spells them."""
        options = [(field.name, getattr(self, field.name), field.default) for field in dataclasses.fields(self)]
        return ":".join([self.name, *(f"{name}={_spelled(value)}" for name, value, usual in options if value != usual)])

    @property
    def size(self) -> float:
        """|g|."""
        raise NotImplementedError

    def sign(self, n: Any, sample: Any = 0) -> Any:
        """Of g in step n, which JAX traces; of a sample by its number, or of an array of them."""
        return 1

    def _signs(self, f: Forth | Back, n: Any, x: Leaves) -> Any:
        """Those of g in step n: one number, or where samples have their own a tuple of arrays, one for each leaf."""
        return self.sign(n)

    def _live(self, n: Any, signs: Any) -> Any:
        """The signs, or 0 in step 0 where there is no state before it."""
        if self.doubled:
            return signs
        if isinstance(n, int):
            return signs if n else 0
        return tuple(sign * (n > 0) for sign in signs) if isinstance(signs, tuple) else signs * (n > 0)

    @property
    def reversible(self) -> bool:
        """Where g is not 0."""
        return self.size != 0

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """2 of the midpoint rule, else 1; down to the rounding of states, where there is one."""
        return 2 if self.size == self.sign(1) == 1 else 1

    @property
    def lost(self) -> int:
        """The bits of each number that g times it loses."""
        return round(-math.log2(self.size)) if self.bits is not None and self.size else 0

    @property
    def rounds(self) -> bool:
        """With `bits`."""
        return self.bits is not None

    @property
    def side_bits(self) -> int:
        return 0 if self.bits is None or not self.reversible else self.lost + self.guard

    def start(self, f: Forth, h: float, y0: Leaves) -> Pair:
        """(x[0], x[-1])."""
        x = y0 if self.bits is None else _scaled(f.rounded(_scaled(y0, self.bits)), -self.bits)
        return x, x if self.doubled else combine((0.0, x))

    def step(self, f: Forth, n: int, h: float, steps: int, pair: Pair) -> Pair:
        x, before = pair
        k = f.slope(n, 0.0, x)
        signs = self._live(n, self._signs(f, n, x))
        if self.bits is None:
            return self._next(signs, h, x, before, k), x
        whole = f.rounded(_scaled(self._next(signs, h, x, None, k), self.bits))
        if self.size:
            whole = add(whole, _times(1.0, signs, _halved_up(f, _scaled(before, self.bits), self.lost)))
        return _scaled(whole, -self.bits), x

    def side(self, f: Forth, pair: Pair) -> Leaves:
        """The lowest bits of x[n-1], as a whole number; with `guard` one bit more than the step loses."""
        assert self.bits is not None
        return _remainder(f, _scaled(pair[1], self.bits), self.side_bits)

    def kept(self, pair: Pair) -> Pair:
        """(x[n], x[n-1])."""
        return pair

    def back(self, f: Back, n: int, h: float, steps: int, kept: Pair, g: Pair) -> tuple[Pair, Pair]:
        (after, x, *side), (gx, gbefore) = kept, g
        drawn = self._signs(f, n, x)
        signs = self._live(n, drawn)
        k, part = f.slope(n, 0.0, x, self._push(signs, h, gx))
        others = self._next(signs, h, x, None, k)
        if self.bits is None:
            before = _times(1 / self.size, drawn, subtract(after, others))
        else:
            before = self._whole_before(f, drawn, after, others, side[0] if side else None)
        return (x, before), (add(add(gbefore, self._stay(signs, gx)), part), _times(self.size, signs, gx))

    def _whole_before(self, f: Back, signs: Any, after: Leaves, others: Leaves, side: Leaves | None) -> Leaves:
        """x[n-1] from x[n+1], from what else x[n+1] was made of, and from the side information."""
        assert self.bits is not None
        reached, of_others = _scaled(after, self.bits), _scaled(others, self.bits)
        if side is None:
            whole, low, up = f.rounded(of_others), None, None
        else:
            low, up = side, _halved_up(f, side, self.lost)
            # f may come out otherwise in its last digits when it runs again, and its sum with x so near to a tie that
            # it is rounded to the other side, of which g^-n would be made. The bit more than the step loses tells
            # whether the number that it was rounded to was even, and of those there is one near.
            if self.guard:
                even = subtract(reached, up)  # as even, or odd, as that number
                halves = f.rounded(tuple(leaf / 2 for leaf in subtract(of_others, even)))
                whole = tuple(e + 2 * q for e, q in zip(even, halves, strict=True))
            else:
                whole = f.rounded(of_others)
        kept = _times(1.0, signs, subtract(reached, whole))
        if low is not None and up is not None:
            kept = tuple(2**self.lost * (c - u) + m for c, u, m in zip(kept, up, low, strict=True))
        return _scaled(kept, -self.bits)

    def origin(self, f: Back, h: float, kept: Pair, g: Pair) -> tuple[Leaves, Leaves, Leaves]:
        """Before x[0] there is x[0], too, or nothing."""
        if self.doubled:
            return kept[0], subtract(*kept), add(*g)
        return kept[0], kept[1], g[0]

    def _next(self, signs: Any, h: float, x: Leaves, before: Leaves | None, k: Leaves) -> Leaves:
        """x[n+1]; without the part of x[n-1] where that is None."""
        push = self._push(signs, h, k)
        if isinstance(signs, int):
            factor = self.size * signs
            terms = [(1 - factor, x), *([(factor, before)] if before is not None else [])]
            # 0 times a state that has grown to infinity is not 0
            return combine(*[(by, leaves) for by, leaves in terms if by], (1.0, push))
        total = add(self._stay(signs, x), push)
        return total if before is None else add(total, _times(self.size, signs, before))

    def _stay(self, signs: Any, leaves: Leaves) -> Leaves:
        """(1 - g) times leaves."""
        if isinstance(signs, tuple):
            return subtract(leaves, _times(self.size, signs, leaves))
        return _times(1 - self.size * signs, 1, leaves)

    def _push(self, signs: Any, h: float, leaves: Leaves) -> Leaves:
        """(1 + g) h times slopes, or times what has a cotangent of a slope in it."""
        if isinstance(signs, tuple):
            return combine((h, leaves), (h, _times(self.size, signs, leaves)))
        return _times((1 + self.size * signs) * h, 1, leaves)


def _spelled(value: Any) -> str:
    return (
        {None: "no", False: "no", True: "yes"}[value]
        if value is None or value is False or value is True
        else str(value)
    )


def _scaled(leaves: Leaves, bits: int) -> Leaves:
    """Times 2^bits, without rounding."""
    return tuple(leaf * 2.0**bits for leaf in leaves)


def _times(factor: Any, signs: Any, leaves: Leaves) -> Leaves:
    """Leaves times a number and signs, of which either may be traced; times signs first where leaf by leaf they are
    arrays of the leaf's number type, in which no factor is to be rounded."""
    if isinstance(signs, tuple):
        return combine((factor, tuple(sign * leaf for sign, leaf in zip(signs, leaves, strict=True))))
    factor = factor * signs
    return combine((factor, leaves)) if isinstance(factor, (int, float)) else tuple(factor * leaf for leaf in leaves)


def _halved_up(f: Forth | Back, numbers: Leaves, times: int) -> Leaves:
    """Whole numbers over 2^times, rounded up."""
    return f.rounded(_scaled(numbers, -times), 0.5 - 2.0 ** -(times + 1)) if times else numbers


def _remainder(f: Forth, numbers: Leaves, bits: int) -> Leaves:
    """Whole numbers modulo 2^bits."""
    down = f.rounded(_scaled(numbers, -bits), 2.0 ** -(bits + 1) - 0.5)
    return tuple(leaf - 2.0**bits * floor for leaf, floor in zip(numbers, down, strict=True))


@dataclass(frozen=True)
class Momentum(TwoStep):
    """`v' = g v + (1-g) h f(x)`, `x' = x + v'`, from v = 0: the momentum residual network.

    In x alone it is the two-step recurrence with -g. Sander, Ablin, Blondel and Peyre 2021, "Momentum residual neural
    networks", equation 3.

    Args:
        gamma: g, in (0, 1). The backward pass divides by it at every step.

    Raises:
        InputError: another gamma.
    """

    gamma: float = 0.9

    name = "momentum"
    summary = "momentum residual network: state and velocity, one evaluation a step"
    source = "Sander, Ablin, Blondel, Peyre 2021"
    aliases = ("momentumnet",)
    bits = None
    guard = False
    doubled = True  # v is 0 where x[-1] = x[0]

    def __post_init__(self) -> None:
        number = isinstance(self.gamma, (int, float)) and not isinstance(self.gamma, bool)
        if not (number and 0 < self.gamma < 1):
            raise InputError(f"gamma={shown(self.gamma)} of momentum", "a number above 0, below 1")

    @property
    def size(self) -> float:
        return self.gamma

    def sign(self, n: Any, sample: Any = 0) -> Any:
        return -1
