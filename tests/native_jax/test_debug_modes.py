"""Under JAX's stricter modes a solve is what it is without them, and times that were not reached are said to be so."""

from __future__ import annotations

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from odenet import Event, InputError, PIDController, StateError
from odenet_jax import ResidualStack, convert, odeint, solve

pytestmark = pytest.mark.usefixtures("x64")
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # of JAX before 0.8
METHODS = ("backprop", "checkpoint", "discrete-adjoint", "continuous-adjoint")
TOLERANCES = {"rtol": 1e-3, "atol": 1e-5}
STATE = {"a": jnp.asarray([1.0, 0.5], jnp.float32), "b": jnp.asarray([0.3 + 0.1j], jnp.complex64)}
WEIGHT = jnp.asarray(0.7, jnp.float32)


def field(t, y, w):
    return {"a": -w * y["a"] * jnp.cos(t), "b": w.astype(jnp.complex64) * jnp.asarray(1j, jnp.complex64) * y["b"]}


def size(solution):
    return sum(jnp.sum(jnp.abs(leaf) ** 2) for leaf in jax.tree.leaves(solution.ys))


def low(t, y):
    return y["a"][0] - jnp.asarray(0.8, jnp.float32)


KINDS = {
    "equal": {"steps": 3, "solver": "heun", "ts": (0.0, 1.0)},
    "to t1": TOLERANCES,
    "ts of heun": {**TOLERANCES, "solver": "heun", "ts": (0.2, 0.7)},
    "event": {**TOLERANCES, "event": Event(low)},
    "jump": {"control": PIDController(**TOLERANCES, jump_t=(0.5,), max_step=0.3), "solver": "bosh3"},
}
WAITING = [pytest.param(*case, marks=pytest.mark.slow) for case in itertools.product(KINDS, METHODS)]
TRACED = [
    ("equal", "checkpoint"),
    ("ts of heun", "discrete-adjoint"),
    ("event", "backprop"),
    ("jump", "continuous-adjoint"),
    *WAITING,
]


@pytest.mark.parametrize(("kind", "gradient"), TRACED)
def test_nothing_is_promoted_in_silence(kind, gradient):
    def loss(y0, w):
        return size(solve(field, y0, w, gradient=gradient, **KINDS[kind]))

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(STATE, WEIGHT)


def test_nothing_is_promoted_in_silence_elsewhere():
    def stack(x, keys):
        return jnp.sum(
            ResidualStack([eqx.nn.Linear(2, 2, dtype=jnp.float32, key=key) for key in keys], solver="heun")(x)
        )

    def dropped_in(y, w, t):
        return jnp.sum(odeint(lambda y, t, w: -y * w, y, t, w, rtol=1e-3, atol=1e-3))

    half = jnp.ones(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jax.make_jaxpr(jax.grad(stack))(STATE["a"], jax.random.split(jax.random.key(0), 2))
        jax.make_jaxpr(jax.grad(dropped_in, (0, 1, 2)))(STATE["a"], WEIGHT, STATE["a"].cumsum())
        jax.make_jaxpr(lambda y: solve(lambda t, y: -y, y, steps=2, gradient="discrete-adjoint").y1)(half)
        jax.make_jaxpr(jax.hessian(lambda w: size(solve(field, STATE, w, **TOLERANCES))))(WEIGHT)


def decay(t, y, w):
    return -w * y


def ended(y0, w):
    """Fails after four steps, before the last of the kept times."""
    control = PIDController(1e-3, 1e-4, max_steps=4, max_step=0.1, throw=False)
    return solve(decay, y0, w, ts=[0.0, 0.2, 0.9], control=control, dense=True)


def falls(y0, w):
    return solve(decay, y0, w, dense=True, event=Event(lambda t, y: y[0] - 0.6), **TOLERANCES)


Y0 = jnp.asarray([1.0, 0.5])


def test_nan_for_what_there_is_not_is_no_fault_of_a_computation():
    def kept(y0):
        ys = ended(y0, 0.7).ys
        return jnp.sum(jnp.where(jnp.isfinite(ys), ys, 0.0) ** 2)

    with jax.debug_nans(True):
        of_kept = jax.grad(kept)(Y0)
    np.testing.assert_allclose(of_kept, 2 * Y0 * (1 + np.exp(-0.28)), rtol=1e-3)


@pytest.mark.slow
def test_nor_is_that_of_an_event():
    def halfway(y0):
        solution = falls(y0, 0.7)
        return jnp.sum(solution.at(solution.event_t / 2)) + solution.event_t

    with jax.debug_nans(True):
        of_halfway = jax.grad(halfway)(Y0)
    # y(t/2) = y0 sqrt(0.6 / y0[0]), and t = log(y0[0] / 0.6) / 0.7
    root = np.sqrt(0.6)
    np.testing.assert_allclose(of_halfway, [root / 2 - 0.5 * root / 2 + 1 / 0.7, root], rtol=1e-2)


def test_the_gradient_of_a_time_that_was_not_reached():
    def at(y0, t):
        return jnp.sum(ended(y0, 0.7).at(t))

    def masked(y0, t):
        values = jax.vmap(ended(y0, 0.7).at)(t)
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0.0))

    slopes = jax.jit(jax.vmap(jax.value_and_grad(at, (0, 1)), (None, 0)))
    values, (of_y0, of_t) = slopes(Y0, jnp.asarray([0.2, 0.9, jnp.nan]))
    for leaf in (values, of_y0.sum(-1), of_t):
        np.testing.assert_array_equal(np.isfinite(leaf), [True, False, False])
    exact = np.exp(-0.7 * 0.2)
    np.testing.assert_allclose(of_y0[0], exact, rtol=1e-3)
    np.testing.assert_allclose(of_t[0], -0.7 * 1.5 * exact, rtol=1e-2)
    np.testing.assert_allclose(jax.jit(jax.grad(masked))(Y0, jnp.asarray([0.2, 0.9, jnp.nan])), of_y0[0], rtol=1e-9)


