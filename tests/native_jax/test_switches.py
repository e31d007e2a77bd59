"""Fields that compare their state: whether they jump there is told by their values on either side."""

from __future__ import annotations

import contextlib
import warnings

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import odenet
from odenet_jax.field import switches
from odenet_jax.field.switches import jumps

pytestmark = pytest.mark.usefixtures("x64")
WIDTH = 4
ZERO = jnp.zeros(WIDTH)

JUMPING = {
    "where": lambda u, a, b: jnp.where(u > 0.2, u, -0.3 * u),
    "of both": lambda u, a, b: jnp.where((u > -0.2) & (u < 0.3), a, b),
    "of the largest": lambda u, a, b: jnp.where(u == u.max(-1, keepdims=True), a, b),
    "of what was clipped": lambda u, a, b: jnp.where(jnp.clip(u, -0.3, 0.3) == u, a, b),
    "of a row": lambda u, a, b: jnp.where((u > 0.4).any(-1, keepdims=True), a, b),
    "branched": lambda u, a, b: lax.cond(u.sum() > 0.4, lambda: a, lambda: b),
    "again and again": lambda u, a, b: lax.scan(lambda c, x: (jnp.where(c > 0.2, a, -c) * x, None), u, a[:, 0])[0],
    "straight through": lambda u, a, b: a + lax.stop_gradient(jnp.where(u > 0, a, b) - a),
    "within": lambda u, a, b: jax.checkpoint(jax.jit(lambda u: jnp.where(u > 0.2, a, b)))(u),
}
KINKED = {
    "leaky": lambda u, a, b: jax.nn.leaky_relu(u),
    "elu": lambda u, a, b: jax.nn.elu(u),
    "sparse": lambda u, a, b: jax.nn.sparse_plus(u),
    "in pieces": lambda u, a, b: jnp.where(u > 0.1, u - 0.1, jnp.where(u < -0.1, u + 0.1, 0.0)),
    "beside a constant": lambda u, a, b: jnp.where(u > 0, u, ZERO),
    "safe root": lambda u, a, b: jnp.where(u > 0, jnp.sqrt(jnp.where(u > 0, u, 1.0)) * u, 0.0),
    "clipped": lambda u, a, b: jnp.where((n := jnp.linalg.norm(u, axis=-1, keepdims=True)) > 1, u / n, u),
    "guarded": lambda u, a, b: a / jnp.where((n := jnp.linalg.norm(u, axis=-1, keepdims=True)) > 0, n, 1.0),
    "finite": lambda u, a, b: jnp.where(jnp.isfinite(u), a, 0.0),
    "log-sum": lambda u, a, b: a * jax.nn.logsumexp(u, -1, keepdims=True),
    "halved": lambda u, a, b: jax.nn.elu(u.astype(jnp.bfloat16)).astype(a.dtype),
    "causal": lambda u, a, b: jnp.where(jnp.tri(3, WIDTH, dtype=bool), a, 0.0),
}


def applied(choose):
    return lambda t, y, w: choose(y @ w[0], jnp.cos(y @ w[1]), jnp.sin(y @ w[2])) @ w[3] - y


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_comparison_jumps_where_the_values_do(dtype):
    found = []
    for kind, choose in (JUMPING | KINKED).items():
        y, w = jnp.ones((3, WIDTH), dtype), jnp.ones((4, WIDTH, WIDTH), dtype)
        program = jax.make_jaxpr(applied(choose))(0.0, y, w)
        found += [kind] if jumps(program.jaxpr, slice(1, 2), program.consts) else []
    assert found == [*JUMPING]


@pytest.mark.parametrize("around", [contextlib.nullcontext, jax.disable_jit, lambda: jax.debug_nans(True)])
def test_a_look_is_the_same_whatever_is_around_it(around):
    looked = []

    def traced(x):
        for choose in (JUMPING["again and again"], KINKED["leaky"]):
            y, w = jnp.ones((2, WIDTH), jnp.float32), jnp.ones((4, WIDTH, WIDTH), jnp.float32)
            program = jax.make_jaxpr(applied(choose))(0.0, y, w)
            looked.append(jumps(program.jaxpr, slice(1, 2), [None] * len(program.consts)))
        return x

    switches._KNOWN.clear()
    with around():
        jax.grad(jax.jit(traced))(1.0)
    assert looked == [True, False]


@pytest.mark.parametrize("seed", [0])
def test_the_certificate_of_a_field_that_switches_is_its_error(seed):
    *w, y0 = (0.7 * jax.random.normal(jax.random.key(10 * seed + k), (WIDTH, WIDTH)) for k in range(5))
    grads = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        for gradient in ("checkpoint", "continuous-adjoint"):
            _, grads[gradient], solution = odenet.value_and_grad(
                lambda s: (s.y1**2).sum(),
                applied(JUMPING["where"]),
                y0[:3],
                jnp.stack(w),
                gradient=gradient,
                rtol=1e-2,
                atol=1e-3,
                solver="bosh3",
            )
    exact, found = grads.values()
    off = max(
        float(jnp.linalg.norm(getattr(found, part) - getattr(exact, part)) / jnp.linalg.norm(getattr(exact, part)))
        for part in ("y0", "weights")
    )
    assert off > 0.01
    assert solution.stats.certificate == pytest.approx(off, rel=1e-6)
    assert bool(said) == (off > 0.1)
