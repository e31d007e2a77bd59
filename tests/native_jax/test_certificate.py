"""A gradient by rebuilt states that is badly wrong says so, under every transformation, and a tolerance is held."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import odenet
import odenet_jax
from odenet_jax.gradients.certificate import Sketch, relative

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.standard_normal((6, 8, 8)))
Y0 = jnp.asarray(RNG.standard_normal((4, 8)))


def field(t, y, w):
    return 5 * jnp.tanh(y @ w)


def loss(w, y0, gradient="discrete-adjoint"):
    solution = odenet_jax.solve(field, y0, odenet.Depth(w, "piecewise"), solver="euler", gradient=gradient)
    return (solution.y1**2).sum()


def said_by(function, *arguments):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        jax.block_until_ready(function(*arguments))
        jax.effects_barrier()
    return [(each.category, str(each.message)) for each in said if issubclass(each.category, odenet.GradientWarning)]


def trained(w, y0):
    def step(w, _):
        return w - 1e-4 * jax.grad(loss)(w, y0), None

    return jax.lax.scan(step, w, None, length=2)[0]


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (jax.jit(jax.grad(loss)), 1),
        (jax.jit(jax.vmap(jax.grad(loss), (None, 0))), 1),  # the worst of the rows
        (jax.jit(jax.grad(lambda w, y0: jax.vmap(loss, (None, 0))(w, y0).sum())), 1),
        (jax.jit(jax.grad(jax.checkpoint(loss))), 1),
        (jax.jit(trained), 2),
    ],
)
def test_useless_gradients_are_said_every_time_under_every_transformation(function, times):
    said = said_by(function, W, Y0)
    assert [category for category, _ in said] == [odenet.UselessGradientWarning] * times
    assert len(said_by(function, W, Y0)) == times
    assert said_by(function, 0.01 * W, Y0) == []
    assert "6 steps of euler" in said[0][1]
    assert "checkpoint" in said[0][1]


def test_what_says_it_leaks_no_tracer():
    with jax.checking_leaks():
        assert said_by(jax.jit(jax.grad(lambda w, y0: loss(w, y0))), W, Y0)


def test_doubtful_is_said_once_for_a_program_and_nan_every_time():
    function = jax.jit(jax.grad(loss))
    said = [category for w in (0.15 * W, 0.15 * W) for category, _ in said_by(function, w, Y0)]
    assert said == [odenet.GradientWarning]
    for _ in range(2):
        ((category, text),) = said_by(function, jnp.nan * W, Y0)
        assert category is odenet.UselessGradientWarning
        assert "NaN" in text


def test_the_adaptive_way_back_says_it_too():
    def value(y0):
        solution = odenet_jax.solve(
            lambda t, y: -8 * y + 8 * jnp.sin(3 * y),
            y0,
            t1=5.0,
            rtol=1e-2,
            atol=1e-2,
            solver="bosh3",
            gradient="discrete-adjoint",
        )
        return solution.y1.sum()

    said = said_by(jax.jit(jax.grad(value)), jnp.array([[2.0, -1.0], [0.3, 1.4]]))
    assert [category for category, _ in said] == [odenet.UselessGradientWarning]


def test_a_compiled_tolerance_is_held_when_only_the_gradient_of_weights_is_asked_for():
    function = jax.jit(jax.grad(lambda w, y0: loss(w, y0, "discrete-adjoint:tolerance=1e-5")))
    with pytest.raises(RuntimeError, match=r"residual is about 1e-\d.*checkpoint"):
        jax.block_until_ready(function(W, Y0))


class Transformer(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        one, two = jax.random.split(key)
        self.attention = eqx.nn.MultiheadAttention(2, 16, key=one)
        self.norm = eqx.nn.LayerNorm(16)
        self.mlp = eqx.nn.MLP(16, 16, 32, 1, key=two)

    def __call__(self, x):
        at = jax.vmap(self.norm)(x)
        a = self.attention(at, at, at)
        return a + jax.vmap(lambda row: self.mlp(self.norm(row)))(x + a)


def test_a_class_token_among_many_other_rows_is_seen():
    blocks = [Transformer(key) for key in jax.random.split(jax.random.key(0), 4)]
    x = jnp.asarray(3 * RNG.standard_normal((2, 49, 16))).at[:, 0].multiply(0.01)

    def value(both, gradient):
        stack, probe = both
        stack = odenet_jax.ResidualStack(blocks, gradient=gradient, t1=3.0) if stack is None else stack
        y = jax.vmap(lambda row, probe: stack(row, probe=probe))(x, probe)
        return (y[:, 0, 0] - y[:, 0, 1]).sum()

    def gradient(name):
        stack = odenet_jax.ResidualStack(blocks, gradient=name, t1=3.0)
        grads, probe = eqx.filter_jit(eqx.filter_grad(lambda both: value(both, name)))((stack, jnp.zeros(2)))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)]), probe.max()

    with pytest.warns(odenet.UselessGradientWarning):
        found, certificate = jax.block_until_ready(gradient("discrete-adjoint"))
    exact, _ = gradient("checkpoint")
    off = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
    assert off > 0.1
    assert off < 3 * certificate


@pytest.mark.parametrize(
    "shape", [(), (5, 4), (2, 4, 8, 8), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((5,), (2, 50, 30)))]
)
def test_a_row_that_is_wrong_shows_whatever_axis_holds_the_channels(shape):
    y = jnp.asarray(RNG.standard_normal(shape))
    assert relative((jnp.zeros_like(y),), (y,)) == 0
    assert jnp.isnan(relative((jnp.full_like(y, jnp.nan),), (y,)))
    for axis in {len(shape) - 1, min(1, len(shape) - 1)} if shape else ():
        place = tuple(slice(None) if i == axis else 0 for i in range(len(shape)))
        wrong = jnp.zeros_like(y).at[place].set(y[place])
        assert 0.99 < relative((wrong,), (y,)) < 3
        assert Sketch((y,)).error((y + wrong,), (y,)) > 0.3
    assert Sketch((y,)).error((y,), (y,)) == 0


def test_exported_programs_call_no_host():
    exported = export.export(jax.jit(jax.grad(loss)))(W, Y0)
    assert "callback" not in exported.mlir_module()


class Layer(eqx.Module):
    a: jax.Array

    def __call__(self, y, key=None):
        noise = 0 if key is None else 0.1 * jax.random.normal(key, y.shape)
        return 2 * jnp.tanh(self.a @ y) + noise


class Rows(eqx.Module):
    """A stack under a `jax.vmap` over what it is called with, over random keys, or over its weights."""

    stack: odenet_jax.ResidualStack
    over: str = eqx.field(static=True)

    def rows(self, x):
        if self.over == "keys":
            keys = jax.random.split(jax.random.key(0), len(x))
            return jax.vmap(lambda key: self.stack(x[0], key=key)), keys
        if self.over == "weights":
            factors = jnp.linspace(0.2, 2.0, len(x))
            scaled = lambda c: eqx.tree_at(lambda stack: stack.blocks.a, self.stack, c * self.stack.blocks.a)  # noqa: E731
            return jax.vmap(lambda c: scaled(c)(x[0])), factors
        return jax.vmap(self.stack), x

    def __call__(self, x):
        function, rows = self.rows(x)
        if self.over == "both":
            return jax.jit(jax.vmap(function))(rows[None])[0]
        return function(rows)


@pytest.mark.parametrize(
    "over", ["states", "weights", *(pytest.param(x, marks=pytest.mark.slow) for x in ("both", "keys"))]
)
def test_the_doctor_has_the_largest_certificate_of_rows_that_are_mapped(over):
    """It was their mean, in which one bad row among many is not seen."""
    stack = odenet_jax.ResidualStack([Layer(a[:4, :4]) for a in W], gradient="discrete-adjoint")
    scales = jnp.array([0.1, 0.2, 0.3, 3.0, 0.1])
    model, x = Rows(stack, over), jnp.asarray(RNG.standard_normal((5, 4))) * scales[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", odenet.GradientWarning)
        found = odenet.check_gradients(
            model, np.asarray(x), gradients=["discrete-adjoint"], loss=lambda y: (y**2).sum()
        )
        loss_of_row = lambda model, probe, i: (_of_row(model, probe, x, i) ** 2).sum()  # noqa: E731
        certified = eqx.filter_jit(odenet_jax.certified_value_and_grad(loss_of_row))
        alone = [float(certified(model, jnp.asarray(i))[2]) for i in range(len(x))]
    assert max(alone) > 1.2 * np.mean(alone) or over == "keys"
    np.testing.assert_allclose(found.of("discrete-adjoint").certificate, max(alone), rtol=1e-3)


def _of_row(model, probe, x, i):
    """What the model returns for row i, the solve of which has the probe."""
    if model.over == "keys":
        return model.stack(x[0], key=jax.random.split(jax.random.key(0), len(x))[i], probe=probe)
    if model.over == "weights":
        factor = jnp.linspace(0.2, 2.0, len(x))[i]
        return eqx.tree_at(lambda stack: stack.blocks.a, model.stack, factor * model.stack.blocks.a)(x[0], probe=probe)
    return model.stack(x[i], probe=probe)


def test_rows_that_read_each_other_are_said_as_those_of_one_state(x64):
    """All of the error is in the last step, where the solution grows."""

    def alone(y):
        return odenet.solve(
            lambda t, y: jnp.tanh(y) + jax.lax.pmean(y**2, "rows"), y, gradient="continuous-adjoint", **by
        )

    by = {"t1": 0.5, "steps": 8, "solver": "heun"}
    y0 = jnp.array([[1.0, 2.0], [3.0, 0.5], [0.3, 1.0]])
    ((category, text),) = said_by(jax.grad(lambda y: (jax.vmap(alone, axis_name="rows")(y).y1 ** 2).sum()), y0)
    assert category is odenet.UselessGradientWarning
    assert "step 7 of 8" in text