CHECKED = [
    ("euler", "checkpoint"),
    ("euler", "discrete-adjoint"),
    ("dopri5", "continuous-adjoint"),
    *(
        pytest.param(*way, marks=pytest.mark.slow)
        for way in (
            ("euler", "checkpoint:bits=8"),
            ("euler", "continuous-adjoint"),
            ("reversible-heun", "reversible"),
            ("dopri5", "backprop"),
            ("dopri5", "checkpoint"),
            ("dopri5", "discrete-adjoint"),
        )
    ),
]


@pytest.mark.parametrize(("solver", "gradient"), CHECKED)
def test_checks_of_checkify_are_those_of_the_whole_program(solver, gradient):
    """Each trace of a check has a number and a trace back of its own, by which the field is no other."""
    grid = {"steps": 3} if solver != "dopri5" else TOLERANCES

    def checked(t, y, w):
        checkify.check(jnp.all(y < w[1]), "too large: {y}", y=y.max())
        return jnp.tanh(-w[0] * y)

    def loss(w, field=checked):
        return jnp.sum(solve(field, Y0.astype(float), w, solver=solver, gradient=gradient, **grid).y1)

    run = jax.jit(checkify.checkify(jax.grad(loss)))
    error, gradients = run((0.7, 2.0))
    assert error.get() is None
    np.testing.assert_allclose(
        gradients[0], jax.grad(lambda w: loss(w, lambda t, y, w: jnp.tanh(-w[0] * y)))((0.7, 2.0))[0]
    )
    said = run((0.7, 0.9))[0].get() or ""
    left = {"discrete-adjoint": "too large: 0.95", "continuous-adjoint": ""}  # of the way back, if f runs there
    if solver == "euler" and gradient in left and not loops_are_checked():
        assert said[:15] == left[gradient]
        said = jax.jit(checkify.checkify(loss))((0.7, 0.9))[0].get()  # of the solve itself
    assert "too large: 1.0" in said


@functools.cache
def loops_are_checked():
    """Whether JAX tells of a check within a loop that a gradient goes forward through: JAX 0.5 leaves it out."""

    @jax.custom_vjp
    def loop(y):
        return y

    def forward(y):
        def body(y, _):
            checkify.check(y < 0, "too large")
            return y, None

        return jax.lax.scan(body, y, None, length=1)[0], None

    loop.defvjp(forward, lambda _, slope: (slope,))
    return checkify.checkify(jax.grad(loop))(1.0)[0].get() is not None


def test_a_check_hides_nothing_else_that_changes():
    numbers = itertools.count(1.0)

    def changing(t, y):
        checkify.check(jnp.all(y < 9), "too large")
        return -y * next(numbers)

    with pytest.raises(StateError, match="another at each call"):
        checkify.checkify(lambda y: solve(changing, y, steps=3).y1)(Y0)


@pytest.mark.parametrize(("solver", "gradient"), CHECKED)
def test_64_bits_around_a_solve_are_those_of_its_backward_pass(solver, gradient):
    """The loss is differentiated when the context is over."""
    grid = {"steps": 3} if solver != "dopri5" else TOLERANCES

    def loss(w):
        with enable_x64(True):
            y0 = jnp.asarray([1.0, 0.5], jnp.float64)
            end = solve(lambda t, y, w: -w.astype(y.dtype) * y, y0, w, solver=solver, gradient=gradient, **grid)
            return end.ys.astype(jnp.float32).sum()  # JAX 0.5 cannot index there: the slopes of y[-1] are its own error

    with enable_x64(False):
        inside = jax.grad(loss)(jnp.float32(0.7))
    assert inside.dtype == jnp.float32
    np.testing.assert_allclose(inside, jax.grad(loss)(jnp.float32(0.7)), rtol=1e-6)  # 64 bits all the time
    if gradient == "checkpoint" and solver == "euler":
        np.testing.assert_allclose(inside, -1.5 * (1 - 0.7 / 3) ** 2, rtol=1e-6)


def test_an_event_that_is_not_met_has_no_time():
    solution = falls(3 * Y0, 0.7)
    with pytest.raises(InputError, match=r"Solution.at\(nan\).*no event has been met"):
        solution.at(solution.event_t)
    with pytest.raises(InputError, match=r"Solution.at\(0.9\d*\)"):  # the time itself, which is traced here
        jax.grad(lambda t: jnp.sum(ended(Y0, 0.7).at(t)))(0.9)


class Layer(eqx.Module):
    """x + f(x)."""

    linear: eqx.nn.Linear

    def __call__(self, x):
        return x + 0.1 * jnp.tanh(self.linear(x))


def test_the_example_of_convert_leaves_no_traced_array_behind():
    model = eqx.nn.Sequential([eqx.nn.Lambda(Layer(eqx.nn.Linear(2, 2, key=key))) for key in KEYS])
    with jax.checking_leaks():
        converted = convert(model, example=Y0, gradient="checkpoint")
    np.testing.assert_allclose(converted(Y0), model(Y0), rtol=1e-12)


KEYS = jax.random.split(jax.random.key(0), 3)
