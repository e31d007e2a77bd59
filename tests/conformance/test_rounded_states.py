"""`checkpoint:bits=8` and `bits=16` on both backends: the same states, errors that are known and do not add up."""

from __future__ import annotations

import itertools

import cases
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from quick import quick

import odenet
from odenet import Depth
from odenet_torch import solve

WIDTH, BATCH = 48, 6


def network(steps, step_size, seed=0):
    """A tanh network with steps of that size, its weights, and a start."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((steps, WIDTH, WIDTH)) / WIDTH**0.5
    choices = {"steps": steps, "t1": steps * step_size}
    return rng.standard_normal((BATCH, WIDTH)), weights, choices


def evaluate(backend, gradient, y0, weights, choices, field=None, **more):
    """The gradients by y0 and weights in one vector, and the certificate."""
    tanh = cases.tanh(backend)
    arrays = odenet.backend(backend)
    with arrays.prepare("float64", "cpu"):
        _, found, solution = odenet.value_and_grad(
            lambda solution: (solution.y1 * solution.y1).sum(),
            field or (lambda t, y, w: tanh(y @ w)),
            y0,
            Depth(weights, "piecewise"),
            gradient=gradient,
            backend=backend,
            **choices,
            **more,
        )
        return cases.flat(backend, (found.y0, found.weights)), solution.stats.certificate


def states_there_and_back(gradient, solver, y0, weights, choices):
    """The steps' states as the forward pass had them, those that the way back took VJPs at, and the certificate."""
    stages, seen = odenet.SOLVERS[solver].stages, []

    def watched(t, y, w):
        seen.append(y.detach().clone())
        return torch.tanh(y @ w)

    start, tree = (torch.tensor(array, requires_grad=True) for array in (y0, weights))
    solution = solve(watched, start, Depth(tree, "piecewise"), solver=solver, gradient=gradient, **choices)
    there = seen[::stages]
    seen.clear()
    solution.y1.square().sum().backward()
    return there, seen[::stages][::-1], solution.stats.certificate


CASES = list(itertools.product(("torch", "jax"), (8, 16)))


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("step_size", [1 / 20, 1.0])
def test_the_certificate_is_the_largest_error_of_a_row_of_a_state(solver, bits, step_size):
    y0, weights, choices = network(20, step_size)
    there, back, certificate = states_there_and_back(f"checkpoint:bits={bits}", solver, y0, weights, choices)
    errors = [((a - b).norm(dim=-1) / a.norm(dim=-1)).max().item() for a, b in zip(there, back, strict=True)]
    assert max(errors) > 0
    assert certificate == pytest.approx(max(errors), rel=1e-6)


def test_the_error_of_a_state_is_one_rounding_of_one_increment():
    """And no more after 300 steps than after 20: what one increment loses is in the next."""
    y0, weights, choices = network(300, 1 / 20)
    there, back, _ = states_there_and_back("checkpoint:bits=8", "euler", y0, weights, choices)
    increments = [0 * there[0], *(b - a for a, b in itertools.pairwise(there))]
    for increment, a, b in zip(increments, there, back, strict=True):
        bound = increment.abs().amax(-1, keepdim=True) / 254 * 1.01 + 1e-12
        assert ((a - b).abs() <= bound).all()


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_both_backends_keep_the_same_states(solver):
    y0, weights, choices = network(16, 1 / 16)
    exact, _ = evaluate("torch", "checkpoint", y0, weights, choices, solver=solver)
    for bits, least in ((8, 1e-6), (16, 1e-9)):
        one, certificate = evaluate("torch", f"checkpoint:bits={bits}", y0, weights, choices, solver=solver)
        error = cases.relative(one, exact)
        assert least < error < 3 * certificate
        assert certificate < 3e-4 / (256 if bits == 16 else 1)
        if bits == 8 and solver != "rk4":
            other, same = evaluate("jax", f"checkpoint:bits={bits}", y0, weights, choices, solver=solver)
            assert cases.relative(other, one) < 1e-9
            assert same == pytest.approx(certificate, rel=1e-6)


def test_errors_fall_with_depth_and_are_bounded_where_steps_are_large():
    def errors(steps, step_size):
        y0, weights, choices = network(steps, step_size)
        exact, _ = evaluate("torch", "checkpoint", y0, weights, choices)
        return cases.relative(evaluate("torch", "checkpoint:bits=8", y0, weights, choices)[0], exact)

    small = [errors(steps, 1 / steps) for steps in (16, 64, 256)]
    assert small[1] < small[0] / 3
    assert small[2] < small[1] / 3
    assert errors(64, 1.0) < 1e-2


