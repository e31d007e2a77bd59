"""Counting and timing: seconds, bytes, field evaluations and VJPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array


@dataclass
class Counter:
    """Field evaluations and VJPs."""

    f: int = 0
    vjp: int = 0


def counted(field: Callable[..., Any], counter: Counter) -> Callable[..., Any]:
    """The same field, counting its evaluations and VJPs while the compiled program runs, not while it is traced."""

    def add_f(_: Any) -> None:
        counter.f += 1

    def add_vjp(_: Any) -> None:
        counter.vjp += 1

    # the callbacks read a number of the loop, or JAX would take them out of it as loop-invariant

    @jax.custom_vjp
    def tick(x: Array) -> Array:
        jax.debug.callback(add_f, x.ravel()[0])
        return x

    def forward(x: Array) -> tuple[Array, None]:
        jax.debug.callback(add_f, x.ravel()[0])
        return x, None

    def backward(_: None, g: Array) -> tuple[Array]:
        jax.debug.callback(add_vjp, g.ravel()[0])
        return (g,)

    tick.defvjp(forward, backward)

    def wrapped(*arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(field(*arguments))
        return jax.tree.unflatten(structure, [tick(leaves[0]), *leaves[1:]])

    return wrapped


def peak_bytes(compiled: Any) -> tuple[int, str]:
    """Bytes that a compiled program needs beside its arguments: what XLA plans for temporaries and outputs."""
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes, "XLA temporaries and outputs"


def finished(function: Callable[[], object]) -> Callable[[], None]:
    """The function, returning when the device has done its work."""

    def wait() -> None:
        jax.block_until_ready(function())

    return wait
