"""Fields that call the host for a number (`jax.experimental.io_callback`, `jax.pure_callback`).

A traced program is the same each time it runs, and all that could make it another one is what the host returns: a
counter, a reading, a random number of NumPy.
"""

from __future__ import annotations

from typing import Any

from odenet_jax.field.jumps import subprograms

_CALLS = frozenset(("io_callback", "pure_callback"))


def calls_host(program: Any) -> bool:
    """Whether a program reads what the host returns; one that only tells it something does not."""
    return any(
        (equation.primitive.name in _CALLS and bool(equation.outvars))
        or any(map(calls_host, subprograms(equation.params)))
        for equation in program.eqns
    )
