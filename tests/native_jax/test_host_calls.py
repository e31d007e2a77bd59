"""Fields that read what the host returns: what runs again may be another field, which is said."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import odenet
from odenet_jax import solve
from odenet_jax.field.host_calls import calls_host

STEPS = 6
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)


def changing():
    """A field that is another one after the forward pass, by what it has counted.

    By way of t: JAX takes what is the same in each step out of its loop.
    """
    count = [0]

    def read(t):
        count[0] += 1
        return np.float32(count[0] > 2 * STEPS)

    return lambda t, y: jnp.tanh(y) * (1 + io_callback(read, NUMBER, t))


def lawful(t, y):
    """One that reads a function of time there, and tells what it sees."""
    jax.debug.callback(lambda y: None, y)
    return jnp.tanh(y) * (1 + jax.pure_callback(lambda t: np.sin(t, dtype=np.float32), NUMBER, t))


def alarms(field, gradient):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        of = jax.jit(
            jax.grad(lambda y: jnp.sum(solve(field, y, steps=STEPS, solver="heun", gradient=gradient).y1 ** 2))
        )
        jax.block_until_ready(of(jnp.linspace(-1.0, 1.0, 8)))
        jax.effects_barrier()
    return [warning.message for warning in said]


METHODS = ["checkpoint", "checkpoint:segments=2", "checkpoint:states=2", "checkpoint:bits=16"]


@pytest.mark.parametrize("gradient", METHODS)
def test_steps_that_run_again_as_others_are_said(gradient):
    (alarm,) = alarms(changing(), gradient)
    assert isinstance(alarm, odenet.GradientWarning)
    assert "not what it was" in str(alarm)
    assert not alarms(lawful, gradient)


def test_what_is_only_told_is_not_read():
    for field, reads in ((changing(), True), (lawful, True), (lambda t, y: jax.jit(told)(y), False)):
        assert calls_host(jax.make_jaxpr(field)(0.0, jnp.ones(3)).jaxpr) is reads


def told(y):
    jax.debug.callback(lambda y: None, y)
    io_callback(lambda y: None, None, y)
    return y
