"""All backends give the numbers of a NumPy loop written for the test, and each other's gradients."""

from __future__ import annotations

import itertools
from typing import Any

import cases
import numpy as np
import pytest
from cases import BACKENDS
from quick import pairwise, quick

import odenet
from odenet import _tree

STEPS = 6
GRADIENTS = ("backprop", "discrete-adjoint", "discrete-adjoint:correct=no:iterations=2", "continuous-adjoint:steps=12")
MENU = {  # the others: solver and kind of weights, so that each kind is seen
    "checkpoint": ("heun", "piecewise"),
    "checkpoint:segments=2": ("kutta3", "linear"),
    "checkpoint:states=2": ("rk4", "linear"),
    "discrete-adjoint:predictor=extrapolate": ("euler", "piecewise"),
    "discrete-adjoint:anchors=2": ("ralston", "linear"),
    "discrete-adjoint:tolerance=1e-4": ("euler", "shared"),
    "continuous-adjoint:interpolate=yes": ("rk38", "linear"),
}


def loss(solution: odenet.Solution) -> Any:
    """A real scalar that sees every leaf at every kept time."""
    total = 0.0
    for leaf in _tree.leaves(solution.ys):
        total = total + ((leaf * leaf.conj()).real * 0.5 + leaf.real).sum()
    return total


