"""With equal steps the peers take odenet's: states and exact gradients agree to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import odenet

STEPS = 6
KINDS = {"shared": 1, "piecewise": 3, "linear": 4}
EXPLICIT = {
    peer: [
        name
        for name in odenet.known()[peer].solvers or ()
        if not isinstance(odenet.solver(name), odenet.DelegatedSolver)
    ]
    for peer in ("torchdiffeq", "diffrax")
}
PAIRS = [  # diffrax compiles for seconds
    pytest.param(peer, name, marks=() if peer == "torchdiffeq" else pytest.mark.slow)
    for peer, names in EXPLICIT.items()
    for name in names
]


def field(t: Any, y: Any, w: Any) -> Any:
    """Arithmetic alone, which both frameworks have; it reads the time."""
    u = y @ w["a"] + t
    return u / (1 + u * u)


def gradients(
    peer: str, solver: str, gradient: str, kind: str, t1: float = 1.0, steps: int = STEPS, ts: Any = (0.5, 0.5, 1.0)
) -> tuple[np.ndarray, np.ndarray, odenet.Solution]:
    """Loss and both gradients in one vector, the states, and the solution."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 4))
    along = np.arange(KINDS[kind]) / KINDS[kind]
    weights = np.cos(along)[:, None, None] * a + np.sin(along)[:, None, None] * b
    value, found, solution = odenet.value_and_grad(
        lambda s: (s.ys * s.ys).sum(),
        field,
        rng.standard_normal((3, 4)),
        odenet.Depth({"a": weights[0] if kind == "shared" else weights}, kind),  # pyright: ignore[reportArgumentType]
        steps=steps,
        t1=t1,
        ts=None if ts is None else [t * t1 for t in ts],
        solver=solver,
        gradient=gradient,
        backend=peer,
    )
    as_numpy = odenet.backend(peer).to_numpy
    parts = [np.ravel(as_numpy(leaf)) for leaf in (value, found.y0, found.weights["a"])]
    return np.concatenate(parts), as_numpy(solution.ys), solution


def off(one: np.ndarray, other: np.ndarray) -> float:
    """|one - other| / |other|."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def kind_for(solver: str) -> str:
    """Another kind for each solver in turn."""
    return list(KINDS)[sum(map(ord, solver)) % 3]


@pytest.mark.parametrize(("peer", "solver"), PAIRS)
def test_states_and_gradients_are_those_of_odenet(peer: str, solver: str) -> None:
    kind, t1 = kind_for(solver), -1.0 if len(solver) % 2 else 1.0
    ours, theirs = (gradients(name, solver, "backprop", kind, t1) for name in ("torch", peer))
    assert ours[1].shape == theirs[1].shape == (3, 3, 4)
    assert off(theirs[1], ours[1]) < 1e-10
    assert off(theirs[0], ours[0]) < 1e-10
    assert theirs[2].stats.backend == peer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", EXPLICIT["torchdiffeq"])
@pytest.mark.parametrize("gradient", ["backprop", "continuous-adjoint", "continuous-adjoint:steps=12"])
def test_torchdiffeq_reads_every_kind_of_weights(kind: str, solver: str, gradient: str) -> None:
    """Its adjoint is ours step for step but for Euler's, which starts at t[n+1] where ours reads the layer at t[n]."""
    ours, theirs = (gradients(name, solver, gradient, kind) for name in ("torch", "torchdiffeq"))
    if gradient == "backprop" or solver != "euler":
        assert off(theirs[0], ours[0]) < 1e-10
    else:
        exact = gradients("torch", solver, "backprop", kind)
        assert off(theirs[0], ours[0]) > 1e-6
        assert off(theirs[0], exact[0]) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["checkpoint", "checkpoint:states=2", "continuous-adjoint:steps=12"])
def test_diffrax_gradients_of_shared_weights(gradient: str) -> None:
    ours, theirs = (gradients(name, "heun", gradient, "shared") for name in ("torch", "diffrax"))
    assert off(theirs[0], ours[0]) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["piecewise", "linear"])
def test_the_diffrax_adjoint_converges_to_backprop(kind: str) -> None:
    """It starts anew in each layer, so that it is not ours; its error falls with h^3 by Heun, as ours does here.

    A step too many between two kept times, of half the size, shows: 24 steps of 1/24 are where rounding tempts it to.
    """
    errors = [
        off(gradients("diffrax", "heun", "continuous-adjoint", kind, steps=n)[0], exact[0])
        for n in (12, 24)
        for exact in [gradients("torch", "heun", "backprop", kind, steps=n)]
    ]
    assert 6 < errors[0] / errors[1] < 10


COUNTS = (1, 7, 49, 98, 103, 199)  # 49, 98 and 103 are where 1/N in floats takes N+1 steps


@pytest.mark.parametrize(
    ("peer", "steps"),
    [
        pytest.param(peer, steps, marks=() if peer == "torchdiffeq" or steps == 49 else pytest.mark.slow)
        for peer in ("torchdiffeq", "diffrax")
        for steps in COUNTS
    ],
)
def test_steps_are_counted_in_integers(peer: str, steps: int) -> None:
    """Also where 1/N in floats would take N+1."""
    found = odenet.solve(lambda t, y: y, np.ones(1), steps=steps, backend=peer)
    assert float(found.y1[0]) == pytest.approx((1 + 1 / steps) ** steps, rel=1e-12)


@pytest.mark.parametrize(
    "solver",
    ["implicit-euler", *(pytest.param(f"kvaerno{order}", marks=pytest.mark.slow) for order in (3, 4, 5))],
)
def test_orders_of_implicit_solvers(solver: str) -> None:
    order, errors = odenet.solver(solver).order, []
    for steps in (8, 16):
        found = odenet.solve(lambda t, y: -2 * t * y, np.ones(1), steps=steps, solver=solver, backend="diffrax")
        errors.append(abs(float(found.y1[0]) - np.exp(-1)))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def test_an_empty_interval_and_all_times() -> None:
    for peer in ("torchdiffeq", "diffrax"):
        as_numpy = odenet.backend(peer).to_numpy
        still = odenet.solve(lambda t, y: y, np.ones(2), t1=0.0, steps=3, ts="all", backend=peer)
        assert (as_numpy(still.ys) == 1).all()
        assert still.ys.shape == (4, 2)
        every = odenet.solve(lambda t, y: y, np.ones(2), steps=4, ts="all", backend=peer)
        assert as_numpy(every.ys)[:, 0] == pytest.approx(1.25 ** np.arange(5), rel=1e-12)
