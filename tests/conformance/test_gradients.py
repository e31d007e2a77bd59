"""Gradient methods against backprop: orders in depth, bounds, certificates and the cost model, for every backend."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import cases
import numpy as np
import pytest

import odenet

DEPTHS = (16, 32, 64, 128)

# what was measured when the methods were designed (docs/mathematics.md): relative error of the whole gradient
PUBLISHED = {
    ("euler", "discrete-adjoint:correct=no"): (3.1e-2, 1.4e-2, 6.2e-3, 2.7e-3),
    ("euler", "discrete-adjoint"): (8.7e-3, 2.0e-3, 4.4e-4, 9.8e-5),
    ("euler", "discrete-adjoint:iterations=2"): (1.2e-3, 1.3e-4, 1.4e-5, 1.6e-6),
    ("heun", "discrete-adjoint:correct=no"): (1.8e-3, 2.2e-4, 2.4e-5, 2.7e-6),
    ("heun", "discrete-adjoint"): (4.4e-4, 3.1e-5, 1.9e-6, 1.0e-7),
    ("rk4", "discrete-adjoint:correct=no"): (2.3e-5, 6.2e-7, 1.9e-8, 5.5e-10),
    ("rk4", "discrete-adjoint"): (5.2e-6, 1.2e-7, 1.8e-9, 2.7e-11),
}
ORDERS = {
    ("euler", "discrete-adjoint:correct=no"): (0.75, 1.25),
    ("euler", "discrete-adjoint"): (1.75, 2.25),
    ("euler", "discrete-adjoint:iterations=2"): (2.7, 3.3),
    ("heun", "discrete-adjoint:correct=no"): (2.7, 3.3),
    ("heun", "discrete-adjoint"): (3.7, 4.5),
    ("rk4", "discrete-adjoint:correct=no"): (4.7, 5.5),
    ("rk4", "discrete-adjoint"): (5.5, 6.5),
}


gradient = cases.network_gradient


@cache
def exact(backend: str, solver: str, steps: int) -> np.ndarray:
    """Backprop."""
    return gradient(backend, solver, "backprop", steps)[0]


@pytest.mark.parametrize(("solver", "method"), ORDERS)
def test_order_in_depth(backend: str, solver: str, method: str) -> None:
    errors = [cases.relative(gradient(backend, solver, method, n)[0], exact(backend, solver, n)) for n in DEPTHS]
    fitted = -np.polyfit(np.log(DEPTHS), np.log(errors), 1)[0]
    low, high = ORDERS[solver, method]
    assert low <= fitted <= high, errors
    for error, published in zip(errors, PUBLISHED[solver, method], strict=True):
        assert published / 2 <= error <= published * 2, errors


def test_continuous_adjoint_is_first_order_away_from_eulers_network(backend: str) -> None:
    errors = [
        cases.relative(gradient(backend, "euler", "continuous-adjoint", n)[0], exact(backend, "euler", n))
        for n in DEPTHS
    ]
    assert -np.polyfit(np.log(DEPTHS), np.log(errors), 1)[0] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("solver", odenet.SOLVERS)
def test_every_solver_has_every_method(backend: str, solver: str) -> None:
    """Corrected is nearer to backprop than the paper's method, which is nearer than the continuous adjoint."""
    reference = exact(backend, solver, 12)
    corrected, paper, continuous = (
        cases.relative(gradient(backend, solver, method, 12)[0], reference)
        for method in ("discrete-adjoint", "discrete-adjoint:correct=no", "continuous-adjoint")
    )
    assert corrected < paper < continuous < 0.3
    assert corrected < 4e-2 * 0.5 ** odenet.SOLVERS[solver].order


@pytest.mark.parametrize("correct", ["yes", "no"])
def test_iterations_converge_to_backprop(backend: str, correct: str) -> None:
    """Each iteration contracts by h Lip(f): the limit is the exact gradient."""
    errors = [
        cases.relative(
            gradient(backend, "euler", f"discrete-adjoint:correct={correct}:iterations={m}", 32)[0],
            exact(backend, "euler", 32),
        )
        for m in (1, 2, 4, 16)
    ]
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.1 * errors[1]
    assert errors[3] < 1e-12


def test_certificate_follows_the_error(backend: str) -> None:
    """The residual is of the order of what the prediction is off by, and falls as it does."""
    residuals = [gradient(backend, "euler", "discrete-adjoint", n)[1].certificate for n in (16, 32, 64)]
    iterated = gradient(backend, "euler", "discrete-adjoint:iterations=3", 64)[1].certificate
    assert all(later < 0.4 * earlier for earlier, later in pairwise(residuals))
    assert iterated < 1e-3 * residuals[-1]
    assert gradient(backend, "euler", "backprop", 16)[1].certificate is None


def test_certificate_shows_a_map_that_is_no_contraction(backend: str) -> None:
    """With steps so large that h Lip(f) > 1 the rebuilt states are wrong, and the certificate is large."""
    nonlinearity = cases.tanh(backend)
    weights, y0 = cases.smooth_network(16, 16)
    _, _, solution = odenet.value_and_grad(
        lambda s: (s.y1 * s.y1).sum(),
        lambda t, y, w: nonlinearity(y @ w["a"].T + w["b"]),
        y0,
        odenet.Depth(weights, "piecewise"),
        t1=16.0,
        gradient="discrete-adjoint",
        backend=backend,
    )
    assert solution.stats.certificate > 0.1


def test_continuous_adjoint_with_its_own_solver_and_steps(backend: str) -> None:
    """With a fine backward solve, what is left of the error is that of the forward network alone."""
    coarse = gradient(backend, "euler", "continuous-adjoint", 16)[0]
    fine = gradient(backend, "euler", "continuous-adjoint:solver=rk4:steps=64", 16)[0]
    reference = exact(backend, "euler", 16)
    assert cases.relative(fine, coarse) > 1e-3
    # for a linear constant field the costate is exact: a(0) = exp(1) a(1)
    _, found, _ = odenet.value_and_grad(
        lambda s: s.y1.sum(),
        lambda t, y: y,
        np.ones(3),
        steps=4,
        gradient="continuous-adjoint:solver=dopri5:steps=16",
        backend=backend,
    )
    assert cases.flat(backend, found.y0) == pytest.approx(np.full(3, np.e), rel=1e-9)
    assert cases.relative(fine, reference) < 0.5


METHODS = (
    "backprop",
    "discrete-adjoint",
    "discrete-adjoint:correct=no",
    "discrete-adjoint:iterations=3",
    "continuous-adjoint",
    "continuous-adjoint:solver=rk4:steps=10",
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("solver", ["euler", "bosh3"])
def test_counts_are_the_cost_model(backend: str, solver: str, method: str) -> None:
    spec = odenet.NetSpec("mlp", 5, 4, 4, (4,), 3, along="linear")
    record = odenet.gradient(method)
    loaded = odenet.backend(backend)
    model = loaded.build(spec, spec.init(), solver=odenet.solver(solver), gradient=record, dtype="float64")
    rng = np.random.default_rng(0)
    measured = loaded.measure(model, rng.standard_normal((2, 4)), np.array([0, 2]), repeats=1)
    cost = record.cost(odenet.solver(solver), 5)
    assert (measured.f_forward, measured.f_backward, measured.vjp) == (cost.f_forward, cost.f_backward, cost.vjp)
    assert measured.peak_bytes > 0
    assert 0 < measured.forward_seconds
