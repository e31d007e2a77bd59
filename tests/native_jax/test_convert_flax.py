"""Models of flax.nnx, whose modules write on themselves: statistics and random numbers are those of the plain model.

flax is no dependency; where it is not installed, these tests are skipped (`pip install flax`).
"""

from __future__ import annotations

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import ConversionError, StateError
from odenet_jax import ResidualStack, convert, solve

nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.usefixtures("x64")
N, WIDTH, BATCH = 4, 4, 6
SLOW = pytest.mark.slow
RUN = "checkpoint:segments=2"


class Layer(nnx.Module):
    """x + Linear, BatchNorm, dropout."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(WIDTH, WIDTH, param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, param_dtype=jnp.float64, rngs=rngs)
        for statistic in (self.norm.mean, self.norm.var):
            statistic.set_value(statistic.get_value().astype(jnp.float64))
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return x + self.branch(x)

    def branch(self, x):
        return 0.2 * self.dropout(jnp.tanh(self.norm(self.linear(x))))


class Branch(Layer):
    """What the model is to add."""

    def __call__(self, x):
        return self.branch(x)


class Model(nnx.Module):
    def __init__(self, kind=Layer, adds=False):
        rngs = nnx.Rngs(0)
        self.layers = nnx.List([kind(rngs) for _ in range(N)])
        self.head = nnx.Linear(WIDTH, 2, param_dtype=jnp.float64, rngs=rngs)
        self.adds = adds

    def __call__(self, x):
        for layer in self.layers:
            x = x + layer(x) if self.adds else layer(x)
        return self.head(x)


def batch():
    return jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def step(model, x):
    return nnx.value_and_grad(lambda model: jnp.mean(model(x) ** 2))(model)


def numbers(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.number)]
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in leaves])


def distance(one, other):
    return np.linalg.norm(numbers(one) - numbers(other)) / np.linalg.norm(numbers(other))


@pytest.mark.parametrize(
    ("kind", "gradient", "near", "training"),
    [
        (Layer, "checkpoint", 1e-13, True),
        (Layer, RUN, 1e-13, True),
        (Branch, "discrete-adjoint:iterations=8", 1e-4, True),
        pytest.param(Branch, "checkpoint", 1e-13, True, marks=SLOW),
        pytest.param(Layer, "backprop", 1e-13, True, marks=SLOW),
        pytest.param(Layer, "checkpoint:bits=16", 1e-4, True, marks=SLOW),
        pytest.param(Layer, "checkpoint:states=1", 1e-13, False, marks=SLOW),
    ],
)
@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=SLOW)])
def test_value_gradient_statistics_and_counts_are_those_of_the_plain_model(kind, gradient, near, training, compiled):
    """In each of two steps: the second reads what the first has written."""
    plain, model = (Model(kind, kind is Branch) for _ in range(2))
    for each in (plain, model):
        each.train() if training else each.eval()
    assert convert(model, example=batch(), gradient=gradient) is model
    run = nnx.jit(step) if compiled else step
    for _ in range(2):
        (expected, expected_gradients), (value, gradients) = (run(each, batch()) for each in (plain, model))
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert distance(gradients, expected_gradients) < near
        np.testing.assert_allclose(numbers(nnx.state(model)), numbers(nnx.state(plain)), rtol=1e-12, atol=1e-15)
    assert all(layer.dropout.rngs.count.get_value() == 2 * training for layer in model.layers)


def test_a_converted_model_is_split_copied_and_unconverted():
    plain, model = Model(), Model()
    convert(model, "layers", example=batch(), gradient="discrete-adjoint")
    names = [path for path, _ in nnx.to_flat_state(nnx.state(plain))]
    assert [path for path, _ in nnx.to_flat_state(nnx.state(model))] == names
    merged = nnx.merge(*nnx.split(model))
    for again in (merged, nnx.clone(model), copy.deepcopy(model)):
        np.testing.assert_array_equal(again(batch()), Model()(batch()))
    model.layers[2].eval()
    with pytest.raises(ConversionError, match="layer 2 of a run of Layer is not like the first one"):
        model(batch())
    model.layers[2].train()
    with pytest.raises(ConversionError, match="converted already"):
        convert(model, example=batch())
    assert odenet.unconvert(model) is model
    assert nnx.split(model)[0] == nnx.split(plain)[0]


class Shared(Layer):
    """Random numbers of one source for all layers."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout, self.rngs = nnx.Dropout(0.3), rngs

    def branch(self, x):
        return 0.2 * self.dropout(jnp.tanh(self.linear(x)), rngs=self.rngs)


