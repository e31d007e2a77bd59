"""The coupled networks against their published recurrences by hand, and the signs that BDIA draws for samples."""

from __future__ import annotations

import importlib
from typing import Any

import cases
import numpy as np
import pytest

import odenet

STEPS = 6


def block(x: Any, w: Any) -> Any:
    return cases.sigmoid(x @ w["a"] + w["b"])


def state(solver: str, backend: str, **more: Any) -> np.ndarray:
    """x[STEPS] of a network of six different blocks, h = 1/6."""
    weights, y0 = cases.smooth_network(STEPS, STEPS)
    depth = odenet.Depth(weights, "piecewise")
    with odenet.backend(backend).prepare("float64", "cpu"):
        solution = odenet.solve(lambda t, y, w: block(y, w), y0, depth, solver=solver, backend=backend, **more)
        return odenet.backend(backend).to_numpy(solution.y1)


def blocks() -> tuple[np.ndarray, list[Any]]:
    weights, y0 = cases.smooth_network(STEPS, STEPS)
    layers = [{key: np.asarray(leaf)[n] for key, leaf in weights.items()} for n in range(STEPS)]
    return np.asarray(y0), [lambda x, w=w: block(x, w) for w in layers]


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_hamiltonian_is_the_additive_coupling_of_alternate_blocks(backend: str) -> None:
    """Gal et al. 2025, equations 2.8 and 2.9, with coefficients 2 h: attention by blocks 0, 2, 4, MLP by 1, 3, 5."""
    y0, f = blocks()
    q, p = y0, y0
    for attention, mlp in zip(f[::2], f[1::2], strict=True):
        q = q + 2 / STEPS * attention(p)
        p = p + 2 / STEPS * mlp(q)
    assert np.abs(state("hamiltonian", backend) - p).max() < 1e-14
    assert np.abs(state("hamiltonian", backend) - state("two-step-midpoint", backend)).max() > 1e-3


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_leapfrog_is_the_second_order_network(backend: str) -> None:
    """Chang et al. 2018; Gal et al. 2025, equation 2.6."""
    y0, f = blocks()
    before, x = y0, y0
    for layer in f:
        before, x = x, 2 * x - before + layer(x) / STEPS**2
    assert np.abs(state("leapfrog", backend) - x).max() < 1e-14


@pytest.mark.parametrize(("solver", "right", "order"), [("hamiltonian", 1, 1), ("leapfrog", 2, 1)])
def test_what_they_converge_to(solver: str, right: int, order: int) -> None:
    """y' = -y, and y'' = -y from rest: exp(-1) and cos(1)."""
    torch = importlib.import_module("torch")
    true = np.exp(-1) if right == 1 else np.cos(1)
    y0 = torch.ones((), dtype=torch.float64)
    errors = [
        abs(float(odenet.solve(lambda t, y: -y, y0, steps=n, solver=solver).y1) - true) for n in (32, 64, 128, 256)
    ]
    assert -np.polyfit(np.log([32, 64, 128, 256]), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)
    assert odenet.solver(solver).order == (1 if right == 1 else 0)  # of y' = f


def test_signs_of_steps_and_samples_are_even_and_uncorrelated() -> None:
    record = odenet.BDIA(seed=11)
    signs = np.stack([record.sign(n, np.arange(256)) for n in range(256)]).astype(float)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.02
    assert np.abs(signs.mean(0)).max() < 0.35  # 5.6 standard deviations
    assert np.abs(signs.mean(1)).max() < 0.35
    for matrix in (signs, signs.T):
        correlated = matrix @ matrix.T / 256 - np.eye(256)
        assert np.abs(correlated).max() < 0.45
        assert 0.9 < correlated.std() * 16 < 1.1
    other = np.stack([odenet.BDIA(seed=12).sign(n, np.arange(256)) for n in range(256)])
    assert abs((signs * other).mean()) < 0.02
    huge = [record.sign(n, 2**31 - 1) for n in (0, 2**31 - 1)]
    assert {abs(sign) for sign in huge} == {1}


@pytest.mark.parametrize("backend", cases.BACKENDS)
@pytest.mark.parametrize("bits", [None, 12])
def test_each_sample_has_its_own_signs(backend: str, bits: int | None) -> None:
    """By hand, each sample alone, and the state in two leaves of which one has no axes."""
    rng, record = np.random.default_rng(0), odenet.BDIA(seed=4, bits=bits)
    y0 = {"batch": rng.standard_normal((5, 3)), "number": np.asarray(0.3)}
    with odenet.backend(backend).prepare("float64", "cpu"):
        solution = odenet.solve(
            lambda t, y: {k: -x * x for k, x in y.items()}, y0, steps=8, solver=record, backend=backend
        )
        found = {key: odenet.backend(backend).to_numpy(leaf) for key, leaf in solution.y1.items()}

    def grid(x: np.ndarray) -> np.ndarray:
        return x if bits is None else np.round(x * 2.0**bits) / 2.0**bits

    def alone(x: np.ndarray, sample: int) -> np.ndarray:
        before, x = 0 * x, grid(x)
        for n in range(8):
            g = 0.5 * record.sign(n, sample) if n else 0.0
            kept = g * before
            if bits is not None:  # before halved and rounded up, then times the sign
                kept = np.sign(g) * np.ceil(before * 2.0**bits / 2) / 2.0**bits
            before, x = x, grid((1 - g) * x - (1 + g) / 8 * x * x) + kept
        return x

    each = [alone(row, sample) for sample, row in enumerate(y0["batch"])]
    assert np.abs(found["batch"] - np.stack(each)).max() < 1e-13
    assert np.abs(found["number"] - alone(y0["number"], 0)).max() < 1e-13
    shared = odenet.BDIA(seed=4, bits=bits, shared=True)
    assert len({tuple(record.sign(n, sample) for n in range(8)) for sample in range(5)}) > 2
    assert {shared.sign(n, 3) == shared.sign(n, 0) for n in range(8)} == {True}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_signs_of_samples_leave_the_number_type_and_the_step_size(dtype: str) -> None:
    torch = importlib.import_module("torch")
    y0 = torch.linspace(-1, 1, 6, dtype=getattr(torch, dtype)).reshape(3, 2)
    fine = odenet.solve(lambda t, y: -y, y0.double(), steps=7, solver="bdia:bits=no:seed=1").y1
    found = odenet.solve(lambda t, y: -y, y0, steps=7, solver="bdia:bits=no:seed=1").y1
    assert found.dtype == y0.dtype
    assert (found - fine).abs().max() < 16 * torch.finfo(y0.dtype).eps
