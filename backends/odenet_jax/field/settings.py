"""What JAX itself is set to while f runs: whether numbers have 64 bits, and how random numbers are drawn.

`with jax.enable_x64(True)` around a solve inside of a loss is over when the loss is differentiated. What the solve
reads of JAX's other settings (the precision of products, say) is part of its program; these two are asked where a
program is traced or compiled, and the backward pass is traced later. What runs again runs under those of its first run.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax


def _with_x64(value: bool) -> Any:
    if not hasattr(jax, "enable_x64"):  # JAX before 0.8
        from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

        return enable_x64(value)
    return jax.enable_x64(value)


_SETTINGS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("jax_enable_x64", _with_x64),
    ("jax_threefry_partitionable", lambda value: jax.threefry_partitionable(value)),
)


class Settings:
    """Those of now."""

    def __init__(self) -> None:
        self.values = _values()

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """While they are JAX's again."""
        with contextlib.ExitStack() as stack:
            for (_, context), value, now in zip(_SETTINGS, self.values, _values(), strict=True):
                if value != now:
                    stack.enter_context(context(value))
            yield

    def kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which runs under them."""

        @functools.wraps(function)
        def under(*arguments: Any) -> Any:
            with self.restored():
                return function(*arguments)

        return under


def _values() -> tuple[Any, ...]:
    return tuple(getattr(jax.config, name) for name, _ in _SETTINGS)
