"""Networks: residual stacks of any equinox modules, neural ODEs, and the networks of a `NetSpec`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array, lax

from odenet import Depth, Gradient, InputError, NetSpec
from odenet._depth import Kind, kind_of_blocks
from odenet._gradients import gradient as gradient_named
from odenet._nets import GROUPS, NORM_EPSILON
from odenet._problem import problem
from odenet._solver import AnySolver
from odenet._solver import solver as solver_named
from odenet_jax._solve import solve_problem

if TYPE_CHECKING:
    import numpy as np

Weights = Mapping[str, Array]
_ACTIVATIONS = {"relu": jax.nn.relu, "tanh": jnp.tanh}


class ResidualStack(eqx.Module):
    """Residual blocks `x -> f(x)` as the layers of a solver: with Euler, `x <- x + h f_n(x)`, h = (t1 - t0) / steps.

    Args:
        blocks: modules of one structure that keep the shape of their input; their arrays are stacked. A module may
            stand at several places and is kept once.
        solver: a name or record. Euler gives a ResNet, Heun a HeunNet.
        gradient: a name or record.
        along: "piecewise": N blocks are N steps. "linear": parameters are interpolated between blocks, so that N blocks
            are N-1 steps; step n of Heun reads blocks n and n+1. None takes "piecewise" for Euler, else "linear".
        t0, t1: times; the default scales each of N steps by 1/N. `t1=len(blocks)` is the plain ResNet, h = 1.

    Shapes: any array in, the same shape out.

    Raises:
        InputError: no blocks, or blocks of different structures.
    """

    blocks: Any
    order: tuple[int, ...] = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    along: Kind = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self,
        blocks: Sequence[Callable[[Array], Array]],
        *,
        solver: str | AnySolver = "euler",
        gradient: str | Gradient = "backprop",
        along: str | None = None,
        t0: float = 0.0,
        t1: float = 1.0,
    ) -> None:
        self.solver, self.gradient = solver_named(solver), gradient_named(gradient)
        self.t0, self.t1 = t0, t1
        self.along = kind_of_blocks(along, self.solver.stages)
        single = {id(block): block for block in blocks}
        places = {key: i for i, key in enumerate(single)}
        self.order = tuple(places[id(block)] for block in blocks)
        parts = [eqx.partition(block, eqx.is_array) for block in single.values()]
        if not parts or any(
            jax.tree.structure(arrays) != jax.tree.structure(parts[0][0]) or not eqx.tree_equal(static, parts[0][1])
            for arrays, static in parts
        ):
            raise InputError(f"{len(parts)} blocks of different structures", "at least one, all of one structure")
        self.blocks = eqx.combine(jax.tree.map(lambda *each: jnp.stack(each), *(a for a, _ in parts)), parts[0][1])

    def __call__(self, x: Array, probe: Array | None = None) -> Array:
        """The state after the last block; for `probe` see `odenet_jax.solve`."""
        stack = self.blocks
        if self.order != tuple(range(len(self.order))):
            arrays, static = eqx.partition(stack, eqx.is_array)
            stack = eqx.combine(jax.tree.map(lambda leaf: leaf[jnp.asarray(self.order)], arrays), static)
        choices = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": self.gradient}
        made = problem(lambda t, y, block: block(y), x, Depth(stack, self.along), **choices)
        return solve_problem(made, probe).ys[0]


class NeuralODE(eqx.Module):
    """`y(t1)` of `y' = field(t, y)` from y(t0) = x.

    Args:
        field: a module `field(t, y)`.
        steps: of the solver.
        solver, gradient: names or records.
        t0, t1: times.

    Shapes: any array in, the same shape out.
    """

    field: Any
    steps: int = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    t0: float = eqx.field(static=True)
    t1: float = eqx.field(static=True)

    def __init__(
        self,
        field: Callable[[Array, Array], Array],
        *,
        steps: int,
        solver: str | AnySolver = "rk4",
        gradient: str | Gradient = "backprop",
        t0: float = 0.0,
        t1: float = 1.0,
    ) -> None:
        self.field, self.steps = field, steps
        self.solver, self.gradient = solver_named(solver), gradient_named(gradient)
        self.t0, self.t1 = t0, t1

    def __call__(self, x: Array, probe: Array | None = None) -> Array:
        """The state at t1; for `probe` see `odenet_jax.solve`."""
        choices = {"t0": self.t0, "t1": self.t1, "solver": self.solver, "gradient": self.gradient}
        made = problem(lambda t, y, field: field(t, y), x, self.field, steps=self.steps, **choices)
        return solve_problem(made, probe).ys[0]


class OdeNet(eqx.Module):
    """The network of a `NetSpec`; `weights` has the spec's names.

    Args:
        spec: what to build.
        weights: by name, as NumPy arrays.
        solver, gradient: names or records.
        dtype: of the parameters.

    Shapes: (batch, *spec.inputs) to (batch, classes), or to the state's shape without classes.
    """

    weights: dict[str, Array]
    function: Callable[[Array, Array, Weights], Array] = eqx.field(static=True)
    spec: NetSpec = eqx.field(static=True)
    solver: AnySolver = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)

    def __init__(
        self,
        spec: NetSpec,
        weights: Mapping[str, np.ndarray],
        *,
        solver: str | AnySolver = "euler",
        gradient: str | Gradient = "backprop",
        dtype: Any = jnp.float32,
    ) -> None:
        spec.check(weights)
        self.spec = spec
        self.solver, self.gradient = solver_named(solver), gradient_named(gradient)
        self.function = field(spec)
        self.weights = {name: jnp.asarray(weights[name], dtype) for name in spec.shapes()}

    def __call__(self, x: Array, probe: Array | None = None) -> Array:
        """Logits, or final states; for `probe` see `odenet_jax.solve`."""
        spec, weights = self.spec, self.weights
        y = x if spec.block == "conv" else x.reshape(x.shape[0], -1)
        if spec.classes is not None:
            y = self._stem(y)
        inner = {name.removeprefix("block."): w for name, w in weights.items() if name.startswith("block.")}
        if spec.along == "shared":
            inner = {name: w[0] for name, w in inner.items()}
        made = problem(
            self.function,
            y,
            Depth(inner, spec.along),
            steps=spec.depth,
            t1=spec.horizon,
            solver=self.solver,
            gradient=self.gradient,
        )
        y = solve_problem(made, probe).ys[0]
        if spec.classes is None:
            return y
        pooled = y.mean((2, 3)) if spec.block == "conv" else y
        return pooled @ weights["head.weight"].T + weights["head.bias"]

    def _stem(self, x: Array) -> Array:
        weight, bias = self.weights["stem.weight"], self.weights["stem.bias"]
        if self.spec.block != "conv":
            return x @ weight.T + bias
        _, stride, padding = self.spec.stem
        return _convolve(x, weight, stride, padding) + bias[:, None, None]


def field(spec: NetSpec) -> Callable[[Array, Array, Weights], Array]:
    """The field f(t, y, w) of a spec's blocks."""
    activation = _ACTIVATIONS[spec.activation]

    def linear(t: Array, y: Array, w: Weights) -> Array:
        return y @ w["weight"].T

    def mlp(t: Array, y: Array, w: Weights) -> Array:
        hidden = activation(y @ w["linear1.weight"].T + w["linear1.bias"])
        return hidden @ w["linear2.weight"].T + w["linear2.bias"]

    def half(y: Array, w: Weights, i: int) -> Array:
        y = _convolve_in_loop(y, w[f"conv{i}.weight"])
        if spec.norm == "none":
            return y + w[f"conv{i}.bias"][:, None, None]
        return _group_norm(y, w[f"norm{i}.weight"], w[f"norm{i}.bias"])

    def conv(t: Array, y: Array, w: Weights) -> Array:
        return half(activation(half(y, w, 1)), w, 2)

    return {"linear": linear, "mlp": mlp, "conv": conv}[spec.block]


