"""Gradient methods as data: their options, what they cost and what they give.

The backends hold the code, one file each.

A flag spells options behind colons: `discrete-adjoint:correct=no:iterations=2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from odenet._errors import InputError
from odenet._names import boolean, lookup
from odenet._solvers import Solver, solver


@dataclass(frozen=True)
class Cost:
    """What one gradient costs, for N steps of a solver of s stages.

    Args:
        f_forward: field evaluations of the forward pass.
        f_backward: field evaluations of the backward pass beside those that the VJPs contain in backprop.
        vjp: vector-Jacobian products of the field.
        states: states of the size of y kept between forward and backward pass.
    """

    f_forward: int
    f_backward: int
    vjp: int
    states: int


@dataclass(frozen=True)
class Gradient:
    """A gradient method. Its fields are its options; `label` is the spelling that a flag takes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    exactness: ClassVar[str]
    formula: ClassVar[tuple[str, str, str, str]]
    """f forward, f backward, VJPs and states kept, as text for tables."""

    @property
    def label(self) -> str:
        """The name and the options that are not at their default."""
        changed = [
            f"{field.name}={_spell(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ":".join([self.name, *changed])

    def cost(self, solver: Solver, steps: int) -> Cost:
        """The closed form that `benchmarks/` and the conformance tests hold the counters to."""
        raise NotImplementedError


@dataclass(frozen=True)
class Backprop(Gradient):
    """Reverse-mode differentiation through the solver's own operations: exact, and every stage is kept."""

    name = "backprop"
    summary = "differentiate through the solver; the framework keeps every stage"
    exactness = "exact"
    formula = ("N s", "0", "N s", "N")

    def cost(self, solver: Solver, steps: int) -> Cost:
        """See `Cost`."""
        evaluations = steps * solver.stages
        return Cost(evaluations, 0, evaluations, steps)


@dataclass(frozen=True)
class DiscreteAdjoint(Gradient):
    """Run the network backwards: rebuild y[n] from y[n+1], and take the exact VJP of step n at the rebuilt point.

    Sander, Ablin and Peyre 2022, section 4.1, and beyond: the VJP's own forward pass at the predicted point z gives
    D(z), and `y[n] = y[n+1] - D(z)` is one order closer to the true state than z was, at no cost.

    Args:
        correct: take that correction (the default); False is the paper's method.
        iterations: evaluations of the increment that predict z: one reversed step, then `iterations - 1` times
            `z <- y[n+1] - D(z)`. Each gains an order while h Lip(f) < 1.
        predictor: "reverse", the reversed step of the paper.
    """

    correct: bool = True
    iterations: int = 1
    predictor: str = "reverse"

    name = "discrete-adjoint"
    summary = "rebuild each state from the next by running the solver backwards; memory independent of depth"
    exactness = "O(h^p), one order better corrected"
    formula = ("N s", "(m+1) N s", "N s", "1")

    def __post_init__(self) -> None:
        if not isinstance(self.correct, bool):
            raise InputError(f"correct={self.correct!r}", "True or False")
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 1:
            raise InputError(f"iterations={self.iterations!r}", "a whole number, at least 1")
        lookup("predictor", self.predictor, {"reverse": "reverse"})

    def cost(self, solver: Solver, steps: int) -> Cost:
        """See `Cost`."""
        evaluations = steps * solver.stages
        return Cost(evaluations, (self.iterations + 1) * evaluations, evaluations, 1)


@dataclass(frozen=True)
class ContinuousAdjoint(Gradient):
    """Solve the adjoint ODE `a' = -(df/dy)^T a` backwards together with y: the gradient of the limit, not the network.

    Pontryagin 1962; Chen et al. 2018, appendix B. It is O(h^p) away from the network's own gradient, which is a
    result to look at and not an error of the implementation.

    Args:
        solver: of the backward solve; None takes that of the forward solve.
        steps: of the backward solve; None takes as many as the forward solve.
    """

    solver: str | Solver | None = None
    steps: int | None = None

    name = "continuous-adjoint"
    summary = "solve the adjoint ODE backwards; the gradient of the limit ODE"
    exactness = "of the ODE: O(h^p) from the network's"
    formula = ("N s", "M s'", "M s'", "1")

    def __post_init__(self) -> None:
        if self.solver is not None:
            solver(self.solver)
        if self.steps is not None and (
            isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1
        ):
            raise InputError(f"steps={self.steps!r} of the continuous adjoint", "a whole number, at least 1, or None")

    def backward(self, forward: Solver, steps: int) -> tuple[Solver, int]:
        """Solver and step count of the backward solve."""
        return solver(self.solver) if self.solver is not None else forward, self.steps or steps

    def cost(self, solver: Solver, steps: int) -> Cost:
        """See `Cost`."""
        back, backward_steps = self.backward(solver, steps)
        evaluations = backward_steps * back.stages
        return Cost(steps * solver.stages, evaluations, evaluations, 1)


GRADIENTS: dict[str, type[Gradient]] = {kind.name: kind for kind in Gradient.__subclasses__()}
ALIASES = {"adjoint": "continuous-adjoint", "backpropagation": "backprop"}


def gradient(name: str | Gradient) -> Gradient:
    """The method of that name, with options behind colons; a record is returned as it is.

    `gradient("discrete-adjoint:correct=no:iterations=2") == DiscreteAdjoint(correct=False, iterations=2)`.

    Raises:
        UnknownNameError: of a method or an option.
        InputError: an option's value cannot be used.
    """
    if isinstance(name, Gradient):
        return name
    if not isinstance(name, str):
        raise InputError(f"gradient={name!r}", f"a name ({', '.join(GRADIENTS)}) or a record such as DiscreteAdjoint()")
    plain, *given = name.split(":")
    kind = lookup("gradient method", plain, GRADIENTS, ALIASES)
    readers = {field.name: _READERS[str(field.type)] for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} in gradient {name!r}", "option=value", f"options are {', '.join(readers)}")
        reader = lookup(f"option of {kind.name}", key.replace("_", "-"), readers)
        options[key.strip().lower().replace("-", "_")] = reader(value)
    return kind(**options)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{text!r} is no whole number", "digits") from None


_READERS: dict[str, Callable[[str], Any]] = {
    "bool": boolean,
    "int": _whole,
    "int | None": _whole,
    "str": str,
    "str | Solver | None": str,
}


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.name if isinstance(value, Solver) else str(value)
