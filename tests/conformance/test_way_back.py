"""The continuous adjoint with tolerances: what its gradient is, and what is said where a state is integrated back to
elsewhere than it was."""

from __future__ import annotations

import importlib
import warnings

import cases
import numpy as np
import pytest
import torch
from quick import quick

import odenet
from odenet import ContinuousAdjoint, GradientWarning

CONTINUOUS = "continuous-adjoint"
Y0, W = np.array([1.0, -0.8]), np.array(3.0)


def damped(tanh, damping):
    return lambda t, y, w: w * tanh(y) - damping * y


def measured(
    backend, field, gradient, loss=lambda s: (s.y1**2).sum(), *, rtol=1e-6, atol=1e-6, solver="dopri5", **choices
):
    """The gradients of y0 and w, the certificate and the warnings."""
    with odenet.backend(backend).prepare("float64", "cpu"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, gradients, solution = odenet.value_and_grad(
            loss, field, Y0, W, rtol=rtol, atol=atol, solver=solver, backend=backend, gradient=gradient, **choices
        )
        parts = [cases.flat(backend, part) for part in (gradients.y0, gradients.weights)]
        certificate = solution.stats.certificate
    said = [warning.message for warning in caught if issubclass(warning.category, GradientWarning)]
    return parts, certificate, said


# each is two programs to compile for JAX, where the quick suite takes what is said; the last test has what is not
@pytest.mark.parametrize(
    ("backend", "damping", "off"),
    quick(
        [(backend, *case) for backend in cases.BACKENDS for case in ((1.0, False), (25.0, True))],
        [("torch", 1.0, False), *((backend, 25.0, True) for backend in cases.BACKENDS)],
    ),
)
def test_a_state_that_was_integrated_back_to_elsewhere_is_said_to_be(backend, damping, off):
    field = damped(cases.tanh(backend), damping)
    exact, _, _ = measured(backend, field, "backprop")
    parts, certificate, said = measured(backend, field, CONTINUOUS)
    assert (cases.relative(parts[0], exact[0]) > 0.1) == off
    assert bool(said) == (certificate > 0.1) == off
    assert all("integrated back" in str(warning) and "'checkpoint'" in str(warning) for warning in said)


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_a_gradient_of_zero_is_right_whatever_was_rebuilt(backend):
    field = damped(cases.tanh(backend), 25.0)
    _, certificate, said = measured(backend, field, CONTINUOUS, loss=lambda s: 0.0 * s.y1.sum())
    assert certificate == 0
    assert not said


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_a_linear_field_has_the_same_derivatives_at_any_state(backend):
    # y(t0), as integrated back, is off by 1e5 times its size
    parts, certificate, said = measured(backend, lambda t, y, w: 0.1 * w - 25.0 * y, CONTINUOUS, lambda s: s.y1.sum())
    assert parts[0] == pytest.approx(np.exp([-25.0, -25.0]), rel=1e-3)
    assert parts[1] == pytest.approx(2 * 0.1 / 25, rel=1e-5)
    assert certificate < 1e-4  # of the steps of the costate, which are off by as much
    assert not said


# with the other norm on JAX: native_jax/test_adaptive
@pytest.mark.parametrize(
    ("backend", "seminorm"),
    quick(
        [(backend, seminorm) for backend in cases.BACKENDS for seminorm in (True, False)],
        [("torch", False), *((backend, True) for backend in cases.BACKENDS)],
    ),
)
def test_c_times_the_loss_has_c_times_the_gradient(backend, seminorm):
    # the costate shrinks to a thousandth on its way, and takes up more at another time; atol is 1e-4
    field, method = damped(cases.tanh(backend), 8.0), ContinuousAdjoint(seminorm=seminorm)
    exact, _, _ = measured(backend, field, "backprop", lambda s: s.y1.sum(), rtol=1e-9, atol=1e-9)

    def by(c, loss=lambda s: s.y1.sum(), **choices):
        parts, certificate, _ = measured(backend, field, method, lambda s: c * loss(s), rtol=1e-4, atol=1e-4, **choices)
        return [part / c for part in parts], certificate

    for choices in ({}, {"ts": [0.3, 1.0], "loss": lambda s: s.ys.sum()}):
        plain, certificate = by(1.0, **choices)
        for c in (1e-30, 1e-8, 1e8):
            scaled, at = by(c, **choices)
            for one, other in zip(scaled, plain, strict=True):
                assert one == pytest.approx(other, rel=1e-7)
            assert at == pytest.approx(certificate, rel=1e-3)
    for one, other in zip(by(1e-8)[0], exact, strict=True):
        assert one == pytest.approx(other, rel=0.02)


def normalised(t, y, w):
    """It jumps where two numbers meet: each is divided by how far it is from the other."""
    centred = y - y.mean(-1)[..., None]
    return w * centred / ((centred**2).mean(-1)[..., None] + 1e-4) ** 0.5 * (y + 0.5) - 12.0 * y


# the state at t0, integrated back, is elsewhere; of one that is known on the way it is not
@pytest.mark.parametrize(
    ("backend", "choices"),
    quick(
        [(backend, choices) for backend in cases.BACKENDS for choices in ({}, {"ts": [0.3, 0.65, 1.0]})],
        [("torch", {"ts": [0.3, 0.65, 1.0]}), *((backend, {}) for backend in cases.BACKENDS)],
    ),
)
def test_of_a_field_that_jumps_it_is_the_error_beside_the_accepted_steps(backend, choices):
    choices = {"loss": lambda s: (s.ys**2).sum(), "rtol": 1e-2, "atol": 1e-3, **choices}
    exact, _, _ = measured(backend, normalised, "backprop", **choices)
    parts, certificate, said = measured(backend, normalised, CONTINUOUS, **choices)
    off = max(cases.relative(part, truth) for part, truth in zip(parts, exact, strict=True))
    assert off > (0.01 if "ts" in choices else 0.1)
    assert certificate == pytest.approx(off, rel=1e-9)
    assert bool(said) == (off > 0.1)
    assert all("all steps are compared" in str(warning) for warning in said)


def test_of_a_field_that_jumps_the_gradient_of_weights_counts_alone_where_no_other_is_asked_for():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        y0, w = torch.tensor(Y0), torch.tensor(W, requires_grad=True)
        solution = odenet.solve(normalised, y0, w, rtol=1e-2, atol=1e-3, solver="dopri5", gradient=CONTINUOUS)
        solution.ys.square().sum().backward()
    assert solution.stats.certificate < 0.1
    assert not said


STEPPING = ("fehlberg2", "bosh3", "tsit5", "dopri5")


@pytest.mark.parametrize(
    ("backend", "solver"),
    quick(
        [(backend, solver) for backend in cases.BACKENDS for solver in STEPPING],
        [*(("torch", solver) for solver in STEPPING), ("jax", "bosh3")],
    ),
)
def test_steps_that_are_too_long_for_the_costate_are_said_to_be_whatever_they_estimate(backend, solver):
    # the field is linear, so that the costate is right at any state; its steps follow an estimate that is a hundredth
    # of the error (fehlberg2), or vanishes at the very step that they grow to (bosh3)
    for rtol in (1e-2, 1e-3, 1e-5):
        choices = {"rtol": rtol, "atol": rtol / 100, "solver": solver, "loss": lambda s: s.y1.sum()}
        parts, certificate, said = measured(backend, lambda t, y, w: 0.1 * w - 10.0 * y, CONTINUOUS, **choices)
        off = abs(parts[0] / np.exp(-10.0) - 1).max()
        assert off / 3 < certificate < 10 * off or min(off, certificate) > 1
        assert bool(said) == (certificate > 0.1)


KINDS = {
    "damped": lambda xp: lambda t, y, w: w * xp.tanh(y) - 12.0 * y,
    "saturating": lambda xp: lambda t, y, w: 5.0 * w * xp.tanh(y) * (1.1 - y),
    "contracts, then expands": lambda xp: lambda t, y, w: xp.tanh(w * y) - 40.0 * xp.sin(6.2832 * t) * y,
    "kinked": lambda xp: lambda t, y, w: xp.tanh(8.0 * y + w) - 15.0 * y,
}


ASKED = {"loosely": (1e-3, None), "closely": (1e-6, None), "at times": (1e-6, [0.4, 0.7, 1.0])}


# what is compiled for JAX is the same of each kind: there the quick suite takes the one that depends on time
@pytest.mark.parametrize(
    ("backend", "kind", "asked"),
    quick(
        [(backend, kind, asked) for backend in cases.BACKENDS for kind in KINDS for asked in ASKED],
        [
            *(("torch", kind, asked) for kind in KINDS for asked in ASKED),
            *(("jax", "contracts, then expands", asked) for asked in ("loosely", "at times")),
        ],
    ),
)
def test_an_error_is_said_and_no_more_than_three_times_as_large_as_it_is_said_to_be(backend, kind, asked):
    field = KINDS[kind](importlib.import_module({"torch": "torch", "jax": "jax.numpy"}[backend]))
    rtol, ts = ASKED[asked]
    choices = {"loss": lambda s: s.ys.sum(), "rtol": rtol, "atol": rtol / 10, **({"ts": ts} if ts else {})}
    exact, _, _ = measured(backend, field, "backprop", **choices)
    parts, certificate, said = measured(backend, field, CONTINUOUS, **choices)
    off = max(cases.relative(part, truth) for part, truth in zip(parts, exact, strict=True))
    assert certificate >= min(off, 1.0) / 3 or off < 0.03, (off, certificate)
    assert bool(said) == (certificate > 0.1)
