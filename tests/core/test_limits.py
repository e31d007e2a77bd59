"""`odenet.theory.limits`: exponents of weights whose exponent is known, and networks whose limit is known."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from odenet import Depth, InputError
from odenet._backend import registry as _registry
from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.claims import linear_limit
from odenet.theory import limits, roughness

NATIVE = [name for name, entry in _registry.available().items() if entry.array_modules]
BOTH = pytest.mark.parametrize("backend", NATIVE)


def brownian(hurst, layers, entries=64, seed=0):
    """Fractional Brownian motion at n / layers, by Cholesky's factor of its covariance: shape (layers, entries)."""
    t = np.arange(1, layers + 1) / layers
    power = 2 * hurst
    covariance = (t[:, None] ** power + t**power - np.abs(t[:, None] - t) ** power) / 2
    factor = np.linalg.cholesky(covariance + 1e-12 * np.eye(layers))
    return factor @ np.random.default_rng(seed).standard_normal((layers, entries))


def smooth(layers, entries=64, turns=0.25, seed=0):
    angle = 2 * np.pi * turns * np.arange(layers)[:, None] / layers
    first, second = np.random.default_rng(seed).standard_normal((2, entries))
    return np.cos(angle) * first + np.sin(angle) * second


def independent(layers, entries=64, seed=0):
    return np.random.default_rng(seed).standard_normal((layers, entries))


