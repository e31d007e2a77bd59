"""`max_steps` without a bound: buffers are no larger for it, and what would need them is refused in words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet_jax import solve
from odenet_jax.steps import record

UNBOUNDED = 2**31 - 1
Y0, W = jnp.array([1.0, -0.5]), jnp.array([[0.3, -0.8], [0.9, 0.2]])


def end(w, most, **choices):
    control = odenet.PIDController(1e-5, 1e-6, max_steps=most)
    return solve(lambda t, y, w: jnp.tanh(w @ y), Y0, w, control=control, **choices)


def gradient(most, **choices):
    return jax.jit(jax.grad(lambda w: end(w, most, **choices).y1.sum()))


def test_a_gradient_takes_no_more_memory():
    program = gradient(UNBOUNDED, gradient="checkpoint")
    assert program.lower(W).compile().memory_analysis().temp_size_in_bytes < 2**27
    np.testing.assert_allclose(program(W), gradient(4096, gradient="checkpoint")(W), rtol=1e-6)


def test_what_would_need_the_room_is_refused():
    with pytest.raises(odenet.InputError, match=r"GiB are to be kept.*max_steps=\d+ makes"):
        jax.jit(lambda w: end(w, UNBOUNDED, dense=True).at(0.5))(W)
    with pytest.raises(odenet.UnsupportedError, match="max_steps of at most"):
        jax.jit(jax.hessian(lambda w: end(w, UNBOUNDED).y1.sum()))(W)


def test_steps_beyond_those_that_are_kept(monkeypatch):
    monkeypatch.setattr(record, "MOST_KEPT", 4)
    control = odenet.PIDController(1e-5, 1e-6, max_steps=99)

    def program(scale):
        return jnp.sum(solve(lambda t, y, w: jnp.sin(w * y), Y0, scale, control=control, gradient="checkpoint").y1)

    for derivative in (jax.grad(program), jax.jit(jax.grad(program))):
        with pytest.raises(Exception, match="of more than 4 steps"):
            jax.block_until_ready(derivative(3.0))
    found = jax.vmap(jax.grad(program))(jnp.array([0.01, 3.0]))
    np.testing.assert_allclose(found[0], np.sum(Y0 * np.exp(0.01)), rtol=1e-2)
    assert np.isnan(found[1])
    with pytest.raises(odenet.InputError, match="ts='all' of a solve of"):
        solve(lambda t, y: jnp.sin(3 * y), Y0, control=control, ts="all")
