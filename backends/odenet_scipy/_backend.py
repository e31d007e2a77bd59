"""The verbs of the SciPy backend: `solve` alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from odenet import Backend, Problem, Solution, Span, UnsupportedError
from odenet_scipy import backend
from odenet_scipy._solve import solve_span


class ScipyBackend(Backend):
    """odenet's `solve` on SciPy."""

    framework = "scipy"
    dtypes = ("float64", "float32", "complex128", "complex64")

    def solve(self, problem: Problem) -> Solution:
        backend.require(problem.solver, problem.gradient, adaptive=isinstance(problem.grid, Span))
        assert isinstance(problem.grid, Span)
        return solve_span(problem, problem.grid)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return np.asarray(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype: str, device: str) -> Iterator[None]:
        self.require_place(dtype, device)
        yield

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def value_and_grad(self, loss: Any, problem: Problem) -> NoReturn:
        """Raises UnsupportedError: SciPy has no gradients."""
        raise UnsupportedError("gradients on backend scipy", "solve", "take backend='torch' or 'jax'")
