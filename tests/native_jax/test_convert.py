"""Models of equinox whose layers are trained by a gradient method of this library: right, or refused by name."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet import ConversionError, UnsupportedError
from odenet_jax import ResidualStack, certified_value_and_grad, convert, unconvert
from odenet_jax.conversion.increment import increment

pytestmark = pytest.mark.usefixtures("x64")
N, WIDTH, BATCH = 4, 4, 3
SLOW = pytest.mark.slow
RUN = "checkpoint:segments=2"
"""An exact method that computes a run of layers as one solve."""


class Layer(eqx.Module):
    """x + f(x), or f(x) for a model that adds it; with dropout where it is given a key."""

    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    adds: bool = eqx.field(static=True, default=True)

    def __init__(self, key, adds=True):
        self.linear, self.dropout, self.adds = eqx.nn.Linear(WIDTH, WIDTH, key=key), eqx.nn.Dropout(0.3), adds

    def __call__(self, x, mask=1.0, *, key=None):
        f = 0.2 * mask * self.dropout(jnp.tanh(self.linear(x)), key=key, inference=key is None)
        return x + f if self.adds else f


class Normed(eqx.Module):
    """x + BatchNorm and dropout."""

    linear: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        named = {"mode": "ema"} if "mode" in inspect.signature(eqx.nn.BatchNorm).parameters else {}
        self.linear, self.dropout = eqx.nn.Linear(WIDTH, WIDTH, key=key), eqx.nn.Dropout(0.3)
        self.norm = eqx.nn.BatchNorm(WIDTH, "batch", **named)

    def __call__(self, x, state, *, key=None):
        f, state = self.norm(self.linear(x), state)
        return x + 0.2 * self.dropout(jnp.tanh(f), key=key), state


class Model(eqx.Module):
    """Layers in a list that some code calls."""

    layers: list
    head: eqx.nn.Linear
    code: object = eqx.field(static=True)

    def __init__(self, code, kinds=(Layer,) * N, key=0):
        *keys, last = jax.random.split(jax.random.key(key), len(kinds) + 1)
        self.layers = [kind(key) for kind, key in zip(kinds, keys, strict=True)]
        self.head, self.code = eqx.nn.Linear(WIDTH, 2, key=last), code

    def __call__(self, x, *arguments):
        return self.code(self, x, *arguments)


def in_turn(model, x, *arguments):
    for layer in model.layers:
        x = layer(x, *arguments)
    return model.head(x)


def with_keys(model, x, key):
    for layer, own in zip(model.layers, jax.random.split(key, len(model.layers)), strict=True):
        x = layer(x, key=own)
    return model.head(x)


def added(model, x, key):
    for layer, own in zip(model.layers, jax.random.split(key, len(model.layers)), strict=True):
        x = layer(x, key=own) + x
    return model.head(x)


def with_state(model, x, state, key):
    for layer, own in zip(model.layers, jax.random.split(key, len(model.layers)), strict=True):
        x, state = layer(x, state, key=own)
    return model.head(x), state


def rows(model, x, state, key):
    axes = {"axis_name": "batch", "in_axes": (0, None, 0), "out_axes": (0, None)}
    return jax.vmap(model, **axes)(x, state, jax.random.split(key, len(x)))


def batch(seed=0):
    return jax.random.normal(jax.random.key(seed), (BATCH, WIDTH))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))])


def distance(one, other):
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other))


@eqx.filter_jit
def step(model, x, key):
    """Loss and gradients of a batch, each row with a key of its own."""

    @eqx.filter_value_and_grad
    def loss(both):
        model, x = both
        return jnp.sum(jax.vmap(model)(x, jax.random.split(key, len(x))) ** 2)

    return loss((model, x))


@functools.cache
def plain(adds):
    model = Model(with_keys if adds else added, (functools.partial(Layer, adds=adds),) * N)
    return model, step(model, batch(), jax.random.key(7))


@pytest.mark.parametrize(
    ("adds", "gradient", "near"),
    [
        pytest.param(True, "checkpoint", 1e-13, marks=SLOW),
        (True, RUN, 1e-13),
        (False, "discrete-adjoint:iterations=6", 1e-6),
        pytest.param(True, "backprop", 1e-13, marks=SLOW),
        pytest.param(False, RUN, 1e-13, marks=SLOW),
        pytest.param(False, "checkpoint:states=2", 1e-13, marks=SLOW),
        pytest.param(True, "discrete-adjoint", 3e-2, marks=SLOW),
        pytest.param(True, "checkpoint:bits=8", 1e-2, marks=SLOW),
        pytest.param(True, "checkpoint:bits=16", 1e-5, marks=SLOW),
        pytest.param(False, "discrete-adjoint:tolerance=1e-9", 1e-7, marks=SLOW),
    ],
)
def test_value_and_gradient_are_those_of_the_plain_model(adds, gradient, near):
    """Whether the layers add, or the model does; with a key for each layer, and each row of a vmap."""
    model, (value, expected) = plain(adds)
    converted = convert(model, example=(batch()[0], jax.random.key(3)), gradient=gradient)
    again, found = step(converted, batch(), jax.random.key(7))
    np.testing.assert_allclose(again, value, rtol=1e-14)
    assert distance(found, expected) < near
    assert [path for path, _ in named_leaves(converted)] == [path for path, _ in named_leaves(model)]
    assert all(isinstance(layer, Layer) for layer in converted.layers)


def named_leaves(model):
    return jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))[0]


@pytest.mark.parametrize("gradient", [pytest.param("checkpoint", marks=SLOW), RUN])
def test_a_state_of_equinox_is_that_of_the_plain_model(gradient):
    model, state = eqx.nn.make_with_state(Model)(with_state, (Normed,) * N)
    converted = convert(model, example=(batch(), state, jax.random.key(3)), gradient=gradient, call=rows)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, x, state, key):
        y, state = rows(model, x, state, key)
        return jnp.sum(y**2), state

    (found, expected) = (loss(each, batch(), state, jax.random.key(5)) for each in (converted, model))
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-14)
    np.testing.assert_allclose(flat(found[0][1]), flat(expected[0][1]), rtol=1e-12)
    assert jax.tree.structure(found[0][1]) == jax.tree.structure(state)
    assert distance(found[1], expected[1]) < 1e-13


def test_a_converted_model_is_copied_trained_saved_and_unconverted():
    model = Model(in_turn)
    converted = convert(model, "layers", example=batch()[0], gradient="discrete-adjoint:iterations=3")
    loss = eqx.filter_jit(lambda model: jnp.sum(model(batch()[0]) ** 2))
    stepped = jax.tree.map(lambda leaf: 0.5 * leaf if eqx.is_inexact_array(leaf) else leaf, converted)
    back = odenet.unconvert(stepped)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    np.testing.assert_allclose(flat(back), flat(model) / 2)
    np.testing.assert_allclose(loss(back), loss(stepped), rtol=1e-13)
    assert unconvert(model) == model
    for again in (copy.deepcopy(converted.layers[1]), pickle.loads(pickle.dumps(converted.layers[1]))):
        assert jax.tree.structure(again) == jax.tree.structure(converted.layers[1])
        np.testing.assert_array_equal(flat(again), flat(model.layers[1]))
    assert jax.tree.structure(convert(model, example=batch()[0], gradient="discrete-adjoint:iterations=3")) == (
        jax.tree.structure(converted)
    )  # so that what was compiled for one is compiled for both
    with pytest.raises(ConversionError, match="converted already"):
        convert(converted, example=batch()[0])


def test_the_certificate_of_a_converted_model():
    model = Model(in_turn)
    converted = convert(model, example=batch()[0], gradient="discrete-adjoint")
    certified = certified_value_and_grad(lambda model, probe, x: jnp.sum(model(x) ** 2))
    _, found, certificate = eqx.filter_jit(certified)(converted, batch()[0])
    expected = eqx.filter_grad(lambda model: jnp.sum(model(batch()[0]) ** 2))(model)
    assert 1e-4 < certificate < 0.3
    assert distance(found, expected) < certificate
    with pytest.raises(UnsupportedError, match="rows=3"):
        certified_value_and_grad(lambda model, probe, x: jnp.sum(jax.vmap(model)(x)), rows=3)(converted, batch())


class Late(Layer):
    """An activation after the addition."""

    def __call__(self, x):
        return jnp.tanh(super().__call__(x))


class Aside(Layer):
    """A value beside the state."""

    def __call__(self, x):
        return super().__call__(x), jnp.sum(x)


class Narrow(eqx.Module):
    """Another structure."""

    weight: jax.Array

    def __init__(self, key):
        self.weight = jax.random.normal(key, (WIDTH,))

    def __call__(self, x):
        return x + 0.1 * jnp.sin(self.weight * x)


class Shorter(Layer):
    """Another shape."""

    def __call__(self, x):
        return super().__call__(x)[:1]


def asides(model, x):
    total = 0.0
    for layer in model.layers:
        x, more = layer(x)
        total += more
    return x, total


def hidden(model, x):
    return [x := layer(x) for layer in model.layers]


def scaled(model, x):
    for layer in model.layers:
        x = 2 * layer(x)
    return x


def smoothed(model, x):
    for layer in model.layers:
        x = jnp.tanh(layer(x))
    return x


def told(model, x):
    for layer in model.layers:
        x = layer(x)
        jax.debug.callback(lambda x: None, x)
    return x


def apart(model, x):
    for layer in model.layers:
        x = jax.vmap(layer)(x[None])[0]
    return x


def early(model, x):
    for layer in model.layers[:3]:
        x = layer(x)
    return x


def numbered(model, x):
    for i, layer in enumerate(model.layers):
        x = layer(x, 0.1 * i)
    return x


@pytest.mark.parametrize(
    ("code", "kinds", "message"),
    [
        (in_turn, (Late,) * N, "last thing that Late does is tanh"),
        (asides, (Aside,) * N, "returns more than its state"),
        (in_turn, (Layer, Narrow) * 2, "layers.1 is a Narrow of another structure than layers.0"),
        (lambda model, x: [layer(x) for layer in model.layers], (Shorter,) * N, r"changes the state from .*\(1,\)"),
        (hidden, (Layer,) * N, "something else with the state after layer 0"),
        (scaled, (Layer,) * N, "something else with what layer 0 of a converted run of 4 Layer returned"),
        (smoothed, (Layer,) * N, "something else with what layer 0"),
        (told, (Layer,) * N, "something else with the state after layer 0"),
        pytest.param(apart, (Layer,) * N, "something with a state between two layers", marks=SLOW),
        (numbered, (Layer,) * N, "called with 0.0, 0.1, 0.2"),
        (lambda model, x: x, (Layer,) * N, "not called on the example"),
    ],
)
def test_what_is_no_run_of_residual_layers_is_refused(code, kinds, message):
    with pytest.raises(ConversionError, match=message):
        convert(Model(code, kinds), example=batch()[0], gradient="discrete-adjoint")


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (in_turn, (Layer, Late, Narrow, Layer)),
        (asides, (Aside,) * N),
        pytest.param(hidden, (Layer,) * N, marks=SLOW),
        pytest.param(apart, (Layer,) * N, marks=SLOW),
        pytest.param(early, (Layer,) * N, marks=SLOW),
        pytest.param(numbered, (Layer,) * N, marks=SLOW),
    ],
)
def test_checkpoint_takes_layers_of_every_kind(code, kinds):
    model = Model(code, kinds)
    converted = convert(model, example=batch()[0])

    def loss(model):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(model(batch()[0])))

    found, expected = (eqx.filter_jit(eqx.filter_grad(loss))(each) for each in (converted, model))
    assert distance(found, expected) < 1e-14


def test_runs_are_cut_where_layers_differ_and_where_they_stop():
    """The others stay as they are; a layer that is gone later is missed."""
    model = Model(in_turn, (Layer, Layer, Narrow, Narrow))
    converted = convert(model, example=batch()[0], gradient=RUN)
    names = [type(layer).__name__ for layer in converted.layers]
    assert names == ["ConvertedLayer"] * 2 + ["ConvertedNarrow"] * 2
    found, expected = (
        eqx.filter_grad(lambda model: jnp.sum(model(batch()[0]) ** 2))(each) for each in (converted, model)
    )
    assert distance(found, expected) < 1e-13
    for shorter in (converted.layers[:3], [converted.layers[0], *converted.layers[2:]], converted.layers[1:]):
        with pytest.raises(ConversionError):
            eqx.tree_at(lambda model: model.layers, converted, shorter)(batch()[0])
    changed = eqx.tree_at(lambda model: model.layers[1].linear.bias, converted, None)
    with pytest.raises(ConversionError, match="not alike any more"):
        changed(batch()[0])


def test_what_a_model_and_a_method_must_be():
    model = Model(in_turn)
    with pytest.raises(odenet.InputError, match="a model that is a int"):
        convert(3, example=batch()[0])
    with pytest.raises(ConversionError, match=r"no part of the model is 'blocks'.*layers"):
        convert(model, "blocks", example=batch()[0])
    with pytest.raises(ConversionError, match="no list of two or more layers"):
        convert(model.head, example=batch()[0])
    with pytest.raises(UnsupportedError, match="auto"):
        convert(model, example=batch()[0], gradient="auto")
    with pytest.raises(UnsupportedError):
        convert(model, example=batch()[0], gradient="reversible")


def twice(x):
    x = x + jnp.sin(x)
    return x + jnp.cos(x)


SUMS = {
    "in front": lambda x: jnp.add(jnp.sin(x), x),
    "difference": lambda x: x - jnp.sin(x),
    "constant": lambda x: 1.0 + x + jnp.sin(x),
    "doubled": lambda x: x + x,
    "two branches": twice,
    "inside of jit": lambda x: jax.jit(twice)(jax.jit(jnp.add)(x, 1.0)),
    "nothing": lambda x: x,
    "derivative of its own": lambda x: x + jax.nn.relu(x),
    "gradient cut in the branch": lambda x: x + jnp.sin(jax.lax.stop_gradient(x)),
}
NO_SUMS = {
    "gradient cut beside it": lambda x: jax.lax.stop_gradient(x) + jnp.sin(x),
    "taken from it": lambda x: jnp.sin(x) - x,
    "scaled": lambda x: 2 * x,
    "activated": lambda x: jax.nn.relu(x + jnp.sin(x)),
    "in a loop": lambda x: jax.lax.fori_loop(0, 2, lambda _, x: x + jnp.sin(x), x),
    "narrowed": lambda x: (x + jnp.sin(x)).astype(jnp.float32).astype(x.dtype),
}


@pytest.mark.parametrize("function", SUMS.values(), ids=SUMS)
def test_what_a_layer_adds_is_read_off_its_program(function):
    x = batch()[0]
    more, _ = increment(lambda x: (function(x), None), x, "a layer")
    np.testing.assert_allclose(x + more, function(x), rtol=1e-15)
    found = jax.vjp(lambda x: x + increment(lambda x: (function(x), None), x, "a layer")[0], x)[1](x)[0]
    np.testing.assert_allclose(found, jax.vjp(function, x)[1](x)[0], rtol=1e-15)


@pytest.mark.parametrize("function", NO_SUMS.values(), ids=NO_SUMS)
def test_a_layer_whose_program_does_not_end_with_the_addition_is_none(function):
    with pytest.raises(ConversionError, match="not the addition of its input"):
        increment(lambda x: (function(x), None), batch()[0], "a layer")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        {"solver": "heun", "gradient": "checkpoint"},
        {"solver": "heun", "gradient": "discrete-adjoint:iterations=6", "along": "linear"},
        {"solver": "alf", "gradient": "reversible"},
    ],
    ids=str,
)
def test_another_solver_is_the_stack_of_the_layers(choices):
    """With steps of h = 1, and f(x) = layer(x) - x."""
    model = Model(in_turn)
    converted = convert(model, example=batch()[0], **choices)
    branches = [Layer(key, adds=False) for key in jax.random.split(jax.random.key(0), N + 1)[:N]]
    end = N - (choices.get("along") == "linear")
    stack = ResidualStack(branches, **{"along": "piecewise", **choices}, t1=float(end))

    def whole(stack):
        return model.head(stack(batch()[0]))

    np.testing.assert_allclose(converted(batch()[0]), whole(stack), rtol=1e-12)


@pytest.mark.slow
def test_lists_in_lists_dictionaries_and_sequences():
    class Stage(eqx.Module):
        blocks: tuple
        down: eqx.nn.Linear

        def __init__(self, key):
            self.blocks = tuple(Layer(each) for each in jax.random.split(key, 3))
            self.down = eqx.nn.Linear(WIDTH, WIDTH, key=key)

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return self.down(x)

    class Net(eqx.Module):
        stages: dict
        last: eqx.nn.Sequential

        def __init__(self, key):
            self.stages = {name: Stage(each) for name, each in zip("ab", jax.random.split(key), strict=True)}
            self.last = eqx.nn.Sequential([Narrow(each) for each in jax.random.split(key, 3)])

        def __call__(self, x):
            for stage in self.stages.values():
                x = stage(x)
            return self.last(x)

    class Unkeyed(Narrow):
        def __call__(self, x, key=None):
            return super().__call__(x)

    net = Net(jax.random.key(0))
    net = eqx.tree_at(
        lambda net: net.last, net, eqx.nn.Sequential([Unkeyed(each) for each in jax.random.split(jax.random.key(1), 3)])
    )
    loss = eqx.filter_grad(lambda net: jnp.sum(net(batch()[0]) ** 2))
    for where, gradient, count in ((None, RUN, 9), ("stages.a", RUN, 3), (None, "checkpoint", 5)):
        converted = convert(net, where, example=batch()[0], gradient=gradient)
        assert distance(loss(converted), loss(net)) < 1e-13
        assert repr(converted).count("Converted") == count


def test_memory_does_not_grow_with_depth():
    """Compiled, beside the weights: one state, where the plain model keeps what every layer saves."""

    class Wide(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            return x + 0.1 * jnp.tanh(jnp.cos(x * self.weight))

    class Net(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    def temporaries(model):
        loss = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.sum(model(x) ** 2)))
        return loss.lower(model).compile().compiled.memory_analysis().temp_size_in_bytes

    x = jnp.linspace(0, 1, 20000)
    net = Net([Wide(jnp.ones(())) for _ in range(24)])
    small = temporaries(convert(net, example=x[:1], gradient="discrete-adjoint"))
    assert small < 12 * x.nbytes < temporaries(net)
