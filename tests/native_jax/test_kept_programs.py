"""Solves that are not inside of `jax.jit`: nothing is compiled twice, and whatever the field reads is read anew."""

from __future__ import annotations

import importlib
import types

import equinox as eqx
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import PIDController
from odenet_jax import odeint, solve
from odenet_jax.field import programs

COMPILED = "/jax/core/compile/backend_compile_duration"
EQUAL = {"steps": 6, "solver": "heun"}
ADAPTIVE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture
def compilations():
    """The number of programs that XLA has compiled, as a function."""
    count = 0

    def listen(name, seconds, **_):
        nonlocal count
        count += name == COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: count
    stop = getattr(jax.monitoring, "unregister_event_duration_listener", None)
    if stop is None:  # JAX 0.5
        stop = importlib.import_module("jax._src.monitoring")._unregister_event_duration_listener_by_callback
    stop(listen)


def field(t, y, w):
    return jnp.tanh(w * y)


def loss(solution):
    return jnp.sum(solution.ys[-1] ** 2)


Y0, W = np.array([0.7, -0.3], np.float32), np.array([1.0, 2.0], np.float32)


def value_and_grad(choices):
    return lambda y, w: odenet.value_and_grad(loss, field, y, w, **choices)[:2]


def gradient(choices, **more):
    return lambda y, w: jax.grad(lambda y, w: loss(solve(field, y, w, **choices, **more)), argnums=(0, 1))(y, w)


CALLS = {
    "solve": lambda y, w: solve(field, y, w, **EQUAL).ys,
    "adaptive solve": lambda y, w: solve(field, y, w, **ADAPTIVE).ys,
    "value and gradient": value_and_grad(EQUAL),
    "adaptive value and gradient": value_and_grad(ADAPTIVE),
    "backprop": gradient(EQUAL),
    "checkpoint": gradient(EQUAL, gradient="checkpoint"),
    "discrete adjoint": gradient(EQUAL, gradient="discrete-adjoint"),
    "continuous adjoint": gradient(EQUAL, gradient="continuous-adjoint"),
    "reversible": gradient({"steps": 6, "solver": "reversible-heun"}, gradient="reversible"),
    "adaptive discrete adjoint": gradient(ADAPTIVE, gradient="discrete-adjoint"),
    "adaptive continuous adjoint": gradient(ADAPTIVE, gradient="continuous-adjoint"),
    "times": lambda y, w: solve(field, y, w, ts=[0.0, 0.3, 1.0], **ADAPTIVE).ys,
    "all times": lambda y, w: solve(field, y, w, ts="all", **ADAPTIVE).ys,
    "dense": lambda y, w: solve(field, y, w, dense=True, **ADAPTIVE).at(0.3),
    "event": lambda y, w: solve(field, y, w, event=lambda t, y: y[0] - 0.9, **ADAPTIVE).event_t,
    "drop-in": lambda y, w: odeint(lambda y, t, w: field(t, y, w), y, jnp.array([0.0, 1.0]), w, rtol=1e-3, atol=1e-3),
    "norm": lambda y, w: solve(field, y, w, control=PIDController(1e-3, 1e-4, norm=lambda e: jnp.max(e))).ys,
    "vmap": lambda y, w: jax.vmap(lambda y: solve(field, y, w[0], **ADAPTIVE).ys)(y),
    "forward mode": lambda y, w: jax.jvp(lambda y: solve(field, y, w, **ADAPTIVE).ys, (y,), (y,)),
}


