"""BDIA, the two-step midpoint rule and the momentum network: exact ways back, and what cannot be exact says so."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any

import cases
import numpy as np
import pytest
from quick import quick

import odenet
from odenet import _tree
from odenet._solvers.reversible import ReversibleSolver

QUANTISED = (
    "bdia",
    "bdia:gamma=-0.5:guard=no",
    "bdia:gamma=0.25:bits=20",
    "bdia:seed=5",
    "bdia:seed=5:shared=yes",
    "bdia:gamma=1:guard=no",
    "two-step-midpoint:bits=14",
    "hamiltonian:bits=14",
    "leapfrog:bits=14",
)
REAL = (
    "two-step-midpoint",
    "momentum",
    "bdia:gamma=-0.9:bits=no",
    "bdia:gamma=0.8:bits=no:seed=2",
    "hamiltonian",
    "leapfrog",
)
EXACT = ("checkpoint", "checkpoint:segments=3", "reversible")
STEPS = 7


class Loop:
    """f on NumPy arrays of one number type, with hand-made VJPs of none: what the solvers need on the way there."""

    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def slope(self, n: int, position: float, y: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        assert position == 0
        (x,) = y
        return (np.tanh(x @ self.weights[n]) @ self.weights[n].T,)

    def rounded(self, y: tuple[np.ndarray, ...], shift: float = 0.0) -> tuple[np.ndarray, ...]:
        return tuple(np.round(leaf + leaf.dtype.type(shift)) for leaf in y)

    def of_samples(self, number: Any, y: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        return tuple(number(np.arange(len(leaf))).astype(leaf.dtype)[:, None] for leaf in y)


class Undone(Loop):
    """The same on the way back; f is `off` by so much of itself when it runs again."""

    off = 0.0

    def slope(self, n: int, position: float, y: Any, cotangent: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        (k,) = super().slope(n, position, y)
        noise = np.random.default_rng(n).standard_normal(k.shape).astype(k.dtype)
        return (k * (1 + k.dtype.type(self.off) * noise),), cotangent


def there_and_back(solver: str, steps: int, dtype: str, off: float = 0.0) -> tuple[list[Any], list[Any]]:
    """The states of a random network, and those that are had back, from the last one on."""
    record = odenet.solver(solver)
    assert isinstance(record, ReversibleSolver)
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((steps, 8, 8)) * 0.5).astype(dtype)
    forth, undone = Loop(weights), Undone(weights)
    undone.off = off
    pair = record.start(forth, 1 / steps, (rng.standard_normal((4, 8)).astype(dtype),))
    states, sides = [pair[0][0]], []
    for n in range(steps):
        if record.side_bits:
            (side,) = record.side(forth, pair)
            assert side.min() >= 0
            assert side.max() < 2**record.side_bits
            assert (side == np.round(side)).all()
            sides.append((side,))
        pair = record.step(forth, n, 1 / steps, steps, pair)
        states.append(pair[0][0])
    assert states[-1].dtype == dtype
    kept, g = record.kept(pair), record.cotangents(pair[0], pair[0])
    found = [kept[0][0]]
    for n in reversed(range(steps)):
        kept, g = record.back(undone, n, 1 / steps, steps, (*kept, *([sides[n]] if sides else [])), g)
        found.append(kept[0][0])
    return states, found[::-1]


@pytest.mark.parametrize("solver", QUANTISED)
def test_200_steps_are_undone_bit_by_bit_in_float32(solver: str) -> None:
    states, found = there_and_back(solver, 200, "float32")
    assert all((x == y).all() for x, y in zip(states, found, strict=True))
    bits = odenet.solver(solver).bits  # pyright: ignore[reportAttributeAccessIssue]
    assert all((x * 2.0**bits == np.round(x * 2.0**bits)).all() for x in states)
    assert max(np.abs(x - y).max() for x, y in zip(states[1:], states[:-1], strict=True)) > 2.0 ** (2 - bits)


@pytest.mark.parametrize("solver", ["bdia", "bdia:gamma=-0.25:bits=16", "two-step-midpoint:bits=14:guard=yes"])
def test_they_are_so_where_f_comes_out_otherwise_in_its_last_digits(solver: str) -> None:
    """Which is what the bit more than the paper's is for: without it a state on a tie is rounded to the other side."""
    states, found = there_and_back(solver, 200, "float32", off=1e-5)
    assert all((x == y).all() for x, y in zip(states, found, strict=True))
    with np.errstate(over="ignore", invalid="ignore"):  # once a state is another, the rest of the way is nowhere near
        states, found = there_and_back(solver.replace(":guard=yes", "") + ":guard=no", 200, "float32", off=1e-5)
    assert not all((x == y).all() for x, y in zip(states, found, strict=True))