def kind_for(solver: str) -> tuple[str, int]:
    """Alternate kinds of weights so that all solvers and all kinds are seen."""
    return (("piecewise", STEPS), ("linear", STEPS + 1), ("piecewise", STEPS // 2))[
        list(odenet.SOLVERS).index(solver) % 3
    ]


@pytest.mark.parametrize("solver", odenet.SOLVERS)
def test_forward_is_that_of_a_numpy_loop(backend: str, solver: str) -> None:
    kind, layers = kind_for(solver)
    weights, y0 = cases.mixed_weights(layers), cases.mixed_state()
    depth = odenet.Depth(weights, kind)
    found = odenet.solve(cases.mixed_field, y0, depth, steps=STEPS, solver=solver, backend=backend)
    for leaf, expected in zip(
        cases.numpy_leaves(backend, found.y1), cases.reference(cases.mixed_field, y0, depth, solver, STEPS), strict=True
    ):
        assert leaf.dtype == expected.dtype
        assert np.abs(leaf - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("solver", quick(odenet.SOLVERS, ("heun",)))
def test_backprop_gradients_agree(solver: str) -> None:
    """All solvers, which share one step, are in the test above; each kind of weights is in the one below."""
    kind, layers = kind_for(solver)
    found = {name: _gradients(name, kind, layers, solver, "backprop") for name in BACKENDS}
    first, *rest = found.values()
    assert len(first) == 3 + 3  # every leaf of the state and of the weights
    for other in rest:
        for one, two in zip(first, other, strict=True):
            assert one.shape == two.shape
            assert cases.relative(one, two) <= 1e-10


KINDS = ("shared", "piecewise", "linear")
PAIRS = [(gradient, kind) for gradient in GRADIENTS[1:] for kind in KINDS]


@pytest.mark.parametrize(("gradient", "kind"), quick(PAIRS, tuple(zip(GRADIENTS[1:], KINDS, strict=True))))
def test_adjoints_agree(gradient: str, kind: str) -> None:
    """Each method and each kind of weights once in the quick suite."""
    layers = {"shared": 1, "piecewise": 3, "linear": 4}[kind]
    found = [_gradients(name, kind, layers, "heun", gradient, ts=[0.5, 0.5, 1.0]) for name in BACKENDS]
    for other in found[1:]:
        assert cases.relative(np.concatenate(found[0], axis=None), np.concatenate(other, axis=None)) <= 1e-10


@pytest.mark.parametrize(
    "gradient", quick(MENU, ["discrete-adjoint:predictor=extrapolate", "continuous-adjoint:interpolate=yes"])
)
def test_the_menu_agrees(gradient: str) -> None:
    """Leaf by leaf; approximate methods are off by the same. All are held to backprop in test_table, too."""
    solver, kind = MENU[gradient]
    layers = {"shared": 1, "piecewise": 3, "linear": 4}[kind]
    first, *rest = (_gradients(name, kind, layers, solver, gradient, ts=[0.5, 0.5, 1.0]) for name in BACKENDS)
    for other in rest:
        for one, two in zip(first, other, strict=True):
            assert cases.relative(one, two) <= 1e-10


REVERSIBLE = ("alf", "reversible:euler:coupling=0.9", "reversible-heun", "reversible:rk4")


@pytest.mark.parametrize("solver", quick(REVERSIBLE, ("reversible:euler:coupling=0.9",)))
def test_reversible_solvers_agree(solver: str) -> None:
    """In the solution and, leaf by leaf, in the gradient, which is that of backprop; others are in test_table, too."""
    first, *rest = (_gradients(name, "linear", 4, solver, "reversible", ts=[0.5, 1.0]) for name in BACKENDS)
    exact = _gradients(BACKENDS[0], "linear", 4, solver, "backprop", ts=[0.5, 1.0])
    for other in (*rest, exact):
        for one, two in zip(first, other, strict=True):
            assert cases.relative(one, two) <= 1e-10


def _gradients(backend: str, kind: str, layers: int, solver: str, gradient: str, ts: Any = None) -> list[np.ndarray]:
    weights = cases.mixed_weights(layers)
    if kind == "shared":
        weights = _tree.map(lambda leaf: leaf[0], weights)
    with odenet.backend(backend).prepare("float64", "cpu"):
        _, gradients, _ = odenet.value_and_grad(
            loss,
            cases.mixed_field,
            cases.mixed_state(),
            odenet.Depth(weights, kind),  # pyright: ignore[reportArgumentType]
            steps=STEPS,
            solver=solver,
            gradient=gradient,
            ts=ts,
            backend=backend,
        )
        return cases.numpy_leaves(backend, (gradients.y0, gradients.weights))


STATES = {
    "number": 0.7,
    "scalar": np.asarray(0.7),
    "vector": np.linspace(0.1, 1, 5),
    "matrix": np.linspace(0.1, 1, 6).reshape(2, 3),
    "float32": np.linspace(0.1, 1, 5, dtype=np.float32),
    "complex128": np.linspace(0.1, 1, 5) * (1 + 0.5j),
    "complex64": np.linspace(0.1, 1, 5).astype(np.complex64),
    "tuple": (np.linspace(0.1, 1, 5), np.asarray(0.3)),
    "list": [np.linspace(0.1, 1, 5)],
    "dict": {"b": np.linspace(0.1, 1, 5), "a": np.linspace(0.1, 1, 6).reshape(2, 3)},
    "nested": {"b": (np.linspace(0.1, 1, 5), [np.asarray(0.3)]), "a": np.linspace(0.1, 1, 2)},
}


def logistic(t: Any, y: Any) -> Any:
    """Each leaf on its own: y' = y (1 - y) + t y."""
    return _tree.map(lambda leaf: leaf * (1 - leaf) + t * leaf, y)


@pytest.mark.parametrize("state", STATES)
def test_every_kind_of_state(backend: str, state: str) -> None:
    y0 = STATES[state]
    found = odenet.solve(logistic, y0, steps=4, solver="rk4", backend=backend)
    assert _tree.same_shape(found.y1, y0)
    for leaf, expected in zip(
        cases.numpy_leaves(backend, found.y1), cases.reference(logistic, y0, None, "rk4", 4), strict=True
    ):
        given = np.asarray(_tree.leaves(y0)[0]).dtype
        assert leaf.shape == expected.shape
        single = given in (np.float32, np.complex64) or state == "number"  # torch makes numbers float32
        if state != "number":
            assert leaf.dtype == given
        assert np.abs(leaf - expected).max() <= (1e-6 if single else 1e-12) * np.abs(expected).max()


# each number type by a method of its own, and the nested state, whose leaves are of several shapes, by all
@pytest.mark.parametrize(
    ("gradient", "state"),
    quick(
        [(gradient, state) for state in ("float32", "complex128", "nested") for gradient in GRADIENTS],
        [(GRADIENTS[1], "float32"), (GRADIENTS[0], "complex128"), *((name, "nested") for name in GRADIENTS)],
    ),
)
def test_gradients_of_every_kind_of_state_agree(gradient: str, state: str) -> None:
    found = []
    for name in BACKENDS:
        with odenet.backend(name).prepare("float64", "cpu"):
            _, g, _ = odenet.value_and_grad(
                loss, logistic, STATES[state], steps=6, solver="midpoint", gradient=gradient, backend=name
            )
            found.append(cases.flat(name, g.y0))
    for other in found[1:]:
        assert cases.relative(other, found[0]) <= (1e-5 if state == "float32" else 1e-10)


def test_half_precision_is_carried_in_float32(backend: str) -> None:
    """bfloat16 increments of a deep network would be rounded away: the state between the blocks is float32."""
    y0 = np.linspace(0.5, 1, 8, dtype=np.float32)
    half = {"torch": lambda x: __import__("torch").tensor(x).bfloat16(), "jax": lambda x: _jax_half(x)}[backend](y0)
    found = odenet.solve(lambda t, y: -y, half, steps=512)
    assert "bfloat16" in str(found.y1.dtype)
    expected = y0 * (1 - 1 / 512) ** 512
    assert np.abs(odenet.backend(backend).to_numpy(found.y1) - expected).max() < 2e-2 * expected.max()


def _jax_half(x: np.ndarray) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(x, jnp.bfloat16)


@pytest.mark.parametrize(
    ("backend", "t1", "gradient"),
    pairwise(itertools.product(cases.BACKENDS, (-1.0, 0.0, 2.5), GRADIENTS[:2])),
    indirect=["backend"],
)
def test_backward_and_empty_time(backend: str, t1: float, gradient: str) -> None:
    """Solving to t1 and back returns to the start up to the solver's error; an empty interval is the identity."""
    y0 = np.linspace(0.1, 1, 5)
    value, gradients, there = odenet.value_and_grad(
        loss, lambda t, y: t - y, y0, t1=t1, steps=40, solver="rk4", gradient=gradient, backend=backend
    )
    back = odenet.solve(lambda t, y: t - y, there.y1, t0=t1, t1=0.0, steps=40, solver="rk4")
    assert np.abs(cases.flat(backend, back.y1) - y0).max() < 1e-6
    exact = (y0 + 1) * np.exp(-t1) + t1 - 1
    assert np.abs(cases.flat(backend, there.y1) - exact).max() < 1e-5
    assert cases.relative(cases.flat(backend, gradients.y0), (exact + 1) * np.exp(-t1)) < 1e-5
    assert np.isfinite(float(value))


def test_times_kept(backend: str) -> None:
    y0 = np.linspace(0.1, 1, 5)
    every = odenet.solve(lambda t, y: t - y, y0, steps=8, ts="all", backend=backend)
    some = odenet.solve(lambda t, y: t - y, y0, steps=8, ts=[0, 0.25, 0.25, 1], backend=backend)
    last = odenet.solve(lambda t, y: t - y, y0, steps=8, backend=backend)
    as_numpy = odenet.backend(backend).to_numpy
    assert as_numpy(every.ts) == pytest.approx(np.arange(9) / 8, abs=0)
    assert as_numpy(some.ts) == pytest.approx([0, 0.25, 0.25, 1], abs=0)
    assert (as_numpy(some.ys) == as_numpy(every.ys)[[0, 2, 2, 8]]).all()
    assert (as_numpy(last.ys) == as_numpy(every.ys)[[8]]).all()
    assert last.result is odenet.Result.SUCCESS


def test_a_solution_that_blows_up_says_so(backend: str) -> None:
    found = odenet.solve(lambda t, y: y * y * y, np.full(3, 50.0), steps=64, backend=backend)
    assert found.result is odenet.Result.NONFINITE
    assert "more steps" in found.result.value


def test_integers_along_depth_are_held_up_to_the_next_node(backend: str) -> None:
    """There is no line between two; torch took their mean at the middle of a step, JAX did not."""
    slope, sign, h = np.array([0.3, 0.5, -0.4]), np.array([1, -2, 4]), 1 / 4
    field = lambda t, y, w: w["slope"] * w["sign"] + 0 * y  # noqa: E731
    weights = odenet.Depth({"slope": slope, "sign": sign}, "linear")
    found = odenet.solve(field, np.zeros(1), weights, steps=4, solver="rk4", backend=backend)
    refined = odenet.solve(field, np.zeros(1), weights.refine(2), solver="rk4", backend=backend)

    def at(place: float) -> float:
        return np.interp(place, [0, 1, 2], slope) * sign[int(place)]

    expected = sum(h / 6 * (at(n / 2) + 4 * at(n / 2 + 1 / 4) + at((n + 1) / 2)) for n in range(4))
    for solution in (found, refined):
        np.testing.assert_allclose(cases.flat(backend, solution.y1), [expected], rtol=1e-12)