def _convolve(x: Array, weight: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(x, weight, (stride, stride), [(padding, padding)] * 2)


def _convolve_in_loop(x: Array, weight: Array) -> Array:
    """A 3x3 convolution that keeps the size, in the blocks."""
    return _convolve_patches(x, weight) if _on_cpu() else _convolve(x, weight, 1, 1)


@jax.checkpoint  # keep x, not its patches, which are 9 times as large
def _convolve_patches(x: Array, weight: Array) -> Array:
    """The same as one product of matrices: 3 to 4 times as fast as XLA's own convolution on CPUs within a loop."""
    height, width = x.shape[2:]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    patches = [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.einsum("bckhw,ock->bohw", jnp.stack(patches, 2), weight.reshape(*weight.shape[:2], 9))


def _on_cpu() -> bool:
    """Whether what is traced now is for a CPU: the default device of the context, or JAX's own."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if device is None:
        return jax.default_backend() == "cpu"
    return (device if isinstance(device, str) else device.platform).startswith("cpu")


def _group_norm(y: Array, weight: Array, bias: Array) -> Array:
    grouped = y.reshape(y.shape[0], GROUPS, -1)
    mean = grouped.mean(-1, keepdims=True)
    variance = grouped.var(-1, keepdims=True)
    normal = ((grouped - mean) * lax.rsqrt(variance + NORM_EPSILON)).reshape(y.shape)
    return normal * weight[:, None, None] + bias[:, None, None]
