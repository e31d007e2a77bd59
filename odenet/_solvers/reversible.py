"""Reversible solvers: each step can be undone exactly, from the state alone, up to rounding.

They carry more than y, and change the forward map. Written once for every backend, the backward pass included: a
backend supplies the evaluation of f in the forward pass, and evaluation and VJP in one in the backward pass (see
`Forth`, `Back`). Cotangents of what is carried are leaves like the state's.
Over 250 lines: three solvers, each with its step, the step back and the cotangents, beside the class that they share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from odenet._check import instance
from odenet._errors import InputError, shown
from odenet._solvers.family import StagedSolver
from odenet._solvers.runge_kutta import EULER, HEUN, Solver
from odenet._solvers.step import Leaves, add, combine
from odenet._solvers.tableau import Tableau

Pair = tuple[Leaves, ...]
"""The state of a reversible solver, as a tuple of leaves; those of y come first."""


class Forth(Protocol):
    """Evaluations in the forward pass."""

    def slope(self, n: int, position: float, y: Leaves, /) -> Leaves:
        """f at `position` in [0, 1] of step n."""
        ...

    def increment(self, n: int, y: Leaves, /, *, reverse: bool = False) -> Leaves:
        """The base solver's increment of step n, or that of one step of size -h from the end of step n."""
        ...

    def rounded(self, y: Leaves, shift: float = 0.0, /) -> Leaves:
        """The whole numbers next to y + shift, of real and imaginary parts; their derivative by y is taken to be 1."""
        ...

    def of_samples(self, number: Callable[[Any], Any], y: Leaves, /) -> Leaves:
        """For each leaf an array to multiply it by: `number` of 0, 1, ... along its first axis, in its number type.

        `number` takes an array of whole numbers and returns one; a leaf without axes has the number of 0.
        """
        ...


class Back(Protocol):
    """The same with a VJP: the value, and the cotangent of y. Those of weights are added up by the backend."""

    def slope(self, n: int, position: float, y: Leaves, cotangent: Leaves, /) -> tuple[Leaves, Leaves]:
        """f as `Forth.slope` gives it, and its VJP with the cotangent."""
        ...

    def increment(self, n: int, y: Leaves, cotangent: Leaves, /, *, reverse: bool = False) -> tuple[Leaves, Leaves]:
        """The increment as `Forth.increment` gives it, and its VJP with the cotangent."""
        ...

    def rounded(self, y: Leaves, shift: float = 0.0, /) -> Leaves:
        """The whole numbers next to y + shift, as `Forth.rounded` gives them, without a derivative."""
        ...

    def of_samples(self, number: Callable[[Any], Any], y: Leaves, /) -> Leaves:
        """For each leaf the numbers of its samples, as `Forth` has it."""
        ...


def bits_in_byte(bits: int) -> int:
    """The bits of a byte that side information of so many bits takes, so that no number is in two bytes: 1, 2, 4, 8."""
    return next(size for size in (1, 2, 4, 8) if size >= bits)


