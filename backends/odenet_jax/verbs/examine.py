"""One gradient of a model by a method that is not its own, leaving the model as it was."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odenet import Backprop, Gradient, InputError, Part, Sample
from odenet.kit import Place, made_reversible, places, quiet
from odenet_jax.field.programs import require_known
from odenet_jax.field.state import promoted
from odenet_jax.nets.modules import NeuralODE, OdeNet, ResidualStack
from odenet_jax.verbs.batch import like, pair, scalar
from odenet_jax.verbs.mapped_rows import of_rows, tick

Solved = ResidualStack | NeuralODE | OdeNet
SOLVED = (ResidualStack, NeuralODE, OdeNet)


def examine(model: Any, batch: Any, loss: Callable[..., Any] | None, gradient: Gradient, reversible: bool) -> Sample:
    """The gradient of one batch by one method, with the weights and layers that it belongs to."""
    require_known("odenet.check_gradients", (model, batch))
    solves = solved(model)
    weights = trainable(model)
    with like(weights.values()):
        inputs, target = pair(next(iter(weights.values())), batch)
        time = promoted(jnp.float32, *(leaf.real.dtype for leaf in weights.values()))
        calls = {name: 0 for name in solves}

        def probed(path: Any, node: Any) -> Any:
            if not isinstance(node, SOLVED):
                return node
            zero = jnp.zeros((), time)
            return Probed(_name(path), changed(node, gradient, reversible), zero, zero, calls)

        @eqx.filter_jit
        @eqx.filter_value_and_grad
        def value_and_grad(model: Any, inputs: Any, target: Any) -> Array:
            return scalar(loss, model(inputs), target)

        with quiet():
            value, derivatives = value_and_grad(mapped(probed, model), inputs, target)
        probes = {name: (float(node.residual), float(node.solves)) for name, node in _probes(derivatives).items()}
        gradients = named(
            mapped(lambda _, node: node.module if isinstance(node, Probed) else node, derivatives, Probed)
        )
        parts = tuple(
            _part(name, solves[name], changed(solves[name], gradient, reversible), probe, calls[name], weights)
            for name, probe in probes.items()
            if calls[name]
        )
        if not parts:
            raise InputError(
                f"{', '.join(name or type(model).__name__ for name in solves)} not called in the forward pass",
                "a model that calls at least one of its solves",
            )
        kind = max((leaf.dtype for leaf in weights.values()), key=lambda dtype: jnp.finfo(dtype).eps)
        return Sample(
            float(value),
            {name: to_numpy(gradients[name]) for name in weights},
            {name: to_numpy(leaf) for name, leaf in weights.items()},
            parts,
            str(kind),
        )


def trained(model: Any, batch: Any, loss: Callable[..., Any] | None, steps: int, rate: float) -> Any:
    """A copy of the model after some steps of Adam on the batch."""
    copied = mapped(lambda _, node: changed(node, Backprop(), False) if isinstance(node, SOLVED) else node, model)
    arrays, rest = eqx.partition(copied, eqx.is_inexact_array)
    with like(jax.tree.leaves(arrays)):
        inputs, target = pair(jax.tree.leaves(arrays)[0], batch)

        def value(arrays: Any, inputs: Any, target: Any) -> Array:
            return scalar(loss, eqx.combine(arrays, rest)(inputs), target)

        @eqx.filter_jit
        def step(n: Any, arrays: Any, first: Any, second: Any, inputs: Any, target: Any) -> Any:
            gradients = jax.tree.map(jnp.conj, jax.grad(value)(arrays, inputs, target))
            first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
            second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * jnp.abs(g) ** 2, second, gradients)

            def moved(w: Array, m: Array, v: Array) -> Array:
                size = jnp.sqrt(v / (1 - 0.999**n)) + 1e-8
                return (w - rate * (m / (1 - 0.9**n)) / size).astype(w.dtype)

            return jax.tree.map(moved, arrays, first, second), first, second

        zeros = jax.tree.map(jnp.zeros_like, arrays)
        state: Any = (arrays, zeros, jax.tree.map(lambda leaf: jnp.zeros_like(leaf.real), arrays))
        for n in range(1, steps + 1):
            arrays, first, second = state
            state = step(jnp.float32(n), arrays, first, second, inputs, target)
    return eqx.combine(state[0], rest)


def solved(model: Any) -> dict[str, Solved]:
    """The solves in a model by path; "" for the model itself.

    Raises:
        InputError: there are none.
    """
    solves = _solves(model)
    if not solves:
        raise InputError(
            f"a {type(model).__name__} without a solve in it",
            "a module that is or contains a ResidualStack, NeuralODE or OdeNet of odenet_jax",
        )
    return solves


class Probed(eqx.Module):
    """A solve in whose gradient stands, beside that of its weights, what is known in the backward pass alone.

    Args:
        name: its path in the model.
        module: the solve.
        residual: zero; its derivative is the sum of the reconstruction residuals of all solves, of the rows of a `vmap`
            the largest.
        solves: zero; its derivative is how many solves these are, the rows of a `vmap` being one.
        calls: how often it is called while the program is made, by name.
    """

    name: str = eqx.field(static=True)
    module: Any
    residual: Array
    solves: Array
    calls: dict[str, int] = eqx.field(static=True)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the solve returns."""
        self.calls[self.name] += 1
        bound = inspect.signature(self.module.__call__).bind_partial(*arguments, **named).arguments
        residual, solves = of_rows((self.module, arguments, named), self.residual, self.solves)
        probe = {} if "probe" in bound else {"probe": residual}
        leaves, structure = jax.tree.flatten(self.module(*arguments, **named, **probe))
        place = next(i for i, leaf in enumerate(leaves) if eqx.is_inexact_array(leaf))
        leaves[place] = tick(leaves[place], solves)
        return jax.tree.unflatten(structure, leaves)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def changed(module: Any, gradient: Gradient, reversible: bool) -> Any:
    """A copy with another method: fields that are static cannot be replaced otherwise."""
    copied = copy.copy(module)
    object.__setattr__(copied, "gradient", gradient)
    if reversible:
        object.__setattr__(copied, "solver", made_reversible(module.solver))
    return copied


