"""The verbs of the diffrax backend: those of JAX, but for what takes steps."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odenet import (
    Backprop,
    Depth,
    Evaluation,
    Gradient,
    Gradients,
    InputError,
    Measurement,
    NetSpec,
    Problem,
    Sample,
    Solution,
    Stats,
    UnsupportedError,
)
from odenet._backend import Arrays
from odenet._solver import AnySolver
from odenet._timing import seconds
from odenet_diffrax import backend
from odenet_diffrax._nets import DiffraxNet
from odenet_diffrax._solve import solve_problem
from odenet_jax._backend import JaxBackend, _arrays, _batch, _dtype
from odenet_jax._batch import like, mean_loss
from odenet_jax._measure import Counter, counted, finished, peak_bytes
from odenet_jax._nets import OdeNet


class DiffraxBackend(JaxBackend):
    """odenet's verbs on diffrax. Networks, measurements and devices are those of odenet_jax."""

    def solve(self, problem: Problem) -> Solution:
        """See `Backend`."""
        return solve_problem(problem)

    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """See `Backend`. Leaves that cannot have a gradient (integers) have None."""
        depth = problem.weights
        trees = (_arrays(problem.y0), None if depth is None else _arrays(depth.tree))
        inexact, rest = eqx.partition(trees, eqx.is_inexact_array)
        stats: list[Stats] = []

        def scalar(inexact: Any) -> tuple[jax.Array, Any]:
            y0, tree = eqx.combine(inexact, rest)
            weights = None if depth is None else Depth(tree, depth.kind, depth.stacked)
            made = solve_problem(dataclasses.replace(problem, y0=y0, weights=weights))
            value = loss(made)
            if not isinstance(value, jax.Array) or value.shape != () or jnp.iscomplexobj(value):
                raise InputError(f"the loss returned {value!r}", "a real scalar array")
            stats.append(made.stats)
            counts = made.stats.steps, made.stats.f_evaluations, made.stats.rejected
            return value, (made.ts, made.ys, made.outcome, made.event_t, counts)

        (value, (ts, ys, outcome, event_t, counts)), found = jax.value_and_grad(scalar, has_aux=True)(inexact)
        stats[-1].steps, stats[-1].f_evaluations, stats[-1].rejected = counts  # which were traced
        return value, Gradients(*found), Solution(ts, ys, stats[-1], outcome, event_t)

    def build(
        self,
        spec: NetSpec,
        weights: Arrays,
        *,
        solver: AnySolver,
        gradient: Gradient,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> DiffraxNet:
        """See `Backend`."""
        backend.require(solver, gradient)
        with self.prepare(dtype, device):
            return DiffraxNet(spec, weights, solver=solver, gradient=gradient, dtype=_dtype(dtype))

    def evaluate(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        """See `Backend`."""
        with like(model.weights.values()):
            x, y = _batch(model, inputs, targets)
            (loss, outputs), gradients = _program(*_kind(model, x, y), gradient=True)[0](model.weights, x, y)
            named = {name: self.to_numpy(g) for name, g in gradients.items()}
            return Evaluation(float(loss), self.to_numpy(outputs), named, None)

    def examine(self, model: Any, batch: Any, loss: Any, gradient: Gradient, *, reversible: bool = False) -> Sample:
        """Not offered: a module of odenet_jax takes its own steps.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("examining a module on backend diffrax", "backend='jax'")

    def measure(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        """See `Backend`."""
        with like(model.weights.values()):
            x, y = _batch(model, inputs, targets)
            forward, forward_compile = _program(*_kind(model, x, y), gradient=False)
            step, step_compile = _program(*_kind(model, x, y), gradient=True)
            arguments = (model.weights, x, y)
            timed = [finished(lambda: forward(*arguments)), finished(lambda: step(*arguments))]
            forward_seconds, step_seconds = seconds(timed, repeats)
            peak, method = peak_bytes(step)
            counts = _count(model)
        compile_seconds = forward_compile + step_compile
        return Measurement(forward_seconds, step_seconds, compile_seconds, peak, method, *counts)


def _loss(model: OdeNet, weights: Any, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    outputs = eqx.tree_at(lambda m: m.weights, model, weights)(x)
    return mean_loss(outputs, y), outputs


def _kind(model: OdeNet, x: Any, y: Any) -> tuple[Any, ...]:
    kinds, device = (x.dtype.name, y.dtype.name), next(iter(x.devices()))
    return model.spec, model.solver, model.gradient, kinds, x.shape, y.shape, device


@functools.lru_cache(maxsize=16)
def _program(
    spec: NetSpec,
    solver: AnySolver,
    method: Gradient,
    kinds: Any,
    x_shape: Any,
    y_shape: Any,
    device: Any,
    *,
    gradient: bool,
) -> tuple[Any, float]:
    """The program for loss and gradient, or for the loss alone, and the seconds of compiling it."""
    zeros = {name: np.zeros(shape) for name, shape in spec.shapes().items()}
    model = DiffraxNet(spec, zeros, solver=solver, gradient=method if gradient else Backprop(), dtype=kinds[0])
    x, y = (jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip((x_shape, y_shape), kinds, strict=True))
    loss = functools.partial(_loss, model)
    start = time.perf_counter()
    program = jax.jit(jax.value_and_grad(loss, has_aux=True) if gradient else loss).lower(model.weights, x, y).compile()
    return program, time.perf_counter() - start


def _count(model: OdeNet) -> tuple[int, int, int]:
    """Evaluations forward and backward, and VJPs, counted on a small network of the same depth (see odenet_jax)."""
    spec = model.spec
    small = NetSpec("linear", spec.depth, 1, inputs=(1,), classes=None, along=spec.along, horizon=spec.horizon)
    dtype = next(iter(model.weights.values())).dtype
    tiny = DiffraxNet(small, small.init(), solver=model.solver, gradient=model.gradient, dtype=dtype)
    x = jnp.ones((1, 1), dtype)
    counter, counting = Counter(), copy.copy(tiny)
    object.__setattr__(counting, "function", counted(tiny.function, counter))  # a frozen module's own copy
    loss = functools.partial(_loss, counting)
    jax.block_until_ready(jax.jit(loss)(tiny.weights, x, x))
    jax.effects_barrier()
    forward, counter.f = counter.f, 0
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss, has_aux=True))(tiny.weights, x, x))
    jax.effects_barrier()
    return forward, counter.f - forward, counter.vjp
