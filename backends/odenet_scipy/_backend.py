"""The verbs of the SciPy backend: `solve` alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from odenet import Backend, DeviceUnavailableError, DtypeError, Problem, Solution, Span, UnsupportedError
from odenet.kit import shown
from odenet_scipy._entry import backend
from odenet_scipy._solve import solve_span

_DTYPES = ("float64", "float32", "complex128", "complex64")


class ScipyBackend(Backend):
    """odenet's `solve` on SciPy."""

    def solve(self, problem: Problem) -> Solution:
        backend.require(problem.solver, problem.gradient, adaptive=isinstance(problem.grid, Span))
        assert isinstance(problem.grid, Span)
        return solve_span(problem, problem.grid)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return np.asarray(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype: str, device: str) -> Iterator[None]:
        if dtype not in _DTYPES:
            raise DtypeError(f"dtype {shown(dtype)}", ", ".join(_DTYPES))
        if device not in self.devices():
            raise DeviceUnavailableError(f"scipy sees no device {shown(device)}", "cpu")
        yield

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def value_and_grad(self, loss: Any, problem: Problem) -> NoReturn:
        """Raises UnsupportedError: SciPy has no gradients."""
        raise UnsupportedError("gradients on backend scipy", "solve", "take backend='torch' or 'jax'")
