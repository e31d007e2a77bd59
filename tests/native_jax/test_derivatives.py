"""Forward mode and derivatives of derivatives of adaptive solves: right with backprop, refused with others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint as theirs

from odenet import Event, UnsupportedError
from odenet_jax import odeint, solve

START, MIX = np.array([1.0, 0.5]), np.array([[-0.3, 1.2], [-0.9, -0.2]])
SCALE = jnp.array([1.0, 2.0])
POINT = (START, MIX, 0.2, 1.3)


def field(t, y, w):
    """Not linear, and not the same at all times."""
    return jnp.tanh(w @ y) + 0.1 * t * y


def loss(y, w, t0, t1, **choices):
    """Of an adaptive solve."""
    found = solve(field, y, w, **{"t0": t0, "t1": t1, "rtol": 1e-9, "atol": 1e-9, **choices})
    return jnp.sum(found.y1**2 * SCALE)


def by_equal_steps(y, w, t0, t1):
    """The same by a scan over steps of rk4, written here, whose times JAX can differentiate as well."""
    h = (t1 - t0) / 200

    def step(y, n):
        t = t0 + n * h
        a = field(t, y, w)
        b = field(t + h / 2, y + h / 2 * a, w)
        c = field(t + h / 2, y + h / 2 * b, w)
        d = field(t + h, y + h * c, w)
        return y + h / 6 * (a + 2 * b + 2 * c + d), None

    return jnp.sum(jax.lax.scan(step, y, jnp.arange(200))[0] ** 2 * SCALE)


def twice(function):
    """A gradient of a function of the gradient, by all four arguments."""
    first = jax.grad(function, (0, 1, 2, 3))
    return jax.grad(lambda *at: sum(jnp.sum(jnp.sin(g)) for g in first(*at)), (0, 1, 2, 3))


def alike(operator, of=loss):
    """Whether an operator on functions has the same value for both."""
    found, right = (jax.tree.leaves(jax.jit(operator(each))(*POINT)) for each in (of, by_equal_steps))
    for one, other in zip(found, right, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_hessian_by_state_weights_and_times(x64):
    def by_all(function):
        """One vmap for the four of them, which is compiled in a third of the time of four."""
        return lambda *at: jax.hessian(lambda at: function(*at))(at)

    alike(by_all)


@pytest.mark.slow
@pytest.mark.parametrize(
    "operator",
    [
        lambda function: lambda *at: jax.jvp(function, at, at),
        lambda function: jax.jacfwd(function, (0, 1, 2, 3)),
        lambda function: jax.jacfwd(jax.jacfwd(function), 1),
        lambda function: jax.jacrev(jax.jacfwd(function)),
        twice,
        lambda function: jax.grad(jax.grad(jax.grad(function, 3), 3), 3),
        lambda function: (
            lambda y, *rest: jax.vmap(jax.hessian(function), (0, None, None, None))(jnp.stack([y, 2 * y, -y]), *rest)
        ),
        lambda function: jax.hessian(
            lambda y, *rest: jax.vmap(function, (0, None, None, None))(jnp.stack([y, 2 * y]), *rest).sum()
        ),
    ],
)
def test_every_order_of_modes(operator, x64):
    alike(operator)


@pytest.mark.slow
def test_kept_times_and_dense_output(x64):
    def kept(y, w, t0, t1):
        ts = jnp.stack([jnp.asarray(t0), (t0 + t1) / 2, jnp.asarray(t1)])
        found = solve(field, y, w, t0=t0, t1=t1, ts=ts, rtol=1e-10, atol=1e-10, dense=True)
        return jnp.sum(found.ys**3) + jnp.sum(found.at(0.7) ** 2)

    def right(y, w, t0, t1):
        def state(t):
            def end(y, h):
                a = field(h[0], y, w)
                b = field(h[0] + h[1] / 2, y + h[1] / 2 * a, w)
                c = field(h[0] + h[1] / 2, y + h[1] / 2 * b, w)
                return y + h[1] / 6 * (a + 2 * b + 2 * c + field(h[0] + h[1], y + h[1] * c, w)), None

            size = (t - t0) / 200
            return jax.lax.scan(end, y, jnp.stack([t0 + size * jnp.arange(200), jnp.full(200, size)], 1))[0]

        return jnp.sum(y**3) + sum(jnp.sum(state(t) ** 3) for t in ((t0 + t1) / 2, t1)) + jnp.sum(state(0.7) ** 2)

    for operator in (jax.hessian, lambda f: jax.grad(jax.grad(f, 3), 3), lambda f: jax.grad(jax.grad(f, 2), 3)):
        np.testing.assert_allclose(operator(kept)(*POINT), operator(right)(*POINT), atol=2e-6)


@pytest.mark.slow
def test_the_second_derivative_of_the_time_of_an_event(x64):
    def fall(height, gravity):
        y0 = jnp.stack([height, jnp.zeros_like(height)])
        event = Event(lambda t, y: y[0], direction=-1)
        return solve(lambda t, y, g: jnp.stack([y[1], -g]), y0, gravity, t1=10.0, rtol=1e-9, event=event)

    for found, right in (
        (lambda h, g: fall(h, g).event_t, lambda h, g: jnp.sqrt(2 * h / g)),
        (lambda h, g: fall(h, g).y1[1], lambda h, g: -jnp.sqrt(2 * h * g)),
    ):
        for operator in (lambda f: jax.hessian(f, (0, 1)), lambda f: jax.jacfwd(jax.jacfwd(f), 1)):
            pair = (operator(each)(jnp.array(3.0), jnp.array(9.81)) for each in (found, right))
            for one, other in zip(*map(jax.tree.leaves, pair), strict=True):
                assert one == pytest.approx(float(other), abs=1e-8)


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_the_others_say_so(gradient):
    def end(y):
        return jnp.sum(solve(lambda t, y: -y * y, y, rtol=1e-2, gradient=gradient).y1)

    with pytest.raises(UnsupportedError, match=r"forward mode.*backprop"):
        jax.jvp(end, (SCALE,), (SCALE,))
    with pytest.raises(UnsupportedError, match=r"second derivative.*backprop"):
        jax.make_jaxpr(jax.grad(lambda y: jnp.sum(jax.grad(end)(y))))(SCALE)


def test_the_drop_in_has_no_forward_mode_and_names_no_argument_that_it_has_not():
    with pytest.raises(UnsupportedError, match=r"through odeint.*odenet\.solve"):
        jax.jvp(lambda y: odeint(lambda y, t: -y, y, jnp.arange(2.0)), (SCALE,), (SCALE,))


@pytest.mark.slow
def test_a_gradient_of_a_gradient_through_the_drop_in(x64):
    def of(solver):
        def value(y, w, ts):
            ys = solver(lambda y, t, w: jnp.tanh(w * y) + 0.1 * t * y, y, ts, w)
            return jnp.sum(jnp.array([[1.0, 2.0], [0.5, 1.0], [3.0, 1.0]]) * ys**2)

        first = jax.grad(value, (0, 1, 2))
        return jax.grad(lambda *at: sum(jnp.sum(jnp.sin(g)) for g in first(*at)), (0, 1, 2))

    at = START, jnp.array([0.3, -0.7]), jnp.array([0.0, 0.4, 1.0])
    for one, other in zip(*(jax.jit(of(each))(*at) for each in (odeint, theirs)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@jax.custom_vjp
def _turned(w, y):
    """A function that JAX has no tangents of."""
    return jnp.tanh(w @ y)


_turned.defvjp(lambda w, y: (jnp.tanh(w @ y), (w, y)), lambda of, g: jax.vjp(lambda w, y: jnp.tanh(w @ y), *of)[1](g))


def test_the_time_of_an_event_where_the_field_has_a_backward_pass_alone():
    def met(w, turned, gradient):
        found = solve(
            lambda t, y, w: turned(w, y),
            jnp.asarray(START),
            w,
            t1=5.0,
            rtol=1e-6,
            atol=1e-6,
            gradient=gradient,
            event=Event(lambda t, y: y[1] + 0.3),
        )
        return found.event_t + found.y1.sum()

    for gradient in ("checkpoint", "continuous-adjoint"):
        there, expected = (
            jax.jit(jax.grad(met), static_argnums=(1, 2))(jnp.asarray(MIX), turned, gradient)
            for turned in (_turned, lambda w, y: jnp.tanh(w @ y))
        )
        np.testing.assert_allclose(there, expected, rtol=1e-4)


@pytest.mark.parametrize("condition", [lambda t, y: (y < 0.7) * 1.0, lambda t, y: jnp.sign(y - 0.7)])
def test_an_event_whose_condition_is_flat_has_no_derivative(condition):
    """NaN, as of a boolean: nothing tells how fast it is approached."""

    def met(y):
        found = solve(lambda t, y: -y, y, t1=2.0, rtol=1e-6, event=Event(condition))
        return found.event_t, found.y1

    by_reverse, by_forward = jax.grad(lambda y: met(y)[0]), jax.jvp(met, (1.0,), (1.0,))[1]
    assert np.isnan([by_reverse(1.0), *by_forward]).all()
