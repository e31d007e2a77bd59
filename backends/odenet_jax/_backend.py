"""The verbs of the JAX backend.

Over 250 lines: the descriptor and all verbs of the interface stand side by side, each with its whole signature.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odenet import (
    Backend,
    Backprop,
    Checkpoint,
    Choices,
    Depth,
    Evaluation,
    Gradient,
    Gradients,
    InputError,
    Measurement,
    NetSpec,
    Problem,
    Profiles,
    Sample,
    Solution,
    Span,
)
from odenet.kit import AnySolver, Arrays, Imported, Trainer, quiet, seconds, shown
from odenet_jax.conversion.convert import unconvert
from odenet_jax.field.state import as_array
from odenet_jax.gradients.solve import solve_problem
from odenet_jax.nets.modules import OdeNet
from odenet_jax.verbs import profile as profiling
from odenet_jax.verbs.batch import enable_x64, like, mean_loss, on  # pyright: ignore[reportAttributeAccessIssue]
from odenet_jax.verbs.examine import examine, to_numpy, trained
from odenet_jax.verbs.measure import Counter, counted, finished, peak_bytes
from odenet_jax.verbs.on_disk import compiled, keep_programs
from odenet_jax.verbs.train import GradientDescent


class JaxBackend(Backend):
    """odenet's verbs on JAX."""

    framework = "jax"
    dtypes = ("float64", "float32", "bfloat16", "float16", "complex64", "complex128")
    network: type[OdeNet] = OdeNet
    """What `build` makes; a backend whose steps are another library's has its own."""

    def solve(self, problem: Problem) -> Solution:
        return solve_problem(problem)

    def value_and_grad(self, loss: Callable[[Solution], Any], problem: Problem) -> tuple[Any, Gradients, Solution]:
        """Leaves that cannot have a gradient (integers) have None."""
        depth = problem.weights
        trees = (_arrays(problem.y0), None if depth is None else _arrays(depth.tree))
        inexact, rest = eqx.partition(trees, eqx.is_inexact_array)

        def scalar(inexact: Any, probe: Array) -> tuple[Array, Solution]:
            y0, tree = eqx.combine(inexact, rest)
            weights = None if depth is None else Depth(tree, depth.kind, depth.stacked)
            solution = self._probed(dataclasses.replace(problem, y0=y0, weights=weights), probe)
            value = loss(solution)
            if not isinstance(value, jax.Array) or value.shape != () or jnp.iscomplexobj(value):
                raise InputError(f"the loss returned {shown(value)}", "a real scalar array")
            return value, solution

        probe = jnp.zeros((), _time(inexact[0]))
        (value, solution), (gradients, residual) = jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)(
            inexact, probe
        )
        if problem.gradient.certified(adaptive=isinstance(problem.grid, Span)):
            solution.stats.residual = residual
        # JAX's gradient of a real loss by a complex number is the conjugate of the direction of steepest ascent
        gradients = jax.tree.map(jnp.conj, gradients)
        return value, Gradients(*gradients), solution

    def _probed(self, problem: Problem, probe: Array) -> Solution:
        """`solve` with a probe (see `odenet_jax.solve`), for `value_and_grad`."""
        return solve_problem(problem, probe)

    def build(
        self,
        spec: NetSpec,
        weights: Arrays,
        *,
        solver: AnySolver,
        gradient: Gradient,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> OdeNet:
        with self.prepare(dtype, device):
            return self.network(spec, weights, solver=solver, gradient=gradient, dtype=jnp.dtype(dtype))

    def read(self, model: OdeNet) -> dict[str, np.ndarray]:
        return {name: self.to_numpy(leaf) for name, leaf in (model.weights | model.statistics).items()}

    @quiet()  # the certificate is in what it returns
    def evaluate(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray) -> Evaluation:
        with like(model.weights.values()):
            x, y = _batch(model, inputs, targets)
            step, _ = _compiled(model, x, y, model.gradient)
            (loss, outputs), (gradients, residual) = step(model.weights, _probe(model), x, y)
            return Evaluation(
                float(loss),
                self.to_numpy(outputs),
                {name: self.to_numpy(g) for name, g in gradients.items()},
                float(residual) if model.gradient.certifies else None,
            )

    def trained(self, model: Any, batch: Any, loss: Callable[..., Any] | None, steps: int, rate: float) -> Any:
        return trained(model, batch, loss, steps, rate)

    def examine(
        self,
        model: Any,
        batch: Any,
        loss: Callable[..., Any] | None,
        gradient: Gradient,
        *,
        reversible: bool = False,
    ) -> Sample:
        """A solve inside of `vmap`, or called several times, has the mean of its certificates."""
        return examine(model, batch, loss, gradient, reversible)

    def choices(self, model: Any) -> dict[str, Choices]:
        return profiling.choices(model)

    def with_gradient(self, model: Any, gradient: Gradient) -> Any:
        """A copy; the method is static, and a program of the copy is compiled anew."""
        return profiling.with_gradient(model, gradient)

    def profile(
        self,
        model: Any,
        batch: Any,
        loss: Callable[..., Any] | None,
        gradients: Sequence[Gradient],
        *,
        reference: Gradient,
        memory: int | None = None,
        repeats: int = 3,
    ) -> Profiles:
        """Seconds are those of the compiled program."""
        return profiling.profile(model, batch, loss, gradients, reference, memory, repeats)

    @quiet()
    def measure(self, model: OdeNet, inputs: np.ndarray, targets: np.ndarray, repeats: int = 3) -> Measurement:
        with like(model.weights.values()):
            x, y = _batch(model, inputs, targets)
            forward, forward_compile = _compiled(model, x, y, None)
            step, step_compile = _compiled(model, x, y, model.gradient)
            both = forward_compile, step_compile
            compile_seconds = sum(duration for duration in both if duration is not None) if None not in both else None
            arguments = (model.weights, _probe(model), x, y)
            timed = [finished(lambda: forward(*arguments)), finished(lambda: step(*arguments))]
            forward_seconds, step_seconds = seconds(timed, repeats)
            peak, method = peak_bytes(step)
            f_forward, f_backward, vjp = _count(model, x, y)
        return Measurement(forward_seconds, step_seconds, compile_seconds, peak, method, f_forward, f_backward, vjp)

    def trainer(
        self,
        model: OdeNet,
        *,
        momentum: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        optimizer: Imported | None = None,
    ) -> Trainer:
        return GradientDescent(model, momentum, weight_decay, rates, optimizer)

    def unconvert(self, model: Any) -> Any:
        return unconvert(model)

    def keep_programs(self, folder: Path) -> None:
        """JAX's persistent compilation cache; programs that call Python are not kept."""
        keep_programs(folder)

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(function)

    def to_numpy(self, leaf: Any) -> np.ndarray:
        return to_numpy(leaf)

    @contextlib.contextmanager
    def prepare(self, dtype: str, device: str) -> Iterator[None]:
        self.require_place(dtype, device)
        wide = dtype in ("float64", "complex128") or bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
        with enable_x64(wide), jax.default_device(self._by_name()[device]):  # pyright: ignore[reportAttributeAccessIssue]
            yield

    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(("cpu", *self._by_name())))

    @staticmethod
    def _by_name() -> dict[str, Any]:
        """The devices as torch names them: cpu, cuda, cuda:0, ..."""
        devices = {"cpu": jax.devices("cpu")[0]}
        for device in jax.devices():
            platform = "cuda" if device.platform in ("gpu", "cuda") else device.platform
            if platform != "cpu":
                devices.setdefault(platform, device)
                devices[f"{platform}:{device.id}"] = device
        return devices


