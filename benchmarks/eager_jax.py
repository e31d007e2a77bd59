"""Solves on JAX outside of `jax.jit`, beside the same inside: seconds, compilations and memory of 200 calls.

The field is `tanh(y a + b) c + d`, float32, one thread; dopri5 at rtol = atol = 1e-6 from t=0 to 4, and 20 equal steps
of Heun. "module-level" is one function at every call, "fresh lambda" a new one that computes the same. seconds: median;
over_jit: to that of the same function compiled by `jax.jit` once, runs interleaved; jit_of_a_fresh_lambda: what
`jax.jit` of a new function costs a call, median of 3: it compiles. mb: growth of resident memory over the last half.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp

import odenet
from odenet_jax import solve
from odenet_jax.verbs.batch import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

TITLE = "JAX outside of jit"
SIZES = ((128, 32, 128),)  # batch, width, hidden
CALLS = 200
ADAPTIVE = {"t1": 4.0, "rtol": 1e-6, "atol": 1e-6}
EQUAL = {"t1": 4.0, "steps": 20, "solver": "heun"}
_COMPILED = "/jax/core/compile/backend_compile_duration"
_compilations = 0


def rows() -> Iterator[dict[str, Any]]:
    """One row a size, kind of steps, call and kind of field."""
    jax.monitoring.register_event_duration_secs_listener(_listen)
    with enable_x64(False):
        for batch, width, hidden in SIZES:
            given = _given(batch, width, hidden)
            for steps, choices in (("adaptive", ADAPTIVE), ("equal", EQUAL)):
                for what, call in _calls(choices).items():
                    size = {"batch": batch, "width": width, "steps": steps, "call": what}
                    yield from _rows(size, call, given)


def field(t: Any, y: Any, w: Any) -> Any:
    """A multilayer perceptron."""
    return jnp.tanh(y @ w[0] + w[1]) @ w[2] + w[3]


def _given(batch: int, width: int, hidden: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = ((width, hidden), (hidden,), (hidden, width), (width,))
    scales = (2 / width**0.5, 0.1, 2 / hidden**0.5, 0.1)
    weights = tuple(s * jax.random.normal(k, shape) for k, shape, s in zip(keys, shapes, scales, strict=False))
    return jax.random.normal(keys[4], (batch, width)), weights


def _calls(choices: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """From a field to a function of state and weights."""

    def loss(solution: Any) -> Any:
        return jnp.sum(solution.ys[-1] ** 2)

    def forward(field: Any, y0: Any, w: Any) -> Any:
        return solve(field, y0, w, **choices).ys

    def value_and_grad(field: Any, y0: Any, w: Any) -> Any:
        value, found, _ = odenet.value_and_grad(loss, field, y0, w, **choices)
        return value, found.y0, found.weights

    def gradient(field: Any, y0: Any, w: Any) -> Any:
        return jax.grad(lambda y0, w: loss(solve(field, y0, w, **choices)), argnums=(0, 1))(y0, w)

    return {"solve": forward, "value_and_grad": value_and_grad, "jax.grad": gradient}


def _rows(size: dict[str, Any], call: Callable[..., Any], given: Any) -> Iterator[dict[str, Any]]:
    def fresh() -> Callable[..., Any]:
        return lambda t, y, w: field(t, y, w)

    compiling = []
    for _ in range(3):
        compiling.append(_seconds(functools.partial(jax.jit(functools.partial(call, fresh())), *given)))
    compiled = jax.jit(lambda y0, w: call(field, y0, w))
    _seconds(lambda: compiled(*given))
    for kind, function in (("module-level", lambda: field), ("fresh lambda", fresh)):
        own, inside, before, grown = [], [], 0, 0.0
        for n in range(CALLS):
            if n == 2:
                before = _compilations
            if n == CALLS // 2:
                grown = _resident()
            own.append(_seconds(functools.partial(call, function(), *given)))
            inside.append(_seconds(functools.partial(compiled, *given)))
        yield {
            **size,
            "field": kind,
            "seconds": statistics.median(own),
            "over_jit": statistics.median(a / b for a, b in zip(own, inside, strict=True)),
            "jit_of_a_fresh_lambda": statistics.median(compiling),
            "compilations_after_the_second": _compilations - before,
            "mb": _resident() - grown,
        }


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def _listen(name: str, seconds: float, **_: Any) -> None:
    global _compilations
    _compilations += name == _COMPILED


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