class Aside(Layer):
    """A loss that is kept in a variable."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.loss = nnx.Variable(jnp.zeros(()))

    def branch(self, x):
        self.loss.set_value(jnp.sum(x**2))
        return 0.2 * jnp.tanh(self.linear(x))


class Growing(Layer):
    """A variable that the call makes."""

    def branch(self, x):
        self.seen = nnx.Intermediate(x)
        return 0.2 * jnp.tanh(self.linear(x))


class Counting(Layer):
    """A count in Python, which chooses what the call does."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.calls = 0

    def branch(self, x):
        self.calls += 1
        return 0.2 * self.calls * jnp.tanh(self.linear(x))


def whole_loss(model, x):
    """With the losses by the side, which have a gradient."""

    def loss(model):
        value = jnp.mean(model(x) ** 2)
        return value + sum(layer.loss.get_value() for layer in model.layers if hasattr(layer, "loss"))

    return nnx.value_and_grad(loss)(model)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Shared, "share a RngCount that they write to"),
        (Aside, "writes to a Variable, whose gradient would be lost"),
        (Growing, "makes variables when it is called"),
        (Counting, "assigns attributes that are no variables when it is called"),
    ],
)
def test_what_leaves_a_layer_beside_its_state_is_refused_by_runs_and_right_with_checkpoint(kind, message):
    plain, model = Model(kind), Model(kind)
    with pytest.raises(ConversionError, match=message):
        convert(model, example=batch(), gradient=RUN)
    assert all(type(layer) is kind for layer in model.layers)  # it is left as it was
    convert(model, example=batch())
    expected, found = (nnx.jit(whole_loss)(each, batch()) for each in (plain, model))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
    assert distance(found[1], expected[1]) < 1e-13
    np.testing.assert_allclose(numbers(nnx.state(model)), numbers(nnx.state(plain)), rtol=1e-13)


@pytest.mark.parametrize("gradient", [RUN, pytest.param("discrete-adjoint:iterations=8", marks=SLOW)])
def test_a_stack_of_blocks_with_their_state(gradient):
    """Euler with h = 1/N on branches, the state handed in and out; without it, it is refused."""
    blocks = [Branch(nnx.Rngs(i)) for i in range(N)]
    with pytest.raises(StateError, match=r"wrote on itself.*ResidualStack\.with_state"):
        ResidualStack(blocks)(batch())
    _matches_a_loop(blocks, gradient, 1e-12 if gradient == RUN else 1e-4)


def _matches_a_loop(blocks, gradient, near):
    stack, state = ResidualStack.with_state(blocks, gradient=gradient)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def by_stack(stack, state):
        y, after = stack(batch(), state=state)
        return jnp.sum(y**2), after

    @nnx.jit
    def by_loop(blocks):
        def loss(blocks):
            y = batch()
            for block in blocks:
                y = y + block(y) / N
            return jnp.sum(y**2)

        return nnx.value_and_grad(loss)(blocks)

    (value, after), gradients = by_stack(stack, state)
    assert all(block.dropout.rngs.count.get_value() == 0 for block in blocks)  # they are left as they were
    plain = nnx.List(blocks)
    expected, expected_gradients = by_loop(plain)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for i, block in enumerate(plain):
        rest = nnx.split(block, nnx.Param, ...)[2]
        np.testing.assert_allclose(numbers(jax.tree.map(lambda leaf, i=i: leaf[i], after)), numbers(rest), rtol=1e-12)
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], gradients.blocks.weights)
        assert distance(mine, expected_gradients[i]) < near


def test_a_block_that_assigns_attributes_is_refused():
    """They were lost in silence."""
    stack, state = ResidualStack.with_state([Counting(nnx.Rngs(i)) for i in range(3)])
    with pytest.raises(StateError, match="a Counting sets itself up, or assigns attributes"):
        stack(batch(), state=state)
    with pytest.raises(StateError, match="a Counting wrote on itself"):
        solve(lambda t, y, block: block(y), batch(), Counting(nnx.Rngs(0)), steps=2)