def test_states_that_are_not_rounded_drift_away() -> None:
    """By 1/|gamma| a step."""
    drift = {}
    for solver in ("bdia:bits=no", "momentum", "two-step-midpoint"):
        states, found = there_and_back(solver, 40, "float32")
        drift[solver] = np.abs(states[0] - found[0]).max()
    assert drift["bdia:bits=no"] > 1
    assert 1e-6 < drift["momentum"] < 1e-2
    assert drift["two-step-midpoint"] < 1e-5


@pytest.mark.parametrize("solver", ["bdia:gamma=0:bits=no", "bdia:gamma=0:bits=40"])
def test_gamma_0_is_eulers_method(solver: str) -> None:
    weights, y0 = cases.smooth_network(STEPS, STEPS)

    def field(t: Any, y: Any, w: Any) -> Any:
        return cases.sigmoid(y @ w["a"] + w["b"])

    def last(name: str) -> Any:
        depth = odenet.Depth(weights, "piecewise")
        with odenet.backend("torch").prepare("float64", "cpu"):
            return odenet.solve(field, y0, depth, solver=name, backend="torch").y1.numpy()

    assert np.abs(last(solver) - last("euler")).max() < (1e-15 if solver.endswith("no") else 1e-10)
    record = odenet.solver(solver)
    assert isinstance(record, odenet.BDIA)
    assert record == odenet.BDIA(0.3, None).inference or record == odenet.BDIA(0.5, 40).inference
    with pytest.raises(odenet.UnsupportedError, match="'reversible' with solver 'bdia:gamma=0"):
        odenet.solve(
            field, y0, odenet.Depth(weights, "piecewise"), solver=solver, gradient="reversible", backend="torch"
        )


def test_drawn_signs_are_both_and_the_same_for_each_backend_and_pass() -> None:
    signs = [odenet.BDIA(seed=7, shared=True).sign(n) for n in range(400)]
    assert set(signs) == {1, -1}
    assert 120 < signs.count(1) < 280
    assert signs != [odenet.BDIA(seed=8, shared=True).sign(n) for n in range(400)]
    jnp = importlib.import_module("jax.numpy")
    assert odenet.BDIA(seed=7, shared=True).sign(jnp.arange(400, dtype=jnp.int32)).tolist() == signs
    assert odenet.BDIA(gamma=-0.5, seed=2**31 - 1).sign(jnp.int32(3)) in (1, -1)


# through the backends


