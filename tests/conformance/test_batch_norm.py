"""Batch normalisation on both backends: the same gradients and running statistics, whatever runs blocks again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import odenet
from odenet import NetSpec, UnsupportedError
from odenet._backend import registry

NATIVE = [name for name, entry in registry.available().items() if entry.array_modules]
pytestmark = pytest.mark.skipif(not {"torch", "jax"} <= set(NATIVE), reason="compares torch and jax")
SPEC = NetSpec("conv", 2, 2, inputs=(2, 4, 4), classes=3, norm="batch", activated=True)
STAGES = NetSpec("bottleneck", 2, 8, inputs=(2, 4, 4), classes=3, norm="batch", before=(1,), after=(1,))
RNG = np.random.default_rng(0)
X, TARGETS = RNG.standard_normal((5, 2, 4, 4)), RNG.integers(0, 3, 5)
SLOW = pytest.mark.slow  # each is a program that JAX compiles
WAYS = [
    ("euler", "piecewise", "discrete-adjoint", STAGES),
    *(
        pytest.param(*each, marks=SLOW)
        for each in (
            ("euler", "linear", "backprop", SPEC),
            ("reversible:heun", "linear", "reversible", SPEC),
            ("euler", "shared", "checkpoint", SPEC),
            ("heun", "linear", "checkpoint:segments=2", SPEC),
            ("heun", "linear", "discrete-adjoint:iterations=2", STAGES),
            ("midpoint", "linear", "discrete-adjoint:correct=no", SPEC),
            ("rk4", "linear", "discrete-adjoint:predictor=extrapolate:anchors=2", SPEC),
            ("rk4", "shared", "continuous-adjoint", SPEC),
            ("heun", "piecewise", "continuous-adjoint:interpolate=yes", SPEC),
            ("reversible-heun", "piecewise", "reversible", SPEC),
            ("alf", "linear", "reversible", SPEC),
        )
    ),
]


@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
@pytest.mark.parametrize(("solver", "along", "method", "spec"), WAYS)
def test_two_steps_of_training_leave_the_same_weights_and_statistics(solver, along, method, spec):
    spec, seen = replace(spec, along=along), []
    weights = spec.init(0, "independent")
    for name in ("torch", "jax"):
        backend = registry.backend(name)
        choices = {"solver": odenet.solver(solver), "gradient": odenet.gradient(method), "dtype": "float64"}
        model = backend.build(spec, weights, **choices)
        with backend.prepare("float64", "cpu"):
            trainer = backend.trainer(model, momentum=0.9, weight_decay=1e-3)
            steps = [trainer.step(X, TARGETS, 0.05) for _ in range(2)]
            seen.append((trainer.state(), trainer.predict(X), steps))
            read = backend.read(model)
        assert all(np.array_equal(read[name], array) for name, array in weights.items()), "a copy is trained"
    (one, outputs, steps), (other, others, other_steps) = seen
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=1e-8, atol=1e-8, err_msg=name)
    np.testing.assert_allclose(outputs, others, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose([s.loss for s in steps], [s.loss for s in other_steps], rtol=1e-8)
    unread = along == "linear" and solver in ("euler", "midpoint", "alf")  # which evaluate nothing at the last node
    for name in (name for name in spec.statistics() if name.endswith("var")):  # means may stay at 0 by symmetry
        moved = one[f"weight.{name}"] != weights[name]
        assert moved[: -1 if unread and name.startswith("block.") else None].all(), name


def test_jax_in_training_and_in_evaluation():
    import jax.numpy as jnp

    backend = registry.backend("jax")
    choices = {"solver": odenet.solver("euler"), "gradient": odenet.gradient("discrete-adjoint"), "dtype": "float64"}
    with backend.prepare("float64", "cpu"):
        model = backend.build(SPEC, SPEC.init(0, "independent"), **choices)
        outputs, after = model.in_training(jnp.asarray(X))
        assert after.keys() == model.statistics.keys() == SPEC.statistics().keys()
        np.testing.assert_array_equal(model.for_training()(jnp.asarray(X)), outputs)
        evaluated = model(jnp.asarray(X))
        assert np.abs(evaluated - outputs).max() > 1e-3
        one = model(jnp.asarray(X[:1]))
        np.testing.assert_allclose(one, evaluated[:1], rtol=1e-12, err_msg="rows are on their own in evaluation")
        with pytest.raises(UnsupportedError, match="a block cannot tell the backward pass"):
            backend.build(replace(SPEC, norm="batch-eval-backward"), SPEC.init(0), **choices)


@pytest.mark.parametrize("name", ["torchdiffeq", "diffrax"])
def test_other_libraries_count_as_well_or_say_that_they_do_not(name):
    if name not in registry.available():
        pytest.skip(f"{name} is not installed")
    backend, weights = registry.backend(name), SPEC.init(0, "independent")
    choices = {"solver": odenet.solver("euler"), "gradient": odenet.gradient("backprop"), "dtype": "float64"}
    with backend.prepare("float64", "cpu"):
        model = backend.build(SPEC, weights, **choices)
        if name == "diffrax":
            with pytest.raises(UnsupportedError, match="norm='batch' in training"):
                backend.evaluate(model, X, TARGETS)
            return
        own = registry.backend("torch").build(SPEC, weights, **choices)
        import torch

        for net in (model, own):
            net(torch.tensor(X)).sum().backward()
        for (key, mine), theirs in zip(own.named_buffers(), model.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, msg=key)
        for mine, theirs in zip(own.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
