"""Compiled programs of solves that are not inside of `jax.jit`, kept between calls.

JAX keeps a loop's program by the identity of the functions that it is made of, and those of a solve close over its
field: new ones at each call. Here a program is kept by what it computes (`field.fingerprint`), and a call that computes
the same as one before runs that one's.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.core import Tracer

from odenet import UnsupportedError
from odenet.kit import require_finite_tree
from odenet_jax.field import trees as trees  # registers

Value = TypeVar("Value")

PROGRAMS = 64
"""The most that are kept, those that ran last: some megabytes each."""


def eager() -> bool:
    """Whether operations run at once. Otherwise a program is being traced around them, which is compiled as a whole;
    or JAX is told to compile nothing."""
    return not jax.config.jax_disable_jit and not isinstance(lax.add(_ONE, _ONE), Tracer)  # pyright: ignore[reportAttributeAccessIssue]


def require_known(name: str, tree: Any) -> None:
    """Raises UnsupportedError where a call that reads numbers of this tree is traced, or the tree is; StateError for a
    tree that holds itself."""
    require_finite_tree(f"what {name} is called with", tree)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
    if traced or not (eager() or jax.config.jax_disable_jit):  # pyright: ignore[reportAttributeAccessIssue]
        raise UnsupportedError(
            f"{name} inside of jax.jit, jax.vmap, jax.grad or another transformation, where arrays hold no numbers",
            "a model and arrays whose numbers are known",
            f"call {name} before the transformed function",
        )


def kept(key: Hashable | None, make: Callable[[], Value]) -> Value:
    """What was made for this key before, or what is made now. Made anew, and not kept, where there is no key.

    What is made must not hold arrays of this call.
    """
    return make() if key is None else _kept(_CacheEntry(key, make)).value()


def compiled(function: Callable[..., Any], key: Hashable | None) -> Callable[..., Any]:
    """The function, compiled where it is kept for a key: to be called with arrays alone."""
    return function if key is None else jax.jit(function)


_ONE = np.float32(1)
_LOCK = threading.RLock()


class _CacheEntry:
    """A key, and what is made for it once."""

    def __init__(self, key: Hashable, make: Callable[[], Any]) -> None:
        self.key = key
        self.hash = hash(key)
        self.make: Callable[[], Any] | None = make
        self.program: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CacheEntry) and self.key == other.key

    def __hash__(self) -> int:
        return self.hash

    def value(self) -> Any:
        """The program, which is made when it is asked for first."""
        with _LOCK:
            if self.make is not None:
                self.program = self.make()
                self.make = None  # it holds the arrays of its call
            return self.program


@functools.lru_cache(maxsize=PROGRAMS)
def _kept(entry: _CacheEntry) -> _CacheEntry:
    return entry
