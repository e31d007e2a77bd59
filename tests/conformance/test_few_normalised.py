"""`checkpoint:bits=8` of fields that normalise few numbers: the certificate is of the size of the error, and said."""

from __future__ import annotations

import warnings

import cases
import numpy as np
import pytest

import odenet
from odenet import Depth

WIDTH, STEPS, LARGE = 12, 8, 1.0  # where increments are as large as the state


def groups(x, size):
    return x.reshape((*x.shape[:-1], -1, size))


def unit(x, root):
    return x / root((x * x).sum(-1)[..., None] + 1e-12)


def spread(x, root):
    x = x - x.mean(-1)[..., None]
    return x / root((x * x).mean(-1)[..., None] + 1e-5)


FEW = {"unit vectors of 2": (unit, 2), "spreads of 2": (spread, 2)}
# by code of their own: functions that differ by numbers alone count as one that jumps where one of them does
MANY = {"unit vectors of 6": (lambda x, root: unit(x, root), 6), "spreads of 6": (lambda x, root: spread(x, root), 6)}


def gradient(backend, kind, method, seed, step):
    """Of all weights and y0, the certificate, and what was said."""
    normalise, size = (FEW | MANY)[kind]
    arrays, tanh = odenet.backend(backend), cases.tanh(backend)
    rng = np.random.default_rng(seed)
    weights = rng.uniform(-0.3, 0.3, (STEPS, 2, WIDTH, WIDTH))

    def field(t, y, w):
        parts = normalise(groups(y @ w[0], size), lambda x: x**0.5)
        return tanh(parts.reshape(y.shape)) @ w[1]

    with arrays.prepare("float64", "cpu"), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        _, found, solution = odenet.value_and_grad(
            lambda solution: (solution.y1 * solution.y1).sum(),
            field,
            rng.standard_normal((8, WIDTH)),
            Depth(weights, "piecewise"),
            steps=STEPS,
            t1=STEPS * step,
            gradient=method,
            backend=backend,
        )
        certificate = solution.stats.certificate
        assert certificate is not None or method == "checkpoint"
        texts = [str(each.message) for each in said]
        return cases.flat(backend, (found.y0, found.weights)), certificate or 0.0, texts


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["unit vectors of 2", "spreads of 2"])
def test_the_certificate_covers_the_error_of_rounded_states(backend, kind):
    for seed in range(2 if backend == "jax" else 4):
        exact, *_ = gradient(backend, kind, "checkpoint", seed, LARGE)
        found, certificate, said = gradient(backend, kind, "checkpoint:bits=8", seed, LARGE)
        assert cases.relative(found, exact) < 3 * certificate or certificate > 0.5
        assert certificate > 0.02
        assert bool(said) == (certificate > 0.1)
        assert all("few bits" in text for text in said)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["unit vectors of 6", "spreads of 6"])
def test_there_is_no_alarm_where_many_numbers_are_normalised(backend, kind):
    exact, *_ = gradient(backend, kind, "checkpoint", 0, LARGE)
    found, certificate, said = gradient(backend, kind, "checkpoint:bits=8", 0, LARGE)
    assert cases.relative(found, exact) < 3 * certificate < 0.1
    assert not said
