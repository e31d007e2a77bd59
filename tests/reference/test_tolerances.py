"""With tolerances the peers reach closed-form solutions, and say how it ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import odenet
from odenet import PIDController, Result

ADAPTIVE = [
    pytest.param(peer, name, marks=pytest.mark.slow if peer == "diffrax" and name != "dopri5" else ())
    for peer in ("torchdiffeq", "diffrax", "scipy")
    for name in odenet.known()[peer].adaptive or ()
]
PEERS = ["torchdiffeq", "diffrax", "scipy"]
FEW = ["torchdiffeq", pytest.param("diffrax", marks=pytest.mark.slow), "scipy"]


def bell(t: Any, y: Any) -> Any:
    """y = exp(-t^2)."""
    return -2 * t * y


@pytest.mark.parametrize(("peer", "solver"), ADAPTIVE)
def test_the_error_follows_the_tolerance(peer: str, solver: str) -> None:
    as_numpy, errors = odenet.backend(peer).to_numpy, []
    low = solver in ("implicit-euler", "heun")
    for rtol in (1e-2, 1e-4) if low else (1e-3, 1e-6):
        y0, ts = np.array([1.0, 2.0]), [0.0, 0.3, 0.3, 1.0]
        found = odenet.solve(bell, y0, solver=solver, rtol=rtol, atol=rtol * 1e-2, ts=ts, backend=peer)
        exact = np.exp(-np.square(ts))[:, None] * y0
        errors.append(np.abs(as_numpy(found.ys) - exact).max() / rtol)
        assert found.result is Result.SUCCESS
        assert as_numpy(found.ts) == pytest.approx(ts)
        assert int(found.stats.accepted) > 0
    assert max(errors) < 100


@pytest.mark.parametrize("peer", FEW)
def test_backward_in_time_a_tree_and_weights_along_depth(peer: str) -> None:
    as_numpy = odenet.backend(peer).to_numpy
    choices: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10, "solver": "dopri5", "backend": peer}
    y0 = {"a": np.ones(3), "b": np.ones((2, 2))}
    found = odenet.solve(lambda t, y: {"a": -y["a"], "b": t * y["b"]}, y0, t0=1.0, t1=-1.0, **choices)
    assert as_numpy(found.y1["a"]) == pytest.approx(np.exp(2), rel=1e-6)
    assert as_numpy(found.y1["b"]) == pytest.approx(1, rel=1e-6)
    for kind, exponent in (("piecewise", 7 / 3), ("linear", 9 / 4)):
        weights = odenet.Depth(np.array([[1.0], [2.0], [4.0]]), kind)  # pyright: ignore[reportArgumentType]
        found = odenet.solve(lambda t, y, w: w * y, np.ones(1), weights, **choices)
        assert np.log(float(found.y1[0])) == pytest.approx(exponent, rel=1e-6)


@pytest.mark.parametrize("peer", ["torchdiffeq", pytest.param("diffrax", marks=pytest.mark.slow)])
@pytest.mark.parametrize("gradient", ["backprop", "continuous-adjoint", "continuous-adjoint:seminorm=no:rtol=1e-7"])
def test_gradients_of_a_closed_form(peer: str, gradient: str) -> None:
    """y(t1) = y0 exp(w): by y0 it is exp(w), by w itself."""
    value, found, _ = odenet.value_and_grad(
        lambda s: s.y1.sum(),
        lambda t, y, w: w * y,
        np.array([2.0]),
        np.array([0.5]),
        rtol=1e-8,
        atol=1e-10,
        gradient=gradient,
        backend=peer,
    )
    assert float(found.y0[0]) == pytest.approx(np.exp(0.5), rel=1e-6)
    assert float(found.weights[0]) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("peer", FEW)
def test_an_event(peer: str) -> None:
    choices: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10, "solver": "dopri5", "backend": peer}
    for t1, expected in ((5.0, 1.25), (1.0, None)):
        found = odenet.solve(lambda t, y: 1 + 0 * y, np.zeros(1), t1=t1, event=lambda t, y: y - 1.25, **choices)
        assert found.result is (Result.SUCCESS if expected is None else Result.EVENT)
        assert found.event_t is None if expected is None else float(found.event_t) == pytest.approx(expected, abs=1e-6)
        assert float(found.y1[0]) == pytest.approx(expected or t1, abs=1e-6)


@pytest.mark.parametrize("peer", ["torchdiffeq", pytest.param("diffrax", marks=pytest.mark.slow)])
def test_an_event_time_is_differentiable(peer: str) -> None:
    """w t = 1.25 - y0."""
    choices: dict[str, Any] = {"t1": 5.0, "rtol": 1e-8, "atol": 1e-10, "event": lambda t, y: y - 1.25, "backend": peer}
    _, found, _ = odenet.value_and_grad(
        lambda s: s.event_t, lambda t, y, w: w + 0 * y, np.zeros(1), np.array([2.0]), **choices
    )
    assert float(found.y0[0]) == pytest.approx(-1 / 2, rel=1e-6)
    assert float(found.weights[0]) == pytest.approx(-1.25 / 4, rel=1e-6)


@pytest.mark.parametrize("peer", PEERS)
def test_a_solve_that_cannot_go_on_says_why(peer: str) -> None:
    choices: dict[str, Any] = {"solver": "dopri5", "backend": peer}
    with pytest.raises(odenet.SolveError, match="max_steps were tried"):
        odenet.solve(bell, np.ones(1), control=PIDController(rtol=1e-9, max_steps=3), **choices)
    control = PIDController(rtol=1e-9, max_steps=3, throw=False)
    found = odenet.solve(bell, np.ones(1), control=control, **choices)
    assert found.result is Result.MAX_STEPS
    assert np.isnan(odenet.backend(peer).to_numpy(found.y1)).all()


@pytest.mark.parametrize("peer", ["diffrax", "scipy"])
def test_dense_output(peer: str) -> None:
    found = odenet.solve(bell, np.ones(2), rtol=1e-8, atol=1e-10, dense=True, solver="dopri5", backend=peer)
    as_numpy = odenet.backend(peer).to_numpy
    times = np.linspace(0, 1, 7).reshape(7, 1)
    assert as_numpy(found.at(times)) == pytest.approx(
        np.broadcast_to(np.exp(-(times**2))[..., None], (7, 1, 2)), rel=1e-5
    )
    assert as_numpy(found.at(0.5)).shape == (2,)


@pytest.mark.parametrize(
    ("peer", "solver"), [("diffrax", "kvaerno5"), ("scipy", "radau"), ("scipy", "bdf"), ("scipy", "lsoda")]
)
def test_a_stiff_problem_takes_few_steps(peer: str, solver: str) -> None:
    """Prothero and Robinson 1974: y' = -l (y - cos t) - sin t, whose solution is cos t. dopri5 is held to 3.3 / l."""
    import math

    cos = {"diffrax": lambda t: __import__("jax").numpy.cos(t), "scipy": math.cos}[peer]
    sin = {"diffrax": lambda t: __import__("jax").numpy.sin(t), "scipy": math.sin}[peer]
    found = odenet.solve(
        lambda t, y: -1e5 * (y - cos(t)) - sin(t), np.ones(1), rtol=1e-5, atol=1e-7, solver=solver, backend=peer
    )
    assert float(found.y1[0]) == pytest.approx(math.cos(1), abs=1e-4)
    assert int(found.stats.steps) + int(found.stats.rejected) < 300
