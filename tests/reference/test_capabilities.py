"""What the peers declare is what they do, and what they do not is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import odenet
from odenet import UnsupportedError
from odenet._gradients.names import Backprop

PEERS = ["torchdiffeq", "diffrax", "scipy"]


def arrays() -> dict[str, Any]:
    """A state of each native framework."""
    import jax.numpy as jnp
    import torch

    return {"torch": torch.ones(2, dtype=torch.float64), "jax": jnp.ones(2)}


def test_a_peer_owns_no_arrays() -> None:
    for framework, y0 in arrays().items():
        assert odenet.solve(lambda t, y: -y, y0, rtol=1e-3).stats.backend == framework


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_takes_the_arrays_of_its_base(peer: str) -> None:
    base = odenet.known()[peer].base
    for framework, y0 in arrays().items():
        if base is not None and framework == base.name:
            found = odenet.solve(lambda t, y: -y, y0, solver="dopri5", rtol=1e-3, backend=peer)
            assert found.stats.backend == peer
            assert type(found.y1) is type(y0)
        else:
            with pytest.raises(odenet.InputError, match=f"array of {framework}"):
                odenet.solve(lambda t, y: -y, y0, solver="dopri5", rtol=1e-3, backend=peer)


@pytest.mark.parametrize("peer", ["torch", "jax"])
def test_a_native_backend_names_who_has_an_implicit_solver(peer: str) -> None:
    for choices in ({"steps": 4}, {"rtol": 1e-3}):
        with pytest.raises(UnsupportedError, match=r"kvaerno5.*backend=diffrax"):
            odenet.solve(lambda t, y: -y, np.ones(1), solver="kvaerno5", backend=peer, **choices)
    package = __import__(f"odenet_{peer}")
    with pytest.raises(UnsupportedError, match=r"radau.*scipy"):
        package.solve(lambda t, y: -y, np.ones(1), solver="radau", steps=4)


@pytest.mark.parametrize(
    ("peer", "choices"),
    [
        ("torchdiffeq", {"solver": "rk4", "steps": 4}),
        ("torchdiffeq", {"solver": "bosh3", "steps": 4}),
        ("torchdiffeq", {"solver": "tsit5", "rtol": 1e-3}),
        ("torchdiffeq", {"solver": "heun", "steps": 4, "gradient": "checkpoint"}),
        ("torchdiffeq", {"solver": "heun", "steps": 4, "gradient": "continuous-adjoint:interpolate=yes"}),
        ("torchdiffeq", {"rtol": 1e-3, "dense": True}),
        ("torchdiffeq", {"rtol": 1e-3, "ts": "all"}),
        ("torchdiffeq", {"control": odenet.PIDController(pcoeff=0.4, icoeff=0.3)}),
        ("torchdiffeq", {"control": odenet.PIDController(per_sample=True)}),
        ("diffrax", {"solver": "rk4", "steps": 4}),
        ("diffrax", {"solver": "fehlberg2", "rtol": 1e-3}),
        ("diffrax", {"solver": "euler", "steps": 4, "gradient": "discrete-adjoint"}),
        ("diffrax", {"solver": "euler", "steps": 4, "gradient": "checkpoint:segments=2"}),
        ("diffrax", {"solver": "reversible-heun", "steps": 4, "gradient": "reversible"}),
        ("diffrax", {"rtol": np.ones(1)}),
        ("diffrax", {"rtol": 1e-3, "dense": True, "gradient": "continuous-adjoint"}),
        ("scipy", {"solver": "euler", "steps": 4}),
        ("scipy", {"rtol": 1e-3, "gradient": "checkpoint"}),
        ("scipy", {"control": odenet.PIDController(norm="max")}),
    ],
)
def test_what_is_not_offered_is_refused(peer: str, choices: Any) -> None:
    with pytest.raises(UnsupportedError):
        odenet.solve(lambda t, y: -y, np.ones(1), backend=peer, **choices)


def test_a_complex_state_is_refused_by_diffrax_and_solved_by_torchdiffeq() -> None:
    choices: dict[str, Any] = {"steps": 200, "solver": "heun"}
    with pytest.raises(UnsupportedError, match="complex"):
        odenet.solve(lambda t, y: 1j * y, np.ones(1, complex), backend="diffrax", **choices)
    found = odenet.solve(lambda t, y: 1j * y, np.ones(1, complex), backend="torchdiffeq", **choices)
    assert complex(found.y1[0]) == pytest.approx(np.exp(1j), abs=1e-5)


def test_a_tensor_that_torchdiffeq_would_not_see_is_an_error() -> None:
    import torch

    leaf = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    computed, y0 = leaf * leaf, torch.ones(1, dtype=torch.float64)
    choices: dict[str, Any] = {
        "steps": 100,
        "solver": "heun",
        "gradient": "continuous-adjoint",
        "backend": "torchdiffeq",
    }
    with pytest.raises(odenet.GradientError, match="computed outside"):
        odenet.solve(lambda t, y: computed * y, y0, **choices)
    odenet.solve(lambda t, y: leaf * y, y0, **choices).y1.sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad) == pytest.approx(np.exp(2), rel=1e-3)


@pytest.mark.parametrize("peer", ["torchdiffeq", pytest.param("diffrax", marks=pytest.mark.slow)])
def test_networks_are_those_of_the_base(peer: str) -> None:
    """The same loss and gradients, and counts that can be explained."""
    spec = odenet.NetSpec(block="mlp", depth=3, width=4, hidden=4, along="linear")
    inputs, labels = np.linspace(0, 1, 2 * 64).reshape(2, 1, 8, 8), np.array([0, 3])
    found = []
    for name in ("torch", peer):
        loaded = odenet.backend(name)
        with loaded.prepare("float64", "cpu"):
            model = loaded.build(spec, spec.init(), solver=odenet.solver("heun"), gradient=Backprop(), dtype="float64")
            found.append((loaded.evaluate(model, inputs, labels), loaded.measure(model, inputs, labels, 1)))
            with pytest.raises(UnsupportedError) if name == peer else _nothing():
                loaded.examine(model, (inputs, labels), None, Backprop())
    (ours, _), (theirs, measured) = found
    assert theirs.loss == pytest.approx(ours.loss, rel=1e-12)
    for name, gradient in ours.gradients.items():
        assert np.abs(theirs.gradients[name] - gradient).max() <= 1e-10
    assert (measured.f_forward, measured.vjp) == (6, 6)
    # diffrax runs a step again, and within it each stage
    assert measured.f_backward == {"torchdiffeq": 0, "diffrax": 12}[peer]


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_scipy_solves_and_nothing_else() -> None:
    with pytest.raises(UnsupportedError, match="gradients on backend scipy"):
        odenet.value_and_grad(lambda s: s.y1.sum(), lambda t, y: -y, np.ones(1), rtol=1e-3, backend="scipy")
