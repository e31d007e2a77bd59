"""One spec and one set of NumPy weights are the same network in every backend."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from cases import BACKENDS
from quick import quick

import odenet

SPECS = {
    "conv": odenet.NetSpec("conv", 3, 8),
    "conv-none-tanh": odenet.NetSpec("conv", 2, 4, norm="none", activation="tanh", along="linear"),
    "conv-32": odenet.NetSpec("conv", 2, 8, inputs=(3, 32, 32), grid=2),
    "conv-shared": odenet.NetSpec("conv", 3, 8, along="shared", grid=2),
    "stages": odenet.NetSpec("bottleneck", 2, 32, inputs=(3, 64, 64), before=(2,), after=(1,), horizon=2.0),
    "stages-none": odenet.NetSpec("conv", 2, 4, norm="none", before=(1,), after=(2,), grid=2),
    "activated": odenet.NetSpec("bottleneck", 2, 16, activated=True, along="linear"),
    "mlp": odenet.NetSpec("mlp", 4, 6, 5, (2, 3), 4, activation="tanh"),
    "linear": odenet.NetSpec("linear", 4, 6, inputs=(6,), classes=None, along="linear", horizon=2.0),
}


def batch(spec: odenet.NetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Three random inputs and targets."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, *spec.inputs))
    return x, (np.arange(3) if spec.classes else rng.standard_normal((3, *spec.state_shape)))


@cache
def evaluate(backend: str, name: str, solver: str = "heun", gradient: str = "backprop") -> odenet.Evaluation:
    """Loss, outputs and gradients in float64."""
    spec = SPECS[name]
    loaded = odenet.backend(backend)
    choices: dict[str, Any] = {"solver": odenet.solver(solver), "gradient": odenet.gradient(gradient)}
    with loaded.prepare("float64", "cpu"):
        model = loaded.build(spec, spec.init(1), dtype="float64", **choices)
        return loaded.evaluate(model, *batch(spec))


WAITING = ("conv", "conv-32", "stages-none")  # what they have is in conv-shared, stages and conv-none-tanh


@pytest.mark.parametrize("name", quick(SPECS, [name for name in SPECS if name not in WAITING]))
def test_same_network_in_every_backend(name: str) -> None:
    first, *rest = (evaluate(backend, name) for backend in BACKENDS)
    assert set(first.gradients) == set(SPECS[name].shapes())
    for other in rest:
        assert np.abs(other.outputs - first.outputs).max() <= 1e-12 * np.abs(first.outputs).max()
        assert other.loss == pytest.approx(first.loss, rel=1e-12)
        for key, gradient in first.gradients.items():
            scale = np.linalg.norm(gradient) + 1e-3  # biases before a norm have gradient zero up to rounding
            assert np.linalg.norm(other.gradients[key] - gradient) <= 1e-10 * scale, key


def test_gradient_is_that_of_finite_differences(backend: str) -> None:
    """An independent way to the same number."""
    spec = SPECS["mlp"]
    found = evaluate(backend, "mlp")
    rng = np.random.default_rng(3)
    direction = {name: rng.standard_normal(shape) for name, shape in spec.shapes().items()}
    loaded = odenet.backend(backend)
    losses = []
    for size in (1e-5, -1e-5):
        weights = {name: w + size * direction[name] for name, w in spec.init(1).items()}
        model = loaded.build(spec, weights, solver=odenet.solver("heun"), gradient=odenet.Backprop(), dtype="float64")
        losses.append(loaded.evaluate(model, *batch(spec)).loss)
    slope = sum((found.gradients[name] * direction[name]).sum() for name in direction)
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


ADJOINTS = ("discrete-adjoint", "continuous-adjoint")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_weights_travel_both_ways(backend: str, suffix: str, tmp_path: Path) -> None:
    spec = SPECS["conv"]
    weights = spec.init(5)
    loaded = odenet.backend(backend)
    model = loaded.build(spec, weights, solver=odenet.solver("euler"), gradient=odenet.Backprop(), dtype="float64")
    odenet.save_weights(tmp_path / f"net{suffix}", loaded.read(model))
    again = odenet.load_weights(tmp_path / f"net{suffix}")
    assert set(again) == set(weights)
    for name, array in weights.items():
        assert (again[name] == array).all()


# each gradient for JAX is a program of four stages: that of the continuous adjoint is in test_compared_steps, too
@pytest.mark.parametrize(
    ("backend", "gradient"),
    quick(
        [(name, gradient) for name in BACKENDS for gradient in ADJOINTS],
        [*(("torch", gradient) for gradient in ADJOINTS), ("jax", "discrete-adjoint")],
    ),
    indirect=["backend"],
)
def test_adjoints_on_the_small_residual_network(backend: str, gradient: str) -> None:
    found, exact = evaluate(backend, "conv-none-tanh", "rk4", gradient), evaluate(backend, "conv-none-tanh", "rk4")
    one, other = (np.concatenate([g[k].ravel() for k in sorted(g)]) for g in (found.gradients, exact.gradients))
    assert cases.relative(one, other) < 0.1
    assert found.certificate is not None
    assert found.certificate < 0.1
