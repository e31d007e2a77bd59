"""Versions of jaxlib whose compiler is known to be wrong."""

from __future__ import annotations

import warnings

import jaxlib

# products with a matrix that a compiled function closes over: with 0.10.2 `jax.jit(lambda x: (x @ ones).sum())` is four
# times too small for 1024 rows of 4 numbers, and rows of 3 numbers times any constant matrix are wrong from 16385 on
# (https://github.com/jax-ml/jax/issues/39103). Those with a matrix that is an argument were right wherever we looked
_WRONG = frozenset(("0.10.2",))


def warn(version: str) -> None:
    """Say that this version of jaxlib computes something else than it is told to, if it is known to, on CPUs.

    It is no error: small programs are right, and so are those of GPUs. What device is used is not asked: that would
    set it, before a user may have chosen.
    """
    if version in _WRONG:
        warnings.warn(
            f"jaxlib {version} miscompiles products of many rows with a matrix that a compiled function closes over, "
            "on CPUs: sums of them are several times too small (https://github.com/jax-ml/jax/issues/39103). "
            "What to do: pip install 'jax!=0.10.2' 'jaxlib!=0.10.2'",
            RuntimeWarning,
            stacklevel=2,
        )


def warn_of_this() -> None:
    """The same of the version that is imported."""
    warn(str(vars(jaxlib).get("__version__")))