@dataclass(frozen=True)
class ReversibleSolver(StagedSolver):
    """A solver whose steps can be undone. Its fields are its options."""

    name: ClassVar[str]  # pyright: ignore[reportIncompatibleVariableOverride]
    summary: ClassVar[str]  # pyright: ignore[reportIncompatibleVariableOverride]
    source: ClassVar[str]  # pyright: ignore[reportIncompatibleVariableOverride]
    aliases: ClassVar[tuple[str, ...]] = ()  # pyright: ignore[reportIncompatibleVariableOverride]
    family = "reversible"
    evaluations_at_start: ClassVar[int] = 1
    carries: ClassVar[int] = 2
    """Copies of the state that it carries from step to step."""

    @property
    def reversible(self) -> bool:
        """Steps of this family can be undone."""
        return True

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Order of convergence of the solution."""
        return 2

    @property
    def stages(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Field evaluations of one step."""
        return 1

    @property
    def increments(self) -> Tableau:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the Runge-Kutta method whose increments its steps read. It is no tableau of the solver itself, and so is
        not called one."""
        return EULER.tableau  # the two-state methods read single slopes

    def evaluations(self, steps: int) -> int:
        """Field evaluations of a solve."""
        return steps * self.stages + self.evaluations_at_start

    @abstractmethod
    def start(self, f: Forth, h: float, y0: Leaves) -> Pair:
        """The leaves that the method carries at t0."""

    @abstractmethod
    def step(self, f: Forth, n: int, h: float, steps: int, pair: Pair) -> Pair:
        """The leaves that the method carries after step n of `steps`."""

    @property
    def rounds(self) -> bool:
        """Whether states are rounded to a grid, y0 among them."""
        return False

    @property
    def side_bits(self) -> int:
        """Bits of side information that each step keeps of each number of the state; 0 for none."""
        return 0

    def side(self, f: Forth, pair: Pair) -> Leaves:
        """What the step that begins with this pair would lose of it: whole numbers from 0 to below 2^side_bits."""
        raise NotImplementedError

    @abstractmethod
    def kept(self, pair: Pair) -> Pair:
        """The states from which the backward pass starts, twice the size of y."""

    def cotangents(self, g: Leaves, zero: Leaves) -> Pair:
        """Those of what is carried at t1, from that of y(t1)."""
        return (g, zero)

    @abstractmethod
    def back(self, f: Back, n: int, h: float, steps: int, kept: Pair, g: Pair) -> tuple[Pair, Pair]:
        """Undo step n: what is kept, and the cotangents, at its start.

        Where `side_bits` is not 0, `kept` ends with the side information of the step.
        """

    @abstractmethod
    def origin(self, f: Back, h: float, kept: Pair, g: Pair) -> tuple[Leaves, Leaves, Leaves]:
        """At t0: y as recovered, what in it should be zero (the certificate's defect), and the cotangent of y0."""


@dataclass(frozen=True)
class ReversibleHeun(ReversibleSolver):
    """`z' = 2 y - z + h f(z)`, `y' = y + h/2 (f(z) + f(z'))`, one evaluation a step.

    Step n reads its own weights at its end; its start is the evaluation before. Kidger, Foster, Li, Lyons 2021,
    "Efficient and accurate gradients for neural SDEs", algorithm 1.
    """

    name = "reversible-heun"
    summary = "reversible Heun: two coupled states, one evaluation a step"
    source = "Kidger, Foster, Li, Lyons 2021"
    aliases = ("revheun",)
    carries = 3

    def start(self, f: Forth, h: float, y0: Leaves) -> Pair:
        """The triple (y, z, h/2 f(z)), of which z is the second state."""
        return y0, y0, combine((h / 2, f.slope(0, 0.0, y0)))

    def step(self, f: Forth, n: int, h: float, steps: int, pair: Pair) -> Pair:
        y, z, k = pair
        half = add(y, k)
        z = combine((2.0, half), (-1.0, z))
        k = combine((h / 2, f.slope(n, 1.0, z)))
        return add(half, k), z, k

    def kept(self, pair: Pair) -> Pair:
        """(y + h/2 f(z), z): the slope is evaluated again where its VJP is taken, and then y is known."""
        y, z, k = pair
        return add(y, k), z

    def cotangents(self, g: Leaves, zero: Leaves) -> Pair:
        """The initial cotangents of y, z and the slope, from g, the cotangent of the final y."""
        return g, zero, zero

    def back(self, f: Back, n: int, h: float, steps: int, kept: Pair, g: Pair) -> tuple[Pair, Pair]:
        (half, z), (gy, gz, gk) = kept, g
        slope, part = f.slope(n, 1.0, z, combine((1.0, gk), (h / 2, gy)))
        k = combine((h / 2, slope))
        half = combine((1.0, half), (-2.0, k))
        gz = add(gz, part)
        gy = combine((1.0, gy), (2.0, gz))
        return (half, combine((2.0, half), (-1.0, z))), (gy, combine((-1.0, gz)), combine((h / 2, gy)))

    def origin(self, f: Back, h: float, kept: Pair, g: Pair) -> tuple[Leaves, Leaves, Leaves]:
        """y and z start equal, so that how they differ at t0 is what rounding left."""
        (half, z), (gy, gz, gk) = kept, g
        k, part = f.slope(0, 0.0, z, gk)
        y = combine((1.0, half), (-h / 2, k))
        return y, combine((1.0, y), (-1.0, z)), combine((1.0, gy), (1.0, gz), (1.0, part))


@dataclass(frozen=True)
class AsynchronousLeapfrog(ReversibleSolver):
    """State and slope leap over each other: `p = y + h/2 v`, `v' = 2 f(p) - v`, `y' = p + h/2 v'`.

    Mutze 2013; Zhuang et al. 2021, "MALI: a memory efficient and reverse accurate integrator for neural ODEs".
    """

    name = "alf"
    summary = "asynchronous leapfrog (MALI): state and slope, one evaluation a step"
    source = "Mutze 2013; Zhuang et al. 2021"
    aliases = ("asynchronous-leapfrog", "mali")

    def start(self, f: Forth, h: float, y0: Leaves) -> Pair:
        """(y, h/2 v) with v = f(y0)."""
        return y0, combine((h / 2, f.slope(0, 0.0, y0)))

    def step(self, f: Forth, n: int, h: float, steps: int, pair: Pair) -> Pair:
        y, v = pair
        p = add(y, v)
        v = combine((h, f.slope(n, 0.5, p)), (-1.0, v))
        return add(p, v), v

    def kept(self, pair: Pair) -> Pair:
        """The pair (y, h/2 v), v being the second state."""
        return pair

    def back(self, f: Back, n: int, h: float, steps: int, kept: Pair, g: Pair) -> tuple[Pair, Pair]:
        (y, v), (gy, gv) = kept, g
        p = combine((1.0, y), (-1.0, v))
        gv = add(gv, gy)
        u, part = f.slope(n, 0.5, p, combine((h, gv)))
        v = combine((h, u), (-1.0, v))
        gy = add(gy, part)
        return (combine((1.0, p), (-1.0, v)), v), (gy, combine((1.0, gy), (-1.0, gv)))

    def origin(self, f: Back, h: float, kept: Pair, g: Pair) -> tuple[Leaves, Leaves, Leaves]:
        """v starts as f(y0), so that how it differs from that at t0 is what rounding left."""
        (y, v), (gy, gv) = kept, g
        k, part = f.slope(0, 0.0, y, combine((h / 2, gv)))
        return y, combine((1.0, v), (-h / 2, k)), add(gy, part)


@dataclass(frozen=True)
class Coupled(ReversibleSolver):
    """Any explicit Runge-Kutta method made reversible: with its increment Psi and the coupling l,

    `y' = l y + (1 - l) z + Psi_h(z)`, `z' = z - Psi_-h(y')`.

    McCallum and Foster 2024, "Efficient, accurate and stable gradients for neural ODEs", definition 3.1. The backward
    pass divides by l at every step, so that rounding errors grow by l^-N. The default ties l to N.

    Args:
        solver: the method.
        coupling: l in (0, 1]; None is 1 - 1/N (at least 1/2), so that rounding errors grow by about e over the whole
            way, whatever N.

    Raises:
        InputError: another coupling, or something else in the place of the solver.
    """

    solver: Solver = HEUN
    coupling: float | None = None

    name = "reversible"
    summary = "a Runge-Kutta method made reversible, as in reversible:rk4 or reversible:heun:coupling=0.99"
    source = "McCallum, Foster 2024"
    evaluations_at_start = 0

    def __post_init__(self) -> None:
        instance("solver", self.solver, Solver, "a record of a Runge-Kutta method, as in odenet.solver('rk4')")
        number = isinstance(self.coupling, (int, float)) and not isinstance(self.coupling, bool)
        if self.coupling is not None and not (number and 0 < self.coupling <= 1):
            raise InputError(f"coupling={shown(self.coupling)} of a reversible solver", "a number in (0, 1], or None")

    @property
    def label(self) -> str:
        """The name with its options, as a flag spells it."""
        coupling = "" if self.coupling is None else f":coupling={self.coupling}"
        return f"{self.name}:{self.solver.name}{coupling}"

    @property
    def order(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The order of the coupled method."""
        return self.solver.order

    @property
    def stages(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Evaluations of f a step, which takes two increments."""
        return 2 * self.solver.stages

    @property
    def increments(self) -> Tableau:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The tableau of the coupled method's increments."""
        return self.solver.tableau

    def coupled(self, steps: int) -> float:
        """The coupling parameter l for so many steps."""
        return self.coupling if self.coupling is not None else max(0.5, 1 - 1 / steps)

    def start(self, f: Forth, h: float, y0: Leaves) -> Pair:
        """The pair (y, z) at t0, two equal states."""
        return y0, y0

    def step(self, f: Forth, n: int, h: float, steps: int, pair: Pair) -> Pair:
        (y, z), c = pair, self.coupled(steps)
        y = add(combine((c, y), (1 - c, z)), f.increment(n, z))
        return y, combine((1.0, z), (-1.0, f.increment(n, y, reverse=True)))

    def kept(self, pair: Pair) -> Pair:
        """The pair (y, z) that the backward pass starts from."""
        return pair

    def back(self, f: Back, n: int, h: float, steps: int, kept: Pair, g: Pair) -> tuple[Pair, Pair]:
        (y, z), (gy, gz), c = kept, g, self.coupled(steps)
        d, part = f.increment(n, y, combine((-1.0, gz)), reverse=True)
        z, gy = add(z, d), add(gy, part)
        d, part = f.increment(n, z, gy)
        y = combine((1 / c, y), (-(1 - c) / c, z), (-1 / c, d))
        return (y, z), (combine((c, gy)), combine((1.0, gz), (1 - c, gy), (1.0, part)))

    def origin(self, f: Back, h: float, kept: Pair, g: Pair) -> tuple[Leaves, Leaves, Leaves]:
        """y and z start equal, so that how they differ at t0 is what rounding left."""
        (y, z), (gy, gz) = kept, g
        return y, combine((1.0, y), (-1.0, z)), add(gy, gz)


REVERSIBLE_SOLVERS: dict[str, ReversibleSolver] = {
    record.name: record for record in (ReversibleHeun(), AsynchronousLeapfrog(), Coupled())
}