def _arrays(tree: Any) -> Any:
    """NumPy arrays and numbers as JAX arrays; other leaves as they are."""
    return jax.tree.map(lambda x: as_array("a leaf", x) if isinstance(x, (np.ndarray, float, complex)) else x, tree)


def _time(y0: Any) -> Any:
    kinds = [leaf.dtype for leaf in jax.tree.leaves(y0)]
    return jnp.float64 if any(kind in (jnp.float64, jnp.complex128) for kind in kinds) else jnp.float32


def _probe(model: OdeNet) -> Array:
    return jnp.zeros((), _time(model.weights))


def _batch(model: OdeNet, inputs: np.ndarray, targets: np.ndarray) -> tuple[Array, Array]:
    model.spec.check_batch(inputs, targets)
    kind = np.int32 if model.spec.classes is not None else np.float64
    example = next(iter(model.weights.values()))
    return on(example, (np.asarray(inputs, np.float64), np.asarray(targets, kind)))


def _loss(model: OdeNet, weights: dict[str, Array], probe: Array, x: Array, y: Array) -> tuple[Array, Array]:
    outputs, _ = eqx.tree_at(lambda m: m.weights, model, weights).in_training(x, probe)
    return mean_loss(outputs, y), outputs


def _compiled(model: OdeNet, x: Array, y: Array, gradient: Gradient | None) -> tuple[Any, float | None]:
    """The program for loss and gradient, or for the loss alone, and the seconds of compiling it if they are known."""
    kinds = (x.dtype.name, y.dtype.name)
    return _program(type(model), model.spec, model.solver, gradient, kinds, x.shape, y.shape, next(iter(x.devices())))