def _part(
    name: str, module: Any, changed: Any, probe: tuple[float, float], calls: int, weights: Mapping[str, Array]
) -> Part:
    residual, solves = probe
    kind, steps, layers = _layers(name, module, weights)
    certified = solves and changed.gradient.certified(adaptive=steps is None)
    certificate = residual / solves if certified else None
    return Part(name, changed.solver, steps, kind, layers, certificate, calls)


def _layers(name: str, module: Any, weights: Mapping[str, Array]) -> tuple[Any, int, tuple[Mapping[str, Place], ...]]:
    prefix = f"{name}." if name else ""
    match module:
        case OdeNet():
            return module.spec.along, module.spec.depth, places(module.spec, prefix)
        case ResidualStack():
            prefix += "blocks."
            names = [name for name in weights if name.startswith(prefix)]
            layers = tuple({name.removeprefix(prefix): (name, row) for name in names} for row in module.order)
            return module.along, len(layers) - (module.along == "linear"), layers
        case _:
            prefix += "field."
            inner = {name.removeprefix(prefix): (name, None) for name in weights if name.startswith(prefix)}
            return "shared", module.steps, (inner,)


def trainable(model: Any) -> dict[str, Array]:
    """The inexact arrays, as `named` has them.

    Raises:
        InputError: there are none.
    """
    arrays = named(model)
    if not arrays:
        raise InputError(f"a {type(model).__name__} without an inexact array", "at least one parameter")
    return arrays


def named(model: Any) -> dict[str, Array]:
    """The inexact arrays by name; those of an OdeNet by the names of its spec."""
    arrays = eqx.filter(model, eqx.is_inexact_array)
    leaves = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]}
    nets = [name for name, node in _solves(model).items() if isinstance(node, OdeNet)]
    for net in nets:
        before = f"{net}.weights." if net else "weights."
        leaves = {_shorter(name, before): leaf for name, leaf in leaves.items()}
    return leaves


def _shorter(name: str, before: str) -> str:
    return before.removesuffix("weights.") + name.removeprefix(before) if name.startswith(before) else name


def _solves(model: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda node: isinstance(node, SOLVED))
    return {_name(path): node for path, node in leaves if isinstance(node, SOLVED)}


def _probes(gradients: Any) -> dict[str, Probed]:
    leaves = jax.tree.leaves(gradients, is_leaf=lambda node: isinstance(node, Probed))
    return {node.name: node for node in leaves if isinstance(node, Probed)}


def mapped(function: Callable[[Any, Any], Any], model: Any, kinds: Any = SOLVED) -> Any:
    """The model with `function(path, node)` in the place of each node of these kinds."""
    return jax.tree_util.tree_map_with_path(function, model, is_leaf=lambda node: isinstance(node, kinds))


def _name(path: Any) -> str:
    """A path as attribute names, keys and indices with points between."""
    parts = (getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))) for key in path)
    return ".".join(str(part) for part in parts)  # keystr(simple=True) is newer than the oldest JAX


def to_numpy(leaf: Array) -> np.ndarray:
    """On the host; half precision, which NumPy has not, as float32."""
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype in (jnp.bfloat16, np.float16) else array
