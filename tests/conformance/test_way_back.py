"""The continuous adjoint with tolerances: a field that contracts is not integrated back to where it began."""

from __future__ import annotations

import warnings

import cases
import numpy as np
import pytest

import odenet
from odenet import GradientWarning

CONTINUOUS = "continuous-adjoint"


def measured(backend, damping, gradient, loss=lambda s: (s.y1 * s.y1).sum(), **choices):
    """The gradient of y0, the certificate and the warnings."""
    tanh = cases.tanh(backend)
    y0, w = np.array([1.0, -0.8]), np.array(3.0)
    with odenet.backend(backend).prepare("float64", "cpu"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, gradients, solution = odenet.value_and_grad(
            loss, lambda t, y, w: w * tanh(y) - damping * y, y0, w,
            rtol=1e-6, atol=1e-6, solver="dopri5", backend=backend, gradient=gradient, **choices,
        )  # fmt: skip
        of_y0, certificate = cases.flat(backend, gradients.y0), solution.stats.certificate
    said = [warning.message for warning in caught if issubclass(warning.category, GradientWarning)]
    return of_y0, certificate, said


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_a_state_that_was_integrated_back_to_elsewhere_is_said_to_be(backend):
    for damping, off in ((1.0, False), (25.0, True)):
        exact, _, _ = measured(backend, damping, "backprop")
        of_y0, certificate, said = measured(backend, damping, CONTINUOUS)
        assert (cases.relative(of_y0, exact) > 0.1) == off
        assert bool(said) == off
        assert (certificate > 0.1) == off
        assert all("integrated back" in str(warning) and "'checkpoint'" in str(warning) for warning in said)


@pytest.mark.parametrize("backend", cases.BACKENDS)
def test_a_gradient_of_zero_is_right_whatever_was_rebuilt(backend):
    _, certificate, said = measured(backend, 25.0, CONTINUOUS, loss=lambda s: 0.0 * s.y1.sum())
    assert not certificate
    assert not said