@cache
def gradient(backend: str, solver: str, method: str, dtype: str = "float64") -> tuple[list[np.ndarray], Any]:
    """y at t0.5 and t1, the gradients of a loss of both by y0 and weights, and the certificate."""
    weights, y0 = cases.mixed_weights(8), cases.mixed_state()

    def cast(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return leaf.astype({"f": dtype, "c": "complex64" if dtype == "float32" else "complex128"}[leaf.dtype.kind])

    weights, y0 = (_tree.map(cast, tree) for tree in (weights, y0))

    def loss(solution: Any) -> Any:
        ys = solution.ys
        vector, scalar = ys["pair"]
        return (ys["matrix"] * ys["matrix"]).sum() + (vector * vector.conj()).real.sum() + scalar.sum() * 2

    with odenet.backend(backend).prepare(dtype, "cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", odenet.GradientWarning)
        _, found, solution = odenet.value_and_grad(
            loss,
            cases.mixed_field,
            y0,
            odenet.Depth(weights, "piecewise"),
            ts=[0.5, 1.0],
            solver=solver,
            gradient=method,
            backend=backend,
        )
        arrays = cases.numpy_leaves(backend, (solution.ys, found.y0, found.weights))
        return arrays, solution.stats.certificate


JAX_TOO = ("bdia:seed=5",)  # each is several programs to compile: the others wait for `make test-slow`


EVERY = [
    (backend, solver, method)
    for backend in cases.BACKENDS
    for solver in (*QUANTISED, *REAL, "alf", "reversible-heun", "reversible:heun")
    for method in EXACT
]
QUICK = [
    (backend, solver, method)
    for backend, solver, method in EVERY
    if backend == "torch" or (solver in JAX_TOO and method != "checkpoint")
]


@pytest.mark.parametrize(("backend", "solver", "method"), quick(EVERY, QUICK))
def test_every_exact_method_has_the_gradient_of_backprop(backend: str, solver: str, method: str) -> None:
    """Straight through the rounding, where there is one; of complex and of real leaves."""
    expected, _ = gradient(backend, solver, "backprop")
    found, certificate = gradient(backend, solver, method)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-11 * (1 + np.abs(other).max())
    if method == "reversible":
        if backend == "torch":  # a certificate of JAX's is asked for in another way
            assert certificate == 0 if solver in QUANTISED else 0 < certificate < 1e-11
        assert certificate is None or solver not in QUANTISED or certificate == 0


@pytest.mark.parametrize("solver", quick(QUANTISED, JAX_TOO))
def test_backends_agree(solver: str) -> None:
    first, *others = (gradient(name, solver, "reversible")[0] for name in cases.BACKENDS)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert np.abs(one - two).max() <= 1e-11 * (1 + np.abs(two).max())


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_in_float32_the_forward_pass_may_lie_on_a_tie_and_no_more(backend: str) -> None:
    expected, _ = gradient(backend, "bdia:seed=5", "backprop", "float32")
    found, _ = gradient(backend, "bdia:seed=5", "reversible", "float32")
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert np.abs(one - other).max() <= 16 * 2.0**-12 * (1 + np.abs(other).max())


def test_the_gradient_is_that_of_the_network_without_rounding_to_the_grid() -> None:
    """Straight through the rounding means: as if there were none, at the rounded states."""
    exact, _ = gradient("torch", "bdia:bits=no", "backprop")
    for bits, bound in ((12, 3e-2), (30, 3e-7)):
        found, _ = gradient("torch", f"bdia:bits={bits}", "backprop")
        errors = [np.abs(one - other).max() / np.abs(other).max() for one, other in zip(found, exact, strict=True)]
        assert 0 < max(errors) < bound


# refusals

REFUSED = {
    "tolerances": (
        {"solver": "bdia", "rtol": 1e-3},
        odenet.UnsupportedError,
        "'bdia' with tolerances: it estimates no error.*dopri5.*steps=N",
    ),
    "an adjoint": (
        {"solver": "bdia", "steps": 4, "gradient": "discrete-adjoint"},
        odenet.UnsupportedError,
        "'discrete-adjoint' with solver 'bdia'.*backprop, checkpoint, reversible.*gradient='reversible'",
    ),
    "a continuous adjoint where nothing is reversible": (
        {"solver": "bdia:gamma=0", "steps": 4, "gradient": "continuous-adjoint"},
        odenet.UnsupportedError,
        "'continuous-adjoint' with solver 'bdia:gamma=0.0'.*backprop, checkpoint with this solver",
    ),
    "few states": (
        {"solver": "momentum", "steps": 4, "gradient": "checkpoint:states=2"},
        odenet.UnsupportedError,
        "'checkpoint:states=2' with solver 'momentum'.*segments=K",
    ),
    "rounded states": (
        {"solver": "alf", "steps": 4, "gradient": "checkpoint:bits=8"},
        odenet.UnsupportedError,
        "'checkpoint:bits=8' with solver 'alf'",
    ),
    "gamma that reads no f": ({"solver": "bdia:gamma=-1", "steps": 4}, odenet.InputError, r"gamma=-1\.0.*above -1"),
    "gamma of no grid": (
        {"solver": "bdia:gamma=0.3", "steps": 4},
        odenet.InputError,
        r"gamma=0\.3 of bdia with bits=12.*0\.5.*bits=no",
    ),
    "signs of 1": ({"solver": "bdia:gamma=1:seed=1", "steps": 4}, odenet.InputError, "signs drawn for gamma=1"),
    "bits of none": ({"solver": "bdia:bits=0", "steps": 4}, odenet.InputError, "bits=0.*1 to 48"),
    "momentum of 1": ({"solver": "momentum:gamma=1", "steps": 4}, odenet.InputError, r"gamma=1\.0 of momentum"),
    "no such option": ({"solver": "bdia:gama=0.5", "steps": 4}, odenet.UnknownNameError, "no option of bdia.*gamma"),
    "no value": (
        {"solver": "bdia:guard", "steps": 4},
        odenet.InputError,
        "'guard' in solver.*option=value",
    ),
    "a value of another kind": (
        {"solver": "bdia:bits=many", "steps": 4},
        odenet.InputError,
        "bits='many' in solver.*a whole number, or no",
    ),
    "an option twice": ({"solver": "bdia:bits=9:bits=8", "steps": 4}, odenet.InputError, "bits twice"),
    "coupling of one": ({"solver": "two-step-midpoint:coupling=1", "steps": 4}, odenet.UnknownNameError, "coupling"),
}


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_apply_is_refused_by_what_does(backend: str, case: str) -> None:
    choices, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        odenet.solve(lambda t, y: -y, np.ones(3), backend=backend, **choices)