class Scaled(Layer):
    """With an array that is no variable of flax, and a compiled part, which hands on what it does not write to."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.scale = nnx.data(np.asarray(0.2))

    def branch(self, x):
        return self.scale * nnx.jit(lambda linear, x: jnp.tanh(linear(x)))(self.linear, x)


@pytest.mark.parametrize("gradient", ["checkpoint", RUN])
def test_arrays_that_are_no_variables_and_inner_programs(gradient):
    """They were a KeyError of ours, and taken for variables that the layer writes to."""
    plain, model = Model(Scaled), convert(Model(Scaled), example=batch(), gradient=gradient)
    (expected, expected_gradients), (value, gradients) = (nnx.jit(step)(each, batch()) for each in (plain, model))
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert distance(gradients, expected_gradients) < 1e-13


@pytest.mark.parametrize("gradient", ["checkpoint", RUN])
def test_a_model_that_a_transformation_reads_from_outside_of_it(gradient):
    """As the plain model where it writes nothing (flax's error before); else refused in our words."""
    plain, model = Model(), convert(Model(), example=batch(), gradient=gradient)
    with pytest.raises(ConversionError, match=r"writes to BatchStat, RngCount .* reads from outside"):
        jax.jit(lambda x: model(x))(batch())
    plain.eval(), model.eval()
    expected, value = (jax.jit(jax.grad(lambda x, of=of: jnp.sum(of(x) ** 2)))(batch()) for of in (plain, model))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    if gradient == "checkpoint":
        tangents = [jax.jvp(of, (batch(),), (batch(),))[1] for of in (plain, model)]
        np.testing.assert_allclose(tangents[1], tangents[0], rtol=1e-12)
    layer = Branch(nnx.Rngs(0))
    with pytest.raises(StateError, match=r"flax\.nnx that the field closes over wrote on itself"):
        solve(lambda t, y: layer(y), batch(), steps=2)


class Transformed(Branch):
    """Parts of it by transformations of flax, which hand on all variables of the modules that they are handed."""

    def __init__(self, rngs):
        super().__init__(rngs)
        thrice = lambda make: nnx.split_rngs(splits=3)(nnx.vmap(make))(rngs)  # noqa: E731
        self.heads = thrice(lambda rngs: nnx.Linear(WIDTH, WIDTH, param_dtype=jnp.float64, rngs=rngs))
        self.masks = thrice(lambda rngs: nnx.Dropout(0.3, rngs=rngs))

    def branch(self, x):
        y = nnx.jit(lambda norm, x: norm(x))(self.norm, x)
        y = nnx.remat(lambda linear, dropout, y: dropout(jnp.tanh(linear(y))))(self.linear, self.dropout, y)
        y = y + nnx.cond(jnp.sum(y) > 0, lambda linear, y: linear(y), lambda linear, y: -y, self.linear, y)
        rows = nnx.vmap(lambda head, mask, y: mask(jnp.sin(head(y))), in_axes=(0, 0, None))(self.heads, self.masks, y)
        chain = nnx.scan(lambda y, head: jnp.cos(head(y)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(y, self.heads)
        return 0.1 * (jnp.sum(rows, 0) + chain)


class Rewriting(Branch):
    def branch(self, x):
        def call(linear, x):
            linear.bias.set_value(0.9 * linear.bias.get_value())
            return jnp.tanh(linear(x))

        return nnx.remat(call)(self.linear, x)


def test_blocks_that_are_made_of_transformations_of_flax():
    """Variables that these hand on were taken for written ones: blocks were refused without need."""
    plain, model = Model(Transformed, True), convert(Model(Transformed, True), example=batch(), gradient=RUN)
    for _ in range(2):
        (expected, expected_gradients), (value, gradients) = (nnx.jit(step)(each, batch()) for each in (plain, model))
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert distance(gradients, expected_gradients) < 1e-12
        np.testing.assert_allclose(numbers(nnx.state(model)), numbers(nnx.state(plain)), rtol=1e-12, atol=1e-15)
    _matches_a_loop([Transformed(nnx.Rngs(i)) for i in range(N)], RUN, 1e-12)
    layer = Transformed(nnx.Rngs(0))
    layer.eval()

    def by_loop(layer):
        y = batch()
        for _ in range(2):
            y = y + layer(y) / 2
        return jnp.sum(y**2)

    def by_solve(layer):
        solution = solve(lambda t, y, layer: layer(y), batch(), layer, steps=2, gradient="checkpoint")
        return jnp.sum(solution.y1**2)

    assert distance(nnx.grad(by_solve)(layer), nnx.grad(by_loop)(layer)) < 1e-12


def test_blocks_that_write_to_their_parameters_in_a_transformation_of_flax_are_refused():
    blocks = [Rewriting(nnx.Rngs(i)) for i in range(2)]
    stack, state = ResidualStack.with_state(blocks)
    with pytest.raises(StateError, match="a Rewriting writes to its parameters"):
        stack(batch(), state=state)
    with pytest.raises(StateError, match="a Rewriting wrote on itself"):
        solve(lambda t, y, block: block(y), batch(), blocks[0], steps=2)
    with pytest.raises(ConversionError, match="Rewriting writes to a Param"):
        convert(Model(Rewriting, True), example=batch(), gradient=RUN)
    layer = Transformed(nnx.Rngs(0))
    with pytest.raises(StateError, match=r"closes over wrote on itself .* handed to a transformation of flax"):
        solve(lambda t, y: layer(y), batch(), steps=2)


class Decaying(Layer):
    def branch(self, x):
        value = 0.2 * jnp.tanh(self.linear(x))
        self.linear.bias.set_value(0.9 * self.linear.bias.get_value())
        return value


def test_a_block_that_writes_to_its_parameters_is_refused_by_its_name():
    stack, state = ResidualStack.with_state([Decaying(nnx.Rngs(i)) for i in range(2)])
    with pytest.raises(StateError, match="a Decaying writes to its parameters"):
        stack(batch(), state=state)