@pytest.mark.parametrize(("backend", "bits"), quick(CASES, [case for case in CASES if case != ("jax", 16)]))
def test_a_step_to_a_far_smaller_state(backend, bits):
    """A chain of increments of 1000 says nothing of a state of 1: it restarts there, and what was before it is kept."""
    rng = np.random.default_rng(0)
    tanh = cases.tanh(backend)
    y0, weights = 1000 * rng.standard_normal((4, WIDTH)), rng.standard_normal((6, WIDTH, WIDTH))
    y0[2] /= 1000  # the others restart without this row

    def field(t, y, w):
        return -y + tanh(y @ w / 800) + 900 * (t > 2.5) * (t < 3.5)

    choices = {"steps": 6, "t1": 6.0}
    exact, _ = evaluate(backend, "checkpoint", y0, weights, choices, field)
    found, certificate = evaluate(backend, f"checkpoint:bits={bits}", y0, weights, choices, field)
    scale = 1 if bits == 8 else 256
    assert 0 < certificate < 2e-2 / scale
    assert cases.relative(found, exact) < 2e-2 / scale


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_a_nested_complex_state_at_kept_times(backend):
    y0, weights, ts = cases.mixed_state(), cases.mixed_weights(8), [0.0, 0.25, 1.0]

    def gradient(method):
        with odenet.backend(backend).prepare("float64", "cpu"):
            _, found, _ = odenet.value_and_grad(
                lambda solution: sum((abs(leaf) ** 2).sum() for leaf in odenet.kit.tree_leaves(solution.ys)),
                cases.mixed_field,
                y0,
                Depth(weights, "piecewise"),
                steps=8,
                ts=ts,
                gradient=method,
                backend=backend,
            )
            return cases.flat(backend, (found.y0, found.weights))

    exact = gradient("checkpoint")
    assert cases.relative(gradient("checkpoint:bits=8"), exact) < 2e-3
    assert cases.relative(gradient("checkpoint:bits=16"), exact) < 1e-5


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_states_of_half_precision_are_kept_as_f_sees_them(backend):
    """With 16 bits and one stage the gradient is checkpoint's to the last bit."""
    y0, weights, choices = network(12, 1 / 12)
    arrays = odenet.backend(backend)
    with arrays.prepare("float32", "cpu"):
        half, convert = (torch.bfloat16, torch.tensor) if backend == "torch" else (jnp.bfloat16, jnp.asarray)
        start, tree = (convert(array, dtype=half) for array in (y0, weights))
        tanh = cases.tanh(backend)

        def gradient(method):
            _, found, solution = odenet.value_and_grad(
                lambda solution: (solution.y1 * solution.y1).sum(),
                lambda t, y, w: tanh(y @ w),
                start,
                Depth(tree, "piecewise"),
                gradient=method,
                **choices,
            )
            return np.asarray(arrays.to_numpy(found.weights), np.float32), solution.stats.certificate

        exact, _ = gradient("checkpoint:states=12")
        found, certificate = gradient("checkpoint:bits=16")
        assert certificate == 0
        assert cases.relative(found.ravel(), exact.ravel()) < (0 if backend == "torch" else 1e-2) + 1e-12


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_tolerance_that_is_not_met_is_an_error_with_what_was_reached(backend):
    y0, weights, choices = network(6, 1 / 6)
    _, certificate = evaluate(backend, "checkpoint:bits=8", y0, weights, choices)
    with pytest.raises(odenet.GradientError, match=f"off by {certificate:.1e}, more than tolerance=1e-06.*bits=16"):
        evaluate(backend, "checkpoint:bits=8:tolerance=1e-6", y0, weights, choices)
    assert evaluate(backend, "checkpoint:bits=8:tolerance=1e-2", y0, weights, choices)[1] == certificate


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_state_that_is_not_finite_has_no_finite_certificate(backend):
    y0, weights, choices = network(4, 0.25)

    def field(t, y, w):
        return (y @ w) / (y - y)

    _, certificate = evaluate(backend, "checkpoint:bits=8", y0, weights, choices, field)
    assert certificate != certificate
    with pytest.raises(odenet.GradientError, match="off by nan"):
        evaluate(backend, "checkpoint:bits=8:tolerance=1e-2", y0, weights, choices, field)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("torch", {"rtol": 1e-3, "atol": 1e-3}), ("jax", {"rtol": 1e-3, "atol": 1e-3}), ("diffrax", {"steps": 4})],
)
def test_what_is_not_offered_is_refused_by_name(backend, options):
    y0, weights = np.ones((2, 3)), np.ones((3, 3))
    with pytest.raises(odenet.UnsupportedError, match="option bits of gradient checkpoint"):
        odenet.solve(lambda t, y, w: y @ w, y0, weights, gradient="checkpoint:bits=8", backend=backend, **options)
