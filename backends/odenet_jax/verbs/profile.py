"""Gradient methods on a model, leaving it as it was: how each solve is done, and what each method takes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from odenet import Auto, Choices, Gradient, OdenetError, Profile, Profiles
from odenet.kit import quiet, seconds
from odenet_jax.field.programs import require_known
from odenet_jax.nets.modules import OdeNet, ResidualStack
from odenet_jax.verbs.batch import like, pair, scalar
from odenet_jax.verbs.examine import Solved, changed, mapped, named, solved, trainable
from odenet_jax.verbs.measure import finished, peak_bytes

_BUDGET = 0.1
"""Seconds of timing for each method, after which no further round begins."""
_OUTSIDE = "outside of every solve"
_REMEMBERED = 8
_PROGRAMS: dict[Any, Any] = {}
"""Compiled gradients of the last audits and plans: an audit needs the same two again and again."""
Groups = Mapping[str, Sequence[np.ndarray]]


def choices(model: Any) -> dict[str, Choices]:
    """The solver, gradient method and steps of each solve in the model."""
    return {name: Choices(module.solver, module.gradient, _steps(module)) for name, module in solved(model).items()}


def with_gradient(model: Any, gradient: Gradient) -> Any:
    """The model with that gradient method in each of its solves."""
    solved(model)

    def other(_: Any, node: Any) -> Any:
        wish = getattr(node, "gradient", None)
        if not isinstance(wish, Gradient):
            return node
        return changed(node, dataclasses.replace(wish, method=gradient) if isinstance(wish, Auto) else gradient, False)

    return mapped(other, model)


def profile(
    model: Any,
    batch: Any,
    loss: Callable[..., Any] | None,
    gradients: Sequence[Gradient],
    reference: Gradient,
    memory: int | None,
    repeats: int,
) -> Profiles:
    """Time, memory and gradient error of each method on the model.

    Bytes are those that XLA plans for: a program that needs too many is not run.
    """
    require_known("odenet.plan", (model, batch))
    solves = solved(model)
    weights = trainable(model)
    with quiet(), like(weights.values()):
        arguments = pair(next(iter(weights.values())), batch)

        def program(method: Gradient) -> tuple[Any, Any]:
            """The compiled gradient, of arrays that it is to be called with."""
            (arrays, others), static = _split(with_gradient(model, method), arguments)
            key = (loss, jax.tree.structure((arrays, others, static)), *map(_kind, jax.tree.leaves((arrays, others))))
            try:
                key = (*key, *jax.tree.leaves(static))
                compiled = _PROGRAMS.get(key)
            except TypeError:  # something in the model has no hash
                key = compiled = None
            if compiled is None:
                compiled = jax.jit(jax.grad(functools.partial(_value, loss, static))).lower(arrays, others).compile()
                if key is not None:
                    while len(_PROGRAMS) >= _REMEMBERED:
                        del _PROGRAMS[next(iter(_PROGRAMS))]
                    _PROGRAMS[key] = compiled
            return compiled, (arrays, others)

        def groups(gradients: Any) -> Groups:
            by_name, left = named(gradients), dict(named(gradients))
            rows_of: dict[str, list[np.ndarray]] = {}
            for name, arrays in solves.items():
                rows_of[name] = [np.asarray(by_name[key]) for key in _inside(name, arrays, left)]
            rows_of[_OUTSIDE] = [np.asarray(leaf) for leaf in left.values()]
            return {key: group for key, group in rows_of.items() if group}

        run, arrays = program(reference)
        exact = groups(run(*arrays))
        del run
        inside = {key: arrays for key, arrays in exact.items() if key != _OUTSIDE} or exact
        size = math.hypot(*(_norm(arrays) for arrays in inside.values()))
        known, counted = math.isfinite(size) and size > 0, ""
        rows: dict[Gradient, dict[str, Any]] = {}
        timed: dict[Gradient, Callable[[], None]] = {}
        for method in gradients:
            row: dict[str, Any] = {}
            rows[method] = row
            try:
                run, arrays = program(method)
                if repeats:
                    row["peak_bytes"], counted = peak_bytes(run)
                    if memory is not None and row["peak_bytes"] > memory:
                        continue
                    timed[method] = finished(lambda run=run, arrays=arrays: run(*arrays))
                row["gradient_error"] = _off(groups(run(*arrays)), exact) if known else None
            except (OdenetError, RuntimeError, MemoryError) as error:
                timed.pop(method, None)
                text = str(error) if isinstance(error, OdenetError) else f"{type(error).__name__}: {error}"
                row["trouble"] = text.partition("\n")[0]
        if timed:
            for method, duration in zip(timed, seconds([*timed.values()], repeats, _BUDGET * len(timed)), strict=True):
                rows[method]["seconds"] = duration
        kind = max((leaf.dtype for leaf in weights.values()), key=lambda dtype: jnp.finfo(dtype).eps)
        rows_of = tuple(Profile(method, **row) for method, row in rows.items())
        return Profiles(rows_of, str(kind), counted, not known)


def _split(model: Any, arguments: Any) -> tuple[tuple[Any, Any], Any]:
    """What a gradient is taken of, the other arrays, and all that is none."""
    inexact, rest = eqx.partition(model, eqx.is_inexact_array)
    arrays, static = eqx.partition((rest, arguments), eqx.is_array)
    return (inexact, arrays), static


def _value(loss: Callable[..., Any] | None, static: Any, inexact: Any, arrays: Any) -> Any:
    rest, (inputs, target) = eqx.combine(arrays, static)
    return scalar(loss, eqx.combine(inexact, rest)(inputs), target)


def _kind(leaf: Any) -> Any:
    return leaf.shape, leaf.dtype, next(iter(leaf.devices()))


def _off(gradient: Groups, exact: Groups) -> float:
    """The relative error of a gradient: the largest over groups; of a group that is zero, relative to all of them."""
    size_of_all = math.hypot(*map(_norm, exact.values()))
    errors = [0.0]
    for name, truth in exact.items():
        defect, size = _norm([a - b for a, b in zip(gradient[name], truth, strict=True)]), _norm(truth)
        errors.append(defect / (size or size_of_all) if defect else 0.0)
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _norm(arrays: Sequence[np.ndarray]) -> float:
    wide = (np.asarray(array, np.complex128 if np.iscomplexobj(array) else np.float64) for array in arrays)
    return math.hypot(*(float(np.linalg.norm(array.ravel())) for array in wide))


def _inside(name: str, module: Solved, left: dict[str, Any]) -> list[str]:
    """Names of the arrays of a solve, which are taken out of those left."""
    prefix = (f"{name}." if name else "") + ("block." if isinstance(module, OdeNet) else "")
    names = [key for key in left if key.startswith(prefix)]
    for key in names:
        del left[key]
    return names


def _steps(module: Solved) -> int | None:
    if isinstance(module, ResidualStack):
        return len(module.order) - (module.along == "linear")
    return module.spec.depth if isinstance(module, OdeNet) else module.steps
