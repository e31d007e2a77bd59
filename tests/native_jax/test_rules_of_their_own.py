"""Fields with backward passes of their own (`jax.custom_vjp`): what is not linear in the gradient is compared whole."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quick import quick

import odenet
from odenet_jax import odeint, solve
from odenet_jax.field.jumps import jumps
from odenet_jax.field.linearity import linear

Y0, W = jnp.asarray([[1.0, -0.4, 0.3], [0.2, 0.9, -1.1]]), jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))


def ruled(backward, forward=lambda h: h):
    """A function with a backward pass of the state and the gradient."""
    function = jax.custom_vjp(forward)
    function.defvjp(lambda h: (forward(h), h), lambda h, g: (backward(h, g),))
    return function


def own(h, g):
    return jax.vjp(lambda h: jax.nn.logsumexp(h, -1, keepdims=True) * (h @ W), h)[1](g)[0]


clip = ruled(lambda h, g: jnp.clip(g, -0.05, 0.05))
LINEAR = {
    "tanh": ruled(lambda h, g: g * (1 - jnp.tanh(h) ** 2), jnp.tanh),
    "reversed": ruled(lambda h, g: -0.7 * g),
    "straight through": ruled(lambda h, g: g, lambda h: jnp.round(h)),
    "masked": ruled(lambda h, g: jnp.where(jnp.abs(h) <= 1, g, 0.0), jnp.sign),
    "multiplied mask": ruled(lambda h, g: g * (jnp.abs(h) <= 1)),
    "stopped": ruled(lambda h, g: jnp.zeros_like(g)),
    "derivative": ruled(own),
    "loop": ruled(lambda h, g: lax.fori_loop(0, 3, lambda i, g: g @ W, g)),
    "branch": ruled(lambda h, g: lax.cond(h.sum() > 0, lambda g: 2 * g, jnp.negative, g)),
    "row": ruled(lambda h, g: g.at[0].add(g[1]).at[1].set(jnp.sort(h, 0)[0] * g[0])),
    "solved": ruled(lambda h, g: jnp.linalg.solve(jnp.eye(3) + h.T @ h, g.T).T),
    "of halves": ruled(lambda h, g: g.astype(jnp.bfloat16).astype(g.dtype)),
}
UNEVEN = {
    "clipped": clip,
    "by norm": ruled(lambda h, g: g / jnp.maximum(jnp.linalg.norm(g), 1.0)),
    "signs": ruled(lambda h, g: jnp.sign(g)),
    "squares": ruled(lambda h, g: g * jnp.abs(g)),
    "dead zone": ruled(lambda h, g: jnp.where(jnp.abs(g) > 0.02, g, 0.0)),
    "added to": ruled(lambda h, g: g + 0.01),
    "replaced": ruled(lambda h, g: jnp.ones_like(g)),
    "of eight bits": ruled(lambda h, g: g.astype(jnp.float8_e4m3fn).astype(g.dtype)),
    "on the host": ruled(lambda h, g: jax.pure_callback(lambda g: g, jax.ShapeDtypeStruct(g.shape, g.dtype), g)),
    "in jit": jax.jit(clip),
    "row by row": jax.vmap(clip),
    "in a loop": lambda h: lax.scan(lambda c, _: (clip(c), c), h, None, length=2)[0],
    "in a branch": lambda h: lax.cond(h.sum() > 0, clip, jnp.sin, h),
    "recomputed": jax.checkpoint(clip),
    "gradient": jax.custom_gradient(lambda h: (h, lambda g: jnp.clip(g, -1, 1))),
}


def test_what_is_linear_and_what_is_not():
    def of(function):
        return linear(jax.make_jaxpr(lambda t, h, w: jnp.tanh(function(h @ w)))(0.0, Y0, W).jaxpr)

    assert [name for name, function in LINEAR.items() if not of(function)] == []
    assert [name for name, function in UNEVEN.items() if of(function)] == []


@jax.custom_jvp
def tangent_rounded(h):
    return jnp.tanh(h)


tangent_rounded.defjvp(lambda h, v: (tangent_rounded(*h), v[0] * (0.5 + jnp.round(2 * h[0]) / 2)))
JUMPING = {
    "rounded": ruled(lambda h, g: g * (0.5 + jnp.round(2 * h) / 2), jax.nn.silu),
    "sign": ruled(lambda h, g: g * jnp.sign(h)),
    "tangent": tangent_rounded,
    "in jit": jax.jit(tangent_rounded),
}


def test_a_derivative_that_jumps_where_the_function_does_not():
    def of(function):
        program = jax.make_jaxpr(lambda t, h, w: jnp.tanh(function(h @ w)))(0.0, Y0, W).jaxpr
        return jumps(program, slice(1, 2))

    assert [name for name, function in JUMPING.items() if not of(function)] == []
    smooth = {name: function for name, function in LINEAR.items() if name in ("tanh", "reversed", "loop", "of halves")}
    smooth |= {"relu": jax.nn.relu, "relu6": jax.nn.relu6, "log": jax.nn.log_sigmoid, "silu": jax.nn.silu}
    assert [name for name, function in smooth.items() if of(function)] == []


def gradient(function, method, **choices):
    """With respect to y0 and weights, the certificate, and whether it was said."""

    def loss(y0, w, probe):
        solution = solve(lambda t, y, w: jnp.tanh(function(y @ w)), y0, w, gradient=method, probe=probe, **choices)
        return jnp.sum(jnp.sin(solution.y1))

    return said_of(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), Y0, W, jnp.zeros(()))


def said_of(function, *arguments):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        *gradients, last = jax.block_until_ready(function(*arguments))
        jax.effects_barrier()
    return gradients, last, [str(warning.message) for warning in said]


def error(ones, others):
    pairs = zip(ones, others, strict=True)
    return max(float(jnp.linalg.norm(one - other) / jnp.linalg.norm(other)) for one, other in pairs)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick(["clipped", "added to", "replaced", "in a loop", "on the host"], ["clipped"]))
@pytest.mark.parametrize(
    "choices", [{"rtol": 1e-4, "atol": 1e-4}, {"steps": 12, "solver": "heun"}], ids=lambda c: next(iter(c))
)
def test_the_certificate_of_what_is_not_is_the_error_beside_the_network(name, choices):
    exact, _, _ = gradient(UNEVEN[name], "backprop", **choices)
    found, certificate, said = gradient(UNEVEN[name], "continuous-adjoint", **choices)
    off = error(found, exact)
    assert float(certificate) == pytest.approx(off, rel=0.05, abs=1e-3)
    assert bool(said) == (off > 0.1)
    assert all("all steps are compared" in text for text in said)
    assert off > 0.1 or name != "clipped"


@pytest.mark.usefixtures("x64")
def test_the_drop_in_says_it():
    def loss(y0, w):
        ys = odeint(lambda y, t, w: jnp.tanh(clip(y @ w)), y0, jnp.asarray([0.0, 1.0]), w, rtol=1e-4, atol=1e-4)
        return jnp.sum(jnp.sin(ys[-1]))

    _, _, said = said_of(jax.jit(jax.grad(loss, argnums=(0, 1))), Y0, W)
    assert len(said) == 1
    assert "all steps are compared" in said[0]
