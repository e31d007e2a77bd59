"""The drop-in for jax.experimental.ode against jax.experimental.ode itself, and closed forms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import ode

import odenet
import odenet_jax
from odenet import InputError, SolveError, UselessGradientWarning
from odenet_jax import odeint

BOTH = (ode, odenet_jax)
T = np.array([0.1, 0.4, 1.0, 1.7])


class Pair(NamedTuple):
    """A state that is a tree."""

    position: jax.Array
    speed: jax.Array


def spring(y, t, stiffness, friction):
    return Pair(y.speed, -stiffness * y.position * jnp.cos(t) - friction["a"] * y.speed)


START = Pair(np.array([1.0, -0.5]), np.array([0.2, 0.3]))
ARGS = (2.0, {"a": 0.1})


def close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


@pytest.mark.usefixtures("x64")
def test_solutions_and_gradients_are_theirs():
    def loss(y0, t, *args, library):
        ys = library.odeint(spring, y0, t, *args, rtol=1e-9, atol=1e-9)
        return sum(jnp.sin(leaf).sum() for leaf in ys), ys

    theirs, ours = (
        jax.jit(jax.value_and_grad(lambda *of, lib=lib: loss(*of, library=lib), (0, 1, 2, 3), has_aux=True))(
            *jax.tree.map(jnp.asarray, (START, T, *ARGS))
        )
        for lib in BOTH
    )
    assert isinstance(ours[0][1], Pair)
    close(ours, theirs, 1e-6)


@pytest.mark.slow
def test_closures_integers_and_the_defaults():
    def loss(rate):
        return odeint(lambda y, t, n: -rate * y * n, jnp.ones(3), jnp.asarray(T), 2).sum()

    found, rate, since = jax.grad(loss)(0.7), 0.7, T - T[0]
    assert float(found) == pytest.approx(-(6 * since * np.exp(-2 * rate * since)).sum(), abs=1e-5)


@pytest.mark.slow
def test_vmap_and_complex_states():
    rates = np.array([-0.5 + 2j, -1.0 + 0j])
    found = jax.vmap(lambda rate: odeint(lambda y, t, rate: rate * y, jnp.ones(2) + 0j, jnp.asarray(T), rate))(rates)
    close(found[..., 0], np.exp(rates[:, None] * (T - T[0])), 1e-5)


def test_backward_in_time_and_one_time():
    ys = odeint(lambda y, t: -y, jnp.ones(1), jnp.asarray(T[::-1]))
    close(ys[:, 0], np.exp(T[-1] - T[::-1]), 1e-5)
    close(odeint(lambda y, t: -y, jnp.ones(1), jnp.asarray(T[:1])), jnp.ones((1, 1)), 0)


def test_steps_are_bounded():
    def calls(**options):
        seen = []
        field = lambda y, t: jax.debug.callback(lambda t: seen.append(t), t) or -y  # noqa: E731
        odeint(field, jnp.ones(1), jnp.asarray([0.0, 1.0]), **options).block_until_ready()
        jax.effects_barrier()
        return len(seen)

    assert calls(rtol=1e-3, atol=1e-3) < 50 < 6 / 0.05 <= calls(rtol=1e-3, atol=1e-3, hmax=0.05)
    with pytest.raises(SolveError, match="mxstep"):
        odeint(lambda y, t: jnp.cos(50 * t) * y, jnp.ones(1), jnp.asarray([0.0, 2.0]), mxstep=5)


def test_arguments_that_cannot_be_used():
    with pytest.raises(InputError, match="floats"):
        odeint(lambda y, t: -y, jnp.ones(1), jnp.arange(3))
    with pytest.raises(InputError, match="one-dimensional"):
        odeint(lambda y, t: -y, jnp.ones(1), jnp.zeros((2, 2)))


@pytest.mark.usefixtures("x64")
def test_a_state_that_is_integrated_back_to_elsewhere_is_said_to_be():
    def loss(y0, w, damping):
        return (
            odeint(lambda y, t, w, damping: w * jnp.tanh(y) - damping * y, y0, T[:3] - T[0], w, damping)[-1] ** 2
        ).sum()

    y0 = jnp.array([1.0, -0.8])
    jax.grad(loss, argnums=(0, 1))(y0, 3.0, 1.0)  # a warning is an error in tests
    jax.grad(loss, argnums=1)(y0, 3.0, 25.0)  # of w alone: right, whatever y0's would be
    with pytest.warns(UselessGradientWarning, match=r"gradient of odeint .* integrated back"):
        jax.block_until_ready(jax.grad(loss, argnums=(0, 1))(y0, 3.0, 45.0))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("drop_in", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_gradient_by_the_first_time_does_not_drift_with_the_state(drop_in):
    """It is taken at y0, which is known: where the state is integrated back to, its slope is another one."""
    t0, t, y0 = 0.1, np.array([0.5, 1.0]), np.array([1.0, -0.8])

    def rate(t):
        return 1 + 0.9 * jnp.sin(3 * t)

    def loss(t, damping, until):
        choices: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}
        if drop_in:
            return odeint(lambda y, t, w: -w * rate(t) * y, y0, t, damping, **choices)[1:, 0].sum()
        choices |= {"t0": t[0], "gradient": "continuous-adjoint", "solver": "dopri5"}
        field = lambda t, y, w: -w * rate(t) * y  # noqa: E731
        kept = odenet.solve(field, jnp.asarray(y0), damping, t1=1.0, ts=t, **choices).ys[1:, 0].sum()
        falls = odenet.Event(lambda t, y: y[0] - until)
        return kept + odenet.solve(field, jnp.asarray(y0), damping, t1=9.0, event=falls, **choices).event_t

    gradient = jax.jit(jax.grad(loss))
    for damping in (3.0, 12.0, 25.0):
        decay = np.exp(-damping * (t - t0) + 0.3 * damping * (np.cos(3 * t) - np.cos(3 * t0)))
        # the event is where y(0.5) is, and its time moves as much as the state there and the one at t0 fall alike
        right = damping * rate(t0) * decay.sum() + (0 if drop_in else rate(t0) / rate(0.5))
        found = gradient(jnp.asarray([t0, *t]), damping, decay[0])
        assert float(found[0]) == pytest.approx(float(right), rel=1e-3)
