"""Which equations of a program do anything: what `jax.experimental.checkify` counts its errors by is another number at
each trace, and nothing that a program computes depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import Literal

Live = tuple[Any, Sequence[Any], Sequence[bool]]
"""An equation, what it reads, and which of its results are read."""


def live(program: Any, read: Sequence[bool] | None = None) -> list[Live]:
    """The equations of a jaxpr that have an effect, or a result that is read, in their order.

    Args:
        program: a jaxpr.
        read: which of its results are; None for all.
    """
    results = program.outvars
    wanted = set(_variables(results if read is None else [v for v, one in zip(results, read, strict=True) if one]))
    lines: list[Live] = []
    for equation in reversed(program.eqns):
        kept = [variable in wanted for variable in equation.outvars]
        if not (any(kept) or equation.effects):
            continue
        operands = _of_check(equation) if is_check(equation) else equation.invars
        wanted.update(_variables(operands))
        lines.append((equation, operands, kept))
    return lines[::-1]


def is_check(equation: Any) -> bool:
    """Whether it is `checkify.check`, whose parameters hold the trace back of the call."""
    return equation.primitive.name == "check" and "err_tree" in equation.params


def _of_check(equation: Any) -> list[Any]:
    """What is checked, and what the message shows; without the numbers of the errors."""
    counts = [part.num_leaves for part in equation.params["err_tree"].children()]
    if len(counts) != 3:  # of another JAX: predicates, numbers, payloads
        return equation.invars
    return [*equation.invars[: counts[0]], *equation.invars[counts[0] + counts[1] :]]


def _variables(values: Sequence[Any]) -> Iterator[Any]:
    return (value for value in values if not isinstance(value, Literal))