@pytest.mark.parametrize("layers", [16, 64, 256])
@pytest.mark.parametrize("hurst", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_the_exponent_of_fractional_brownian_motion(hurst, layers):
    for seed in range(3):
        found = roughness(Depth(brownian(hurst, layers, seed=seed), "piecewise"))
        assert found.exponent == pytest.approx(hurst, abs=0.1)
        assert found.low < found.exponent < found.high < found.low + 0.2


def test_the_interval_covers_about_as_often_as_it_says():
    hits = 0
    for seed in range(60):
        found = roughness(Depth(brownian(0.5, 64, seed=seed), "piecewise"))
        hits += found.low <= 0.5 <= found.high
    assert 0.75 <= hits / 60 <= 1


@pytest.mark.parametrize("layers", [16, 64, 256])
@pytest.mark.parametrize("turns", [0.25, 1])
def test_the_exponent_of_smooth_and_of_independent_weights(layers, turns):
    found = roughness(Depth(smooth(layers, turns=turns), "piecewise"))
    assert found.exponent == pytest.approx(1, abs=0.1)
    assert found.independent < 0.1
    found = roughness(Depth(independent(layers), "linear"))
    assert found.exponent == pytest.approx(0, abs=0.1)
    assert found.independent == pytest.approx(1, abs=0.15)


def test_every_array_counts_alike_and_what_never_changes_says_nothing():
    rough, calm = brownian(0.3, 64), np.ones((64, 500))
    alone = roughness(Depth({"w": rough}, "piecewise"))
    assert roughness(Depth({"w": 1e6 * rough, "b": calm}, "piecewise")).exponent == pytest.approx(alone.exponent)
    listed = Depth.each([{"w": layer, "name": "a"} for layer in rough])
    assert roughness(listed).exponent == pytest.approx(alone.exponent)
    assert roughness(Depth({"w": rough.astype(np.float32)}, "piecewise")).exponent == pytest.approx(
        alone.exponent, abs=1e-4
    )
    two = roughness(Depth({"w": independent(64), "v": 1e-6 * smooth(64)}, "piecewise"))
    assert 0.3 < two.independent < 0.7  # neither hides the other
    assert roughness(Depth({"b": calm}, "piecewise")).exponent == 1


def test_what_has_no_exponent_is_refused():
    with pytest.raises(InputError, match="7 layers"):
        roughness(Depth(smooth(7), "piecewise"))
    broken = smooth(16)
    broken[3, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        roughness(Depth(broken, "piecewise"))
    with pytest.raises(InputError, match="ResidualStack or a Depth"):
        limits(object())
    with pytest.raises(InputError, match="without steps"):
        limits(Depth(smooth(16)))
    with pytest.raises(InputError, match="state x"):
        limits(Depth(smooth(16), "piecewise"), np.ones(3))


@pytest.mark.parametrize(
    ("weights", "t1", "name", "gradient"),
    [
        (smooth(64), 1.0, "ODE", "discrete-adjoint"),
        (brownian(0.5, 64), 1.0, "ODE", "discrete-adjoint"),
        (independent(64), 1.0, "mean ODE", "discrete-adjoint"),
        (independent(64), 8.0, "SDE", "checkpoint"),  # steps of 1/8 = N**-1/2
        (independent(64), 64.0, "none", "checkpoint"),
        (smooth(64), 64.0, "none", "checkpoint"),
    ],
)
def test_the_limit_of_weights_and_steps(weights, t1, name, gradient):
    found = limits(Depth(weights, "piecewise"), t1=t1)
    assert (found.name, found.gradient) == (name, gradient)
    assert found.decided
    assert found.increment == pytest.approx(t1 / 64)
    assert found.wander == pytest.approx(8 * found.increment)
    assert f"[{found.roughness.low:.2f}, {found.roughness.high:.2f}]" in found.reason


def test_tied_weights_are_an_ode():
    found = limits(Depth({"w": np.ones(3)}), steps=32)
    assert (found.name, found.roughness.exponent) == ("ODE", 1)


@BOTH
@pytest.mark.parametrize(("rough", "name"), [(False, "ODE"), (True, "mean ODE")])
def test_trained_networks(backend, rough, name):
    """Linear networks under gradient flow keep the smoothness that they began with (section 3 of the paper)."""
    moments = flow.train(linear_limit.LINEAR, backend, seed=0, depth=32, steps=20, rough=rough)
    assert moments[-1].loss < moments[0].loss / 4
    found = limits(Depth(moments[-1].weights, "piecewise"))
    assert found.name == name
    assert found.decided


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch")
def test_a_torch_stack_before_and_after_training():
    import torch
    from torch import nn

    from odenet_torch import ResidualStack

    class Block(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x):
            return torch.tanh(x @ self.weight)

    x = torch.tensor(independent(20, 8))
    for weights, name in ((smooth(32), "ODE"), (independent(32), "mean ODE")):
        blocks = [Block(torch.tensor(layer.reshape(8, 8) / 8**0.5)) for layer in weights]
        stack = ResidualStack(blocks, gradient="discrete-adjoint")
        descent = torch.optim.SGD(stack.parameters(), lr=1.0)
        for _ in range(10):
            descent.zero_grad()
            loss = ((stack(x) - 0.5 * x) ** 2).mean()
            loss.backward()
            descent.step()
        found = limits(stack, x)
        assert found.name == name, found
        # what a step moves: |f| / N over |y|, seen along the trajectory
        assert 0.2 / 32 < found.increment < 2 / 32
        assert limits(stack).name == name
        with pytest.raises(InputError, match="of a stack"):
            limits(stack, t1=2.0)
    large = ResidualStack([Block(layer.weight) for layer in stack.blocks], t1=32.0)
    assert limits(large, x).name == "none"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax")
def test_a_jax_stack():
    import equinox as eqx
    import jax.numpy as jnp

    from odenet_jax import ResidualStack

    class Block(eqx.Module):
        weight: object

        def __call__(self, x):
            return jnp.tanh(x @ self.weight)

    x = jnp.asarray(independent(5, 4), jnp.float32)
    for weights, name in ((smooth(16, 16), "ODE"), (independent(16, 16), "mean ODE")):
        blocks = [Block(jnp.asarray(layer.reshape(4, 4) / 2, jnp.float32)) for layer in weights]
        found = limits(ResidualStack(blocks), x)
        assert found.name == name, found
