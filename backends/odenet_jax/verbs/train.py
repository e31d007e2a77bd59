"""Training a network of a `NetSpec`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from odenet import Auditor, Auto, Backprop, Checkpoint, Gradient, NetSpec, Plan, plan
from odenet.kit import OPTIMIZER, VELOCITY, WEIGHT, AnySolver, Imported, Trainer, TrainingStep, checked_state, learning
from odenet_jax.nets.modules import OdeNet
from odenet_jax.verbs.batch import like, mean_loss, on
from odenet_jax.verbs.measure import peak_bytes
from odenet_jax.verbs.optimizer import ChosenOptimizer
from odenet_jax.verbs.profile import profile


class GradientDescent(Trainer):
    """Gradient descent with momentum, or a transformation of optax's, see `Trainer`.

    Args:
        model: what to train; a copy of it is trained.
        momentum, weight_decay: of the update.
        rates: factors of the rate by how names of weights begin; None for 1, of all.
        optimizer: what makes the optimiser; None for gradient descent with momentum.
    """

    def __init__(
        self,
        model: OdeNet,
        momentum: float,
        weight_decay: float,
        rates: Mapping[str, float] | None = None,
        optimizer: Imported | None = None,
    ) -> None:
        self.model = model
        self.momentum, self.weight_decay = momentum, weight_decay
        self.weights, self.statistics = dict(model.weights), dict(model.statistics)
        self.factors = tuple(learning(self.weights, rates).items())
        self.optimizer = None if optimizer is None else ChosenOptimizer(optimizer)
        with like(self.weights.values()):
            # what the optimiser remembers: velocities by name, or a tree of its own
            if self.optimizer is None:
                self.memory: Any = {name: jnp.zeros_like(weight) for name, weight in self.weights.items()}
            else:
                self.memory = self.optimizer.begin({name: self.weights[name] for name, _ in self.factors})
        self._peak: int | None = None
        self.auditor = Auditor(model.gradient) if isinstance(model.gradient, Auto) else None

    def step(self, inputs: np.ndarray, targets: np.ndarray, lr: float) -> TrainingStep:
        """One program takes the step, compiled for the first batch of its size."""
        self.model.spec.check_batch(inputs, targets)
        with like(self.weights.values()):
            example = next(iter(self.weights.values()))
            x, y = on(example, (inputs, np.asarray(targets, np.int32)))
            if self.auditor is not None and self.auditor.due:
                self._look(self.auditor, x, y)
            rates = jnp.asarray([lr, self.momentum, self.weight_decay], example.dtype)
            program, peak = _step_program(*self._kind(x), y.shape, self.factors, self.optimizer)
            self._peak = max(peak, self._peak or 0)
            before = self.weights, self.memory, self.statistics
            (self.weights, self.memory, self.statistics), outcome = program(before, rates, x, y)
            loss, correct, residual = jax.device_get(outcome)
        certificate = float(residual) if self._method().certifies else None
        if self.auditor is not None:
            self.auditor.counted()
            self.auditor.certified(certificate)
        return TrainingStep(float(loss), int(correct), certificate)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        with like(self.weights.values()):
            x = on(next(iter(self.weights.values())), inputs)
            return np.asarray(_predict_program(*self._kind(x))(self.weights, self.statistics, x))

    def state(self) -> dict[str, np.ndarray]:
        weights = {WEIGHT + name: np.array(leaf) for name, leaf in (self.weights | self.statistics).items()}
        if self.optimizer is None:
            return weights | {VELOCITY + name: np.array(leaf) for name, leaf in self.memory.items()}
        return weights | {OPTIMIZER + name: array for name, array in self.optimizer.kept(self.memory).items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        memory = VELOCITY if self.optimizer is None else OPTIMIZER
        arrays = checked_state(self.model.spec, state, memory)
        with like(self.weights.values()):
            kind = next(iter(self.weights.values())).dtype
            if self.optimizer is None:
                self.memory = {name: jnp.array(arrays[memory][name], kind) for name in self.weights}
            else:
                self.memory = self.optimizer.restored(self.memory, arrays[memory])
            self.weights, self.statistics = (
                {name: jnp.array(arrays[WEIGHT][name], kind) for name in names}
                for names in (self.weights, self.statistics)
            )

    def peak_bytes(self) -> int | None:
        """The bytes that XLA plans for the step."""
        return self._peak

    def _kind(self, x: Array) -> tuple[Any, ...]:
        """All that a program depends on."""
        model = self.model
        return type(model), model.spec, model.solver, self._method(), x.dtype.name, next(iter(x.devices())), x.shape

    def _method(self) -> Gradient:
        """The gradient method; of `auto` what is chosen now, or an exact one where nothing could be measured."""
        if self.auditor is None:
            return self.model.gradient
        exact = Backprop() if self.model.solver.reversible else self.auditor.exact(self.model.spec.depth)
        return self.auditor.method or exact

    def _look(self, auditor: Auditor, x: Array, y: Array) -> None:
        """Plan or audit on this batch, before its step is taken."""
        model = eqx.tree_at(lambda m: m.weights, self.model, self.weights).for_training()

        def planned() -> Plan:
            return plan(model, (x, y), backend="jax")  # by the memory and tolerance of the model's own `Auto`

        if auditor.method is None:
            chosen = planned()
            if chosen.zero:
                auditor.unmeasurable()
            else:
                auditor.planned(chosen)
            return
        exact = Backprop() if model.solver.reversible else Checkpoint()
        measured = profile(model, (x, y), None, (auditor.method,), exact, None, 0)
        if measured.zero:
            auditor.unmeasurable()
        else:
            auditor.judge(measured.rows[0], planned)


def _empty(net: type[OdeNet], spec: NetSpec, solver: AnySolver, gradient: Gradient, dtype: str) -> OdeNet:
    zeros = {name: np.zeros(shape) for name, shape in (spec.shapes() | spec.statistics()).items()}
    return net(spec, zeros, solver=solver, gradient=gradient, dtype=dtype)


@functools.lru_cache(maxsize=64)
def _step_program(
    net: type[OdeNet],
    spec: NetSpec,
    solver: AnySolver,
    gradient: Gradient,
    dtype: str,
    device: Any,
    shape: Any,
    targets: Any,
    factors: tuple[tuple[str, float], ...],
    optimizer: ChosenOptimizer | None,
) -> tuple[Any, int]:
    """The program of a step, and the bytes that it needs.

    Args:
        net, spec, solver, gradient, dtype: of the network.
        device: where it runs: another one, another program.
        shape, targets: of a batch.
        factors: of the rate, by name of the weights that change.
        optimizer: that moves them; None for gradient descent with momentum.
    """
    model = _empty(net, spec, solver, gradient, dtype)

    def loss(some: dict[str, Array], probe: Array, weights: Any, statistics: Any, x: Array, y: Array) -> Any:
        trained = eqx.tree_at(lambda m: (m.weights, m.statistics), model, (weights | some, statistics))
        outputs, after = trained.in_training(x, probe)
        return mean_loss(outputs, y), (outputs, after)

    def step(state: Any, rates: Array, x: Array, y: Array) -> Any:
        weights, memory, statistics = state
        lr, momentum, decay = rates
        probe = jnp.zeros((), rates.dtype)
        before = {name: weights[name] for name, _ in factors}
        (value, (outputs, after)), (gradients, residual) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            before, probe, weights, statistics, x, y
        )
        outcome = value, (outputs.argmax(1) == y).sum(), residual
        if optimizer is not None:
            moved, memory = optimizer.moved(before, gradients, memory, {name: factor * lr for name, factor in factors})
            return (weights | moved, memory, after), outcome
        pushed = {name: momentum * memory[name] + (gradients[name] + decay * w) for name, w in before.items()}
        moved = {name: before[name] - factor * lr * pushed[name] for name, factor in factors}
        return (weights | moved, memory | pushed, after), outcome

    x, y = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(targets, np.int32)
    rates = jax.ShapeDtypeStruct((3,), dtype)
    memory: Any = model.weights
    if optimizer is not None:
        memory = jax.eval_shape(optimizer.begin, {name: model.weights[name] for name, _ in factors})
    program = jax.jit(step).lower((model.weights, memory, model.statistics), rates, x, y).compile()
    return program, peak_bytes(program)[0]


@functools.lru_cache(maxsize=16)
def _predict_program(
    net: type[OdeNet], spec: NetSpec, solver: AnySolver, gradient: Gradient, dtype: str, device: Any, shape: Any
) -> Any:
    """The network in evaluation as a function of weights, running statistics and inputs."""
    model = _empty(net, spec, solver, gradient, dtype)

    def predict(weights: Any, statistics: Any, x: Array) -> Array:
        return eqx.tree_at(lambda m: (m.weights, m.statistics), model, (weights, statistics))(x)

    return jax.jit(predict).lower(model.weights, model.statistics, jax.ShapeDtypeStruct(shape, dtype)).compile()