@functools.lru_cache(maxsize=128)  # a job that goes over solvers, depths and methods, seed by seed, has about 80
def _program(
    network: type[OdeNet],
    spec: NetSpec,
    solver: AnySolver,
    gradient: Gradient | None,
    kinds: Any,
    x_shape: Any,
    y_shape: Any,
    device: Any,
) -> tuple[Any, float | None]:
    """Kept for the next call of the same kind. The loss alone is that of backprop's loop, for every gradient method."""
    zeros = {name: np.zeros(shape) for name, shape in (spec.shapes() | spec.statistics()).items()}
    model = network(spec, zeros, solver=solver, gradient=gradient or Backprop(), dtype=kinds[0])
    x, y = (jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip((x_shape, y_shape), kinds, strict=True))
    loss = functools.partial(_loss, model)
    start = time.perf_counter()
    traced = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True) if gradient is not None else loss
    lowered = jax.jit(traced).lower(model.weights, _probe(model), x, y)
    traced_in = time.perf_counter() - start
    program, taken = compiled(lowered)
    return program, None if taken is None else traced_in + taken


def _count(model: OdeNet, x: Array, y: Array) -> tuple[int, int, int]:
    """Evaluations forward and backward, and VJPs, counted while compiled programs run.

    They run on a small network of the same depth: the counts are those of solver, gradient and depth, whatever the
    field is, and a second program with a large field would take as long to compile as the first. Where the size of the
    state decides how often f is evaluated, they run on the network itself.
    """
    spec, gradient = model.spec, model.gradient
    if not (isinstance(gradient, Checkpoint) and gradient.memory is not None):
        small = NetSpec("linear", spec.depth, 1, inputs=(1,), classes=None, along=spec.along, horizon=spec.horizon)
        dtype = next(iter(model.weights.values())).dtype
        model = type(model)(small, small.init(), solver=model.solver, gradient=gradient, dtype=dtype)
        y = x = jnp.ones((1, 1), dtype)
    counter, counting = Counter(), copy.copy(model)
    object.__setattr__(counting, "function", counted(model.function, counter))  # a frozen module's own copy
    loss = functools.partial(_loss, counting)
    jax.block_until_ready(jax.jit(loss)(model.weights, _probe(model), x, y))
    jax.effects_barrier()
    f_forward, counter.f = counter.f, 0
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    jax.block_until_ready(step(model.weights, _probe(model), x, y))
    jax.effects_barrier()
    return f_forward, counter.f - f_forward, counter.vjp
