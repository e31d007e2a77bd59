"""Packages of somebody else, installed (tests/foreign): a backend, a gradient method and a solver, found everywhere."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from cases import BACKENDS, flat, network_gradient
from click.testing import CliRunner

import odenet
import odenet.kit
from odenet._gradients.names import menu
from odenet._jobs.check.command import command as check
from odenet._jobs.compare.command import command as compare
from odenet._jobs.list import command as listing
from odenet._jobs.solve.command import command as solving

LAZY = "lazy-adjoint"


@pytest.mark.parametrize("one", odenet.kit.conformance("numpy-toy"), ids=str)
def test_the_toy_backend_conforms(one):
    one()


@pytest.mark.parametrize("name", sorted(odenet.available()))
@pytest.mark.slow
def test_every_backend_conforms(name):
    for one in odenet.kit.conformance(name):
        one()


def test_torch_conforms():
    for one in odenet.kit.conformance("torch"):
        one()


def test_a_backend_that_does_less_than_it_says_does_not_conform(monkeypatch):
    """The suite can fail: each of these is seen by the check that is meant for it."""
    from odenet_numpy_toy._backend import NumpyBackend

    checks = {str(one): one for one in odenet.kit.conformance("numpy-toy")}
    right = NumpyBackend.solve

    def late(self, problem):
        import dataclasses

        grid = problem.grid
        return right(self, dataclasses.replace(problem, grid=dataclasses.replace(grid, t1=grid.t1 + 1e-6)))

    monkeypatch.setattr(NumpyBackend, "solve", late)
    for name in ("equal steps of rk4", "equal steps of heun3", "gradient backprop of euler"):
        with pytest.raises(AssertionError, match="off"):
            checks[name]()
    monkeypatch.setattr(NumpyBackend, "build", lambda *a, **k: object())
    with pytest.raises(AssertionError, match="says that it has no networks"):
        checks["refuses networks"]()
    monkeypatch.setattr(NumpyBackend, "devices", lambda self: ("gpu",))
    with pytest.raises(AssertionError, match="gpu"):
        checks["devices and number types"]()


def test_the_toy_takes_no_solver_for_another():
    """A family that it does not run is refused, by name and by record, and no solver but a Runge-Kutta method's has a
    tableau that a loop over stages could take for its own."""
    for name in ("reversible-heun", "alf", "reversible:rk4", "radau", "kvaerno5"):
        with pytest.raises(odenet.UnsupportedError, match=r"numpy-toy does not offer solver .*solvers euler"):
            odenet.solve(lambda t, y: -y, np.ones(1), steps=4, solver=name, backend="numpy-toy")
        assert not hasattr(odenet.solver(name), "tableau")


def test_the_solver_is_one_of_all():
    assert odenet.solver("heun3") is odenet.SOLVERS["heun3"]
    assert odenet.solver("reversible:heun3").order == 3
    for backend in (*BACKENDS, "numpy-toy"):
        errors = [
            abs(odenet.backend(backend).to_numpy(_decay(backend, steps, "heun3")).item() - np.exp(-1))
            for steps in (8, 16)
        ]
        assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.3)


def _decay(backend: str, steps: int, solver: str) -> Any:
    with odenet.backend(backend).prepare("float64", "cpu"):
        y0 = np.ones(1)
        return odenet.solve(lambda t, y: -2 * t * y, y0, steps=steps, solver=solver, backend=backend).y1


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_method_is_that_of_the_ode_with_euler(backend):
    """Linearised at its end, Euler's step back is the continuous adjoint's."""
    with odenet.backend(backend).prepare("float64", "cpu"):
        lazy, stats = network_gradient(backend, "euler", LAZY, 16)
        continuous, _ = network_gradient(backend, "euler", "continuous-adjoint", 16)
    assert stats.gradient == LAZY
    assert np.abs(lazy - continuous).max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_method_has_adaptive_steps_too(backend):
    def gradient(method: str, rtol: float) -> np.ndarray:
        with odenet.backend(backend).prepare("float64", "cpu"):
            _, found, _ = odenet.value_and_grad(
                lambda s: (s.y1 * s.y1).sum(),
                lambda t, y, w: w * y / (1 + y * y),
                np.array([1.0, 0.3]),
                np.array([0.8, -0.5]),
                rtol=rtol,
                gradient=method,
                backend=backend,
            )
            return flat(backend, (found.y0, found.weights))

    exact = gradient("backprop", 1e-6)
    errors = [np.abs(gradient(LAZY, rtol) - gradient("backprop", rtol)).max() for rtol in (1e-3, 1e-9)]
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1 * np.abs(exact).max()


def test_what_no_backend_has_a_way_for_is_refused():
    with pytest.raises(odenet.UnsupportedError, match=f"does not offer gradient {LAZY}"):
        odenet.solve(lambda t, y: -y, np.ones(1), steps=2, gradient=LAZY, backend="numpy-toy")


def test_the_doctor_and_the_commands_know_them():
    assert LAZY in menu()
    assert LAZY in odenet.known()["torch"].gradients
    assert LAZY not in odenet.known()["numpy-toy"].gradients
    run = CliRunner()
    (row,) = json.loads(run.invoke(listing, ["--backend", "numpy-toy", "--json"]).output)["backends"]
    assert (row["name"], row["networks"], row["families"]) == ("numpy-toy", False, ["runge-kutta"])
    assert row["gradients"] == {"backprop": {"adaptive": False, "options": None}}
    assert "heun3" in row["solvers"]
    assert row["adaptive"] == []
    assert "heun3" in run.invoke(listing, ["solvers"]).output
    assert LAZY in run.invoke(listing, ["gradients"]).output
    done = run.invoke(solving, ["decay", "--backend", "numpy-toy,torch", "--solver", "heun3", "--depth", "4,8"])
    assert done.exit_code == 0, done.output


def test_check_and_compare_take_them_and_a_backend_without_networks_takes_nothing_away(tmp_path):
    run = CliRunner()
    small = ["--block", "mlp", "--width", "4", "--batch", "4", "--depth", "4"]
    out = tmp_path / "check.json"
    done = run.invoke(
        check, [*small, "--backend", "torch", "--solver", "heun3", "--gradient", LAZY, "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    (row,) = json.loads(out.read_text())["checks"]
    assert 0 < row["gradient_error"] < 0.5
    for order in ("numpy-toy,torch", "torch,numpy-toy"):
        folder = tmp_path / order
        arguments = [*small, "--backend", order, "--solver", "heun3", "--gradient", f"backprop,{LAZY}"]
        run.invoke(compare, [*arguments, "--out", str(folder)])
        rows = json.loads((folder / "results.json").read_text())["rows"]
        status = {(row["backend"], row["gradient"]): row["status"] for row in rows}
        assert status["torch", "backprop"] == status["torch", LAZY] == "ok"
        assert "not offered by numpy-toy" in status["numpy-toy", "backprop"]