FAST = ("value and gradient", "adaptive value and gradient", "checkpoint")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CALLS]
)
def test_a_call_like_one_before_compiles_nothing(name, compilations):
    call, given = CALLS[name], (jnp.asarray(Y0), jnp.asarray(W))
    first = call(*given)
    call(*given)  # single operations, of an iterator of device buffers, say
    count = compilations()
    again = call(*given)
    assert compilations() == count
    leaves = [jax.tree.leaves(each if isinstance(each, jax.Array) else _leaves(each)) for each in (first, again)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(found):
    return jax.tree.leaves(jax.tree.map(lambda x: vars(x) if isinstance(x, odenet.Gradients) else x, found))


@pytest.mark.parametrize("choices", [EQUAL, pytest.param(ADAPTIVE, marks=pytest.mark.slow)], ids=["equal", "adaptive"])
def test_a_new_function_of_the_same_computation_compiles_nothing(choices, compilations):
    def call(scale):
        weights = jnp.asarray(W)  # another array at each call, and no other program
        return solve(lambda t, y: scale * weights * y, jnp.asarray(Y0), **choices).ys

    call(-1.0)
    call(-1.0)
    count = compilations()
    call(-1.0)
    assert compilations() == count
    assert not np.array_equal(call(-1.0), call(-2.0))


SCALE, ARRAY = 1.0, jnp.asarray(W)
INPLACE, BOX, PLACE = W.copy(), [1.0], types.SimpleNamespace(scale=1.0, array=jnp.asarray(W), power=1.0)
RULE = 1.0


def set_global(name, make=lambda value: value):
    def put(value):
        globals()[name] = make(value)

    return put


def closure(make):
    held = make(1.0)

    def field(t, y):
        return -held * y

    def put(value):
        nonlocal held
        held = make(value)

    return field, put


@jax.custom_jvp
def activation(x):
    return jnp.sin(x)


@activation.defjvp
def _(primals, tangents):
    return activation(*primals), RULE * jnp.cos(primals[0]) * tangents[0]


class Module(eqx.Module):
    weight: jax.Array
    scale: float

    def __call__(self, t, y):
        return -self.scale * self.weight * y


def module():
    held = Module(jnp.asarray(W), 1.0)

    def put(value):
        nonlocal held
        held = Module(jnp.asarray(W), value)

    return lambda t, y: held(t, y), put


def helper(y):
    return SCALE * y


def scaled(value):
    return value * jnp.asarray(W)


READS = {
    "global number": (lambda t, y: -SCALE * y, set_global("SCALE")),
    "global of a helper": (lambda t, y: -helper(y), set_global("SCALE")),
    "global array": (lambda t, y: -ARRAY * y, set_global("ARRAY", scaled)),
    "NumPy array written to": (lambda t, y: -INPLACE * y, lambda value: INPLACE.__setitem__(slice(None), value * W)),
    "list": (lambda t, y: -BOX[0] * y, lambda value: BOX.__setitem__(0, value)),
    "attribute": (lambda t, y: -PLACE.scale * y, lambda value: setattr(PLACE, "scale", value)),
    "array of an object": (lambda t, y: -PLACE.array * y, lambda value: setattr(PLACE, "array", scaled(value))),
    "closure's number": closure(float),
    "closure's array": closure(scaled),
    "module": module(),
    "inner loop": (
        lambda t, y: jax.lax.scan(lambda c, _: (-SCALE * c, None), y, None, length=1)[0],
        set_global("SCALE"),
    ),
    "sign of zero": (
        lambda t, y: jnp.arctan2(jnp.zeros_like(y), BOX[0]) - y,
        lambda value: BOX.__setitem__(0, -0.0 if value == 1 else 0.0),
    ),
    "rule of a derivative": (lambda t, y: -activation(y), set_global("RULE")),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(
    "choices",
    [
        {"steps": 2},
        pytest.param({"steps": 2, "gradient": "checkpoint"}, marks=pytest.mark.slow),
        pytest.param({**ADAPTIVE, "gradient": "discrete-adjoint"}, marks=pytest.mark.slow),
    ],
    ids=["backprop", "checkpoint", "adaptive"],
)
def test_what_a_field_reads_may_change_between_calls(name, choices):
    of, put = READS[name]

    def found(function):
        value = jax.grad(lambda y: loss(solve(function, y, **choices)))(jnp.asarray(Y0))
        return np.asarray(value)

    def compiled():  # another function, traced as it is now
        return np.asarray(
            jax.jit(jax.grad(lambda y: loss(solve(lambda t, y: of(t, y), y, **choices))))(jnp.asarray(Y0))
        )

    results = []
    for value in (1.0, 1.7, 1.0):
        put(value)
        results.append(found(of))
        np.testing.assert_allclose(results[-1], compiled(), rtol=1e-6)
    put(1.0)
    assert not np.allclose(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.slow
def test_conditions_norms_and_tolerances_may_change_between_calls():
    limit, y0, w = 0.9, jnp.asarray(Y0), jnp.asarray(W)

    def event(t, y):
        return y[0] - limit

    first = solve(field, y0, w, event=event, **ADAPTIVE).event_t
    limit = 0.8
    second = solve(field, y0, w, event=event, **ADAPTIVE).event_t
    assert second < first
    np.testing.assert_allclose(
        second, jax.jit(lambda: solve(field, y0, w, event=event, **ADAPTIVE).event_t)(), rtol=1e-5
    )
    factor = 1.0

    def norm(error):
        return factor * jnp.max(error)

    steps = []
    for factor in (1.0, 1e3):  # noqa: B007 (read by the norm)
        steps.append(solve(field, y0, w, control=PIDController(1e-3, 1e-4, norm=norm)).stats.steps)
    assert steps[0] < steps[1]
    loose, tight = (solve(field, y0, w, rtol=rtol, atol=rtol).stats.steps for rtol in (1e-2, 1e-6))
    assert loose < tight


def test_few_programs_are_kept_and_those_hold_no_array_of_a_call(compilations):
    for n in range(programs.PROGRAMS + 3):
        programs.kept(("test", n), lambda: n)  # noqa: B023 (called at once)
    assert programs._kept.cache_info().currsize == programs.PROGRAMS
    y0 = jnp.asarray(Y0)

    def call(held):
        jax.grad(lambda y: loss(solve(lambda t, y: held * y, y, gradient="checkpoint", **EQUAL)))(y0)

    call(jnp.asarray(W))
    before = len(jax.live_arrays())
    for _ in range(3):
        call(jnp.asarray(W))
    assert len(jax.live_arrays()) == before


def test_an_error_that_a_way_back_finds_is_its_own_outside_of_jit():
    method = "discrete-adjoint:tolerance=1e-6:limit=3"
    for _ in range(2):  # the second time by the program that is kept
        with pytest.raises(odenet.GradientError, match="cannot be undone"):
            jax.grad(lambda y: loss(solve(lambda t, y: -50 * y, y, steps=2, gradient=method)))(jnp.asarray(Y0))
