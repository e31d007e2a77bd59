"""The reproductions of papers after Sander, Ablin and Peyre: what is measured is what these say."""

from __future__ import annotations

import numpy as np
import pytest
from quick import quick

from odenet._backend import registry as _registry
from odenet._jobs.data.sets import CHARACTERS, lines
from odenet._jobs.reproduce import flow
from odenet._jobs.reproduce.claims import distance, implicit_regularization, looped, mean_ode, scaling
from odenet._jobs.reproduce.network import NOISE, smooth_weights, states
from odenet._jobs.reproduce.reproduction import CurveCell, Settings
from odenet._report.difference import relative

NATIVE = [name for name, entry in _registry.available().items() if entry.array_modules]
CHOICES = Settings(("torch",), seeds=2, scale="quick")
BOTH = pytest.mark.parametrize("backend", NATIVE)


@BOTH
def test_a_pass_of_scaling_is_the_loop_written_here(backend):
    cell = CurveCell(backend, 1, scaling.curve(0.7, 0.0), 16)
    (point,) = scaling.measure(cell, CHOICES)
    y = start = states(1)
    for layer in scaling.layers(1, 0.7, 16):
        y = y + 16**-0.7 * np.tanh(y) @ layer
    moved = np.linalg.norm(y - start, axis=1) / np.linalg.norm(start, axis=1)
    assert point.value == pytest.approx(np.sqrt((moved**2).mean()), rel=1e-9)


@pytest.mark.parametrize("hurst", scaling.HURST)
def test_layers_are_increments_of_fractional_brownian_motion(hurst):
    """Of variance 1, and the sum of k neighbours has k**(2 H)."""
    some = np.concatenate([scaling.layers(seed, hurst, 64).reshape(64, -1) for seed in range(8)], axis=1)
    some = some * scaling.WIDTH**0.5
    assert (some**2).mean() == pytest.approx(1, rel=0.1)
    for k in (4, 16):
        sums = some.reshape(64 // k, k, -1).sum(axis=1)
        assert (sums**2).mean() == pytest.approx(k ** (2 * hurst), rel=0.1)


def test_the_mean_field_is_the_mean_over_the_noise():
    """Quadrature against 400 networks of 64 independent layers, whose mean is near the mean ODE up to 1/N."""
    x = states(0)
    short = distance._mean_ode(0, 64)
    nodes = np.arange(65) / 64
    generator = np.random.default_rng(0)
    plain = smooth_weights(0, nodes)
    y = np.repeat(x[None], 400, axis=0)
    for n in range(64):
        a = plain["a"][n] + NOISE["a"] * generator.standard_normal((400, *plain["a"][n].shape))
        b = plain["b"][n] + NOISE["b"] * generator.standard_normal((400, 1, plain["b"][n].shape[0]))
        y = y + np.tanh(y @ a + b) / 64
    assert np.linalg.norm(y.mean(axis=0) - short[-1], axis=1).max() < 0.1
    without = distance._mean_ode(0, 64)[-1] - _smooth_end(0)
    assert np.linalg.norm(without, axis=1).max() > 0.3, "the noise changes the field that is its mean"


def _smooth_end(seed):
    y, plain = states(seed), smooth_weights(seed, np.arange(512) / 512)
    for n in range(512):
        y = y + np.tanh(y @ plain["a"][n] + plain["b"][n]) / 512
    return y


@BOTH
def test_the_extremal_problem_attains_the_bound(backend):
    found = {
        each.quantity: each.value for each in distance.measure(CurveCell(backend, 0, distance.EXTREMAL, 64), CHOICES)
    }
    exact = ((1 + 1 / 64) ** 64 - 1) / (2 * 64)
    assert found[distance.DISTANCE] == pytest.approx(exact, rel=1e-9)
    assert exact / found[distance.BOUND] == pytest.approx(1 - np.e / (2 * 64 * (np.e - 1)), abs=3e-4)


@BOTH
def test_wide_layers_are_many_narrow_ones_at_the_start(backend):
    """The field of M units is the mean of those of one unit each."""
    first, *_ = flow.train(mean_ode.FLOWS[4], backend, seed=0, depth=8, steps=10)
    field = mean_ode.field(4, 0, first.states[0], first.weights[0])
    parts = [mean_ode.field(1, 0, first.states[0], first.weights[0][:, :, unit : unit + 1]) for unit in range(4)]
    assert np.allclose(field, np.mean(parts, axis=0))
    assert np.allclose(first.states[1], first.states[0] + field / 8)


@BOTH
def test_a_tied_start_is_the_identity_and_stays_smooth(backend):
    first, *_, last = flow.train(implicit_regularization.FLOW, backend, seed=0, depth=8, steps=20)
    assert np.array_equal(first.states[-1], first.states[0])
    assert last.loss < first.loss / 2
    assert 8 * np.abs(np.diff(last.weights, axis=0)).max() < 2


@pytest.mark.parametrize("backend", quick(NATIVE, NATIVE[-1:]))
def test_the_gradient_of_a_looped_transformer(backend):
    """By all weights, against central differences; and the memory-free one is another, and near with many loops."""
    weights, text = looped.start(0), lines("train", looped.BATCH, looped.LENGTH + 1, 0)
    with _registry.backend(backend).prepare("float64", "cpu"):
        _, exact, _ = looped.gradient(weights, text, 4, looped.BACKPROP, backend)
        apart = {}
        for loops in (4, 32):
            _, truth, _ = looped.gradient(weights, text, loops, looped.BACKPROP, backend)
            _, other, _ = looped.gradient(weights, text, loops, looped.CORRECTED, backend)
            apart[loops] = relative(looped.flat(other), looped.flat(truth))
        for name in ("q", "o", "in", "readout", "characters", "places"):
            way = np.random.default_rng(1).standard_normal(weights[name].shape)
            ends = [
                looped.gradient(weights | {name: weights[name] + s * 1e-5 * way}, text, 4, looped.BACKPROP, backend)[0]
                for s in (1, -1)
            ]
            assert (ends[0] - ends[1]) / 2e-5 == pytest.approx((exact[name] * way).sum(), rel=1e-5, abs=1e-9)
    assert 1e-6 < apart[32] < apart[4] / 4


def test_the_text_is_pythons_own():
    one, same, other = (lines("train", 4, 50, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (4, 50)
    assert one.max() < len(CHARACTERS)
    read = "".join(CHARACTERS[place] for place in lines("test", 1, 20000, 0)[0])
    assert " the " in read
