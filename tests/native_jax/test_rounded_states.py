"""`checkpoint:bits=8` and `bits=16` on JAX: bytes kept, `vmap`, and checks of a tolerance that nothing takes out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import dispatch

import odenet
from odenet import Depth
from odenet_jax import solve


def final(y0, w, gradient, probe=None):
    return solve(lambda t, y, w: jnp.tanh(y @ w), y0, w, steps=12, gradient=gradient, probe=probe).y1


@pytest.mark.parametrize(("shape", "rows"), [((64, 48), 64), ((4, 3, 8, 8), 12), ((50,), 1)])
@pytest.mark.parametrize(("bits", "scale"), [(8, 2), (16, 4)])
def test_bytes_kept_are_those_of_the_codes_their_scales_and_two_states(shape, rows, bits, scale):
    def end(y0, w):
        return solve(
            lambda t, y, w: jnp.tanh(y * w), y0, w, steps=20, solver="heun", gradient=f"checkpoint:bits={bits}"
        ).y1

    y0, w = jnp.ones(shape, jnp.float32), jnp.float32(1)
    kept = jax.eval_shape(lambda y0, w: jax.vjp(end, y0, w)[1], y0, w)
    nbytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
    assert 0 <= nbytes - 20 * (y0.size * bits // 8 + rows * scale) - 2 * y0.nbytes <= 4 * (7 + len(shape))
    # some numbers, and in JAX 0.5 the place in each axis


def test_rows_of_a_vmap_are_solves_of_their_own():
    """One restarts its chain, the others do not; each has its own certificate."""
    rng = np.random.default_rng(0)
    starts = jnp.asarray(rng.standard_normal((3, 2, 40)), jnp.float32) * jnp.array([1, 1000, 1])[:, None, None]
    w = jnp.asarray(rng.standard_normal((40, 40)) / 6, jnp.float32)

    def loss(y0, w, probe):
        def field(t, y, w):
            return -12 * y * (t < 0.05) + jnp.tanh(y @ w)

        return (solve(field, y0, w, steps=12, gradient="checkpoint:bits=8", probe=probe).y1 ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    together = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2)), in_axes=(0, None, 0)))(starts, w, jnp.zeros(3))
    for i, y0 in enumerate(starts):
        for one, other in zip(gradient(y0, w, jnp.float32(0)), together, strict=True):
            np.testing.assert_allclose(other[i], one, rtol=2e-4, atol=2e-4 * float(jnp.abs(one).max()))
    assert (together[2] < 2e-2).all()


def test_the_certificate_beside_the_gradient():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((40, 40)) / 6, jnp.float32)
    y0 = jnp.asarray(rng.standard_normal((2, 40)), jnp.float32)
    found = {}
    for bits in (8, 16):
        _, found[bits] = jax.grad(lambda w, p, bits=bits: final(y0, w, f"checkpoint:bits={bits}", p).sum(), (0, 1))(
            w, jnp.float32(0)
        )
    assert 100 < found[8] / found[16] < 400


@pytest.mark.parametrize(
    ("gradient", "options"),
    [
        ("checkpoint:bits=8:tolerance=1e-9", {"steps": 4}),
        ("discrete-adjoint:tolerance=1e-9:limit=2", {"steps": 4}),
        ("discrete-adjoint:tolerance=1e-9:limit=2", {"rtol": 1e-2, "atol": 1e-2}),
        ("continuous-adjoint:rtol=1e-16:atol=0", {"rtol": 1e-1, "atol": 1e-1}),
    ],
)
def test_a_check_holds_whatever_gradient_is_asked_for(gradient, options):
    """In a compiled program JAX leaves out what nothing reads: a check on y0's gradient when weights are trained."""

    def loss(w, y0):
        solver = "heun"
        return solve(lambda t, y, w: jnp.sin(5 * y) * w, y0, w, solver=solver, gradient=gradient, **options).y1.sum()

    w, y0 = jnp.ones(3, jnp.float32), jnp.linspace(0.1, 1, 3, dtype=jnp.float32)
    for argument in (0, 1):
        with pytest.raises(Exception, match=r"tolerance=1e-09|stopped before t0"):
            jax.block_until_ready(jax.jit(jax.grad(loss, argnums=argument))(w, y0))
        dispatch.runtime_tokens.clear()  # JAX 0.5 raises the error once more, in whatever waits for effects next


def test_second_derivatives_and_forward_mode_are_refused():
    def loss(w):
        return final(jnp.ones((2, 3)), w, "checkpoint:bits=8").sum()

    w = jnp.eye(3)
    with pytest.raises(odenet.UnsupportedError, match="second derivative"):
        jax.grad(lambda w: jax.grad(loss)(w).sum())(w)
    with pytest.raises(odenet.UnsupportedError, match="forward mode"):
        jax.jvp(loss, (w,), (w,))


def test_weights_along_depth_under_jit_and_as_a_stack():
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.standard_normal((12, 40, 40)) / 6, jnp.float32)
    y0 = jnp.asarray(rng.standard_normal((2, 40)), jnp.float32)

    @jax.jit
    def both(w):
        return [
            jax.grad(lambda w, gradient=gradient: (final(y0, Depth(w, "piecewise"), gradient) ** 2).sum())(w)
            for gradient in ("checkpoint", "checkpoint:bits=8")
        ]

    exact, found = both(w)
    assert 0 < jnp.linalg.norm(found - exact) < 1e-3 * jnp.linalg.norm(exact)
