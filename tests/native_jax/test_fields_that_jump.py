"""Fields that round, choose or count by their state: where a state is rebuilt, the certificate says what that costs."""

from __future__ import annotations

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import odenet
from odenet_jax import NeuralODE, ResidualStack, convert
from odenet_jax.field import switches
from odenet_jax.field.jumps import jumps

pytestmark = pytest.mark.usefixtures("x64")
WIDTH, BLOCKS = 4, 8


def straight(h, value):
    return h + lax.stop_gradient(value - h)


@jax.custom_vjp
def rounded(h):
    return jnp.round(4 * h) / 4


rounded.defvjp(lambda h: (rounded(h), None), lambda _, g: (g,))


def routed(h, codes):
    score, index = lax.top_k(jax.nn.softmax(3 * h), 1)
    return jnp.take_along_axis(h @ codes.T, index, -1) * score * codes[0]


def nearest(h, codes):
    near = codes[jnp.argmin(jnp.sum((lax.stop_gradient(h)[..., None, :] - codes) ** 2, -1), -1)]
    return straight(h, near) + near - lax.stop_gradient(near)


def counted(h, codes):
    """A loop over the entries, which jumps by what an earlier pass of it found."""
    return lax.scan(lambda c, x: (c + (x > 0.1).astype(x.dtype), c * x), jnp.zeros(h.shape[:-1]), h.T)[1].T


JUMPING = {
    "rounded": lambda h, codes: straight(h, jnp.round(4 * h) / 4),
    "rule": lambda h, codes: rounded(h),
    "signs": lambda h, codes: straight(h, jnp.sign(h)),
    "truncated": lambda h, codes: h + (3 * h).astype(int).astype(h.dtype) / 3,
    "masked": lambda h, codes: jnp.cos(h) * (h > 0.1),
    "step": lambda h, codes: jnp.cos(h) * jnp.where(h > 0.1, 1.0, 0.3),
    "pieces": lambda h, codes: jnp.where(h > 0.2, h, -0.3 * h),
    "shrunk": lambda h, codes: jnp.where(jnp.abs(h) > 0.3, h, 0.0),
    "largest two": lambda h, codes: jnp.where(h >= lax.top_k(h, 2)[0][..., -1:], jnp.tanh(h), 0.0),
    "band": lambda h, codes: jnp.where((h > -1) & (h < 0.1), jnp.sin(h), jnp.where(h > 2, 1.0, h)),
    "by weights": lambda h, codes: jnp.where(h > 0.2, h @ codes[:4], h),
    "cond": lambda h, codes: lax.cond(jnp.sum(h) > 0, jnp.sin, lambda h: h, h),
    "routed": routed,
    "codebook": nearest,
    "ordered": lambda h, codes: codes[jnp.argsort(h)[..., 0]] * h,
    "hard": lambda h, codes: h * straight(jax.nn.softmax(h), jax.nn.one_hot(jnp.argmax(h, -1), WIDTH)),
    "switch": lambda h, codes: lax.switch(jnp.argmax(h.sum(0)), [jnp.sin, jnp.cos, jnp.tanh, jnp.negative], h),
    "modulo": lambda h, codes: (3 * h) % 1,
    "eight": lambda h, codes: straight(h, h.astype(jnp.float8_e4m3fn).astype(h.dtype)),
    "bins": lambda h, codes: h * codes[jnp.digitize(h, jnp.asarray([-0.3, 0.0, 0.3])), 0],
    "loop": counted,
    "again": lambda h, codes: jax.checkpoint(jax.jit(jnp.floor))(4 * h) / 4,
    "idle": lambda h, codes: h + 0 * jnp.round(h),
    "host": lambda h, codes: jax.pure_callback(lambda h: h, jax.ShapeDtypeStruct(h.shape, h.dtype), h),
}
KINDS = ("rounded", "signs", "masked", "step")
KEY = jax.random.key(3)
SMOOTH = {
    "relu": jax.nn.relu,
    "leaky": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "six": jax.nn.relu6,
    "hard tanh": jax.nn.hard_tanh,
    "softplus": jax.nn.softplus,
    "softmax": jax.nn.softmax,
    "log-sum": lambda h: jax.nn.logsumexp(h, -1, keepdims=True) * h,
    "where": lambda h: jnp.where(h > 0, h, 0.0),
    "softly shrunk": lambda h: jnp.where(h > 0.5, h - 0.5, jnp.where(h < -0.5, h + 0.5, 0.0)),
    "huber": lambda h: jnp.where(jnp.abs(h) < 1, 0.5 * h * h, jnp.abs(h) - 0.5),
    "root": lambda h: jnp.where(h > 0, jnp.sqrt(jnp.where(h > 0, h, 1.0)), 0.0),
    "larger": lambda h: jnp.where(h > h[::-1], h, h[::-1]),
    "larger of its sine": lambda h: jnp.where(h > jnp.sin(h), h, jnp.sin(h)),
    "select": lambda h: jnp.select([h > 1, h > 0], [h, h**2]),
    "clip": lambda h: jnp.clip(h, -0.5, 0.5),
    "max": lambda h: h - jnp.max(h, -1, keepdims=True),
    "sorted": lambda h: jnp.sort(h),
    "largest": lambda h: h * lax.top_k(h, 1)[0],
    "dropout": lambda h: jnp.where(jax.random.bernoulli(KEY, 0.7, h.shape), h / 0.7, 0.0),
    "mask": lambda h: h * jax.random.bernoulli(KEY, 0.7, h.shape),
    "norm": lambda h: h / jnp.where((n := jnp.linalg.norm(h, axis=-1, keepdims=True)) > 0, n, 1.0),
    "layer norm": lambda h: jax.vmap(eqx.nn.LayerNorm(WIDTH))(h),
    "attention": lambda h: eqx.nn.MultiheadAttention(2, WIDTH, key=KEY)(h, h, h, mask=jnp.tri(3, 3, dtype=bool)),
    "pool": lambda h: jnp.pad(eqx.nn.MaxPool1d(2)(h), ((0, 0), (0, 1))),
    "solve": lambda h: jnp.linalg.solve(jnp.eye(WIDTH) + 0.1 * h.T @ h, h.T).T,
    "until": lambda h: lax.while_loop(lambda c: jnp.max(c) > 0.1, lambda c: 0.5 * c, h),
    "tokens": lambda h: h + jnp.eye(WIDTH)[jnp.argmax(jnp.arange(4.0))],
    "quantised weights": lambda h: h @ jnp.round(jnp.ones((WIDTH, WIDTH))),
    "not returned": lambda h: (jnp.round(h), h)[1],
    "half": lambda h: h.astype(jnp.bfloat16).astype(h.dtype),
}
CODES = jax.random.normal(jax.random.key(1), (6, WIDTH))


def jumping(function):
    program = jax.make_jaxpr(function)(jnp.ones((3, WIDTH)))
    return jumps(program.jaxpr, slice(0, 1)) or switches.jumps(program.jaxpr, slice(0, 1), program.consts)


def test_what_jumps_and_what_does_not():
    assert [name for name, of in JUMPING.items() if not jumping(lambda h, of=of: of(h, CODES))] == []
    assert [name for name, of in SMOOTH.items() if jumping(of)] == []


class Block(eqx.Module):
    inner: jax.Array
    out: jax.Array
    codes: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, x):
        return JUMPING.get(self.kind, lambda h, codes: h)(jnp.tanh(x @ self.inner), self.codes) @ self.out


def blocks(kind, seed):
    def block(key):
        one, two, three = jax.random.split(key, 3)
        inner, out, codes = (jax.random.normal(k, s) for k, s in ((one, (4, 4)), (two, (4, 4)), (three, (6, 4))))
        return Block(inner / 2, 0.15 * out, codes, kind)

    return [block(key) for key in jax.random.split(jax.random.key(seed), BLOCKS)]


def by_stack(kind, gradient, seed):
    def loss(both, x):
        stack, probe = both
        return jnp.sum(stack(x, probe=probe) ** 2)

    stack = ResidualStack(blocks(kind, seed), gradient=gradient)
    x = jax.random.normal(jax.random.key(100 + seed), (3, WIDTH))
    return eqx.filter_grad(loss)((stack, jnp.zeros(())), x)


def error(one, other):
    """Of the array that is off most, by its norm."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-9)) for a, b in pairs)


CASES = [(kind, option) for kind in JUMPING if kind != "host" for option in ("", ":correct=no", ":iterations=9")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "option"), CASES)
def test_the_certificate_of_a_block_that_jumps_says_the_error_or_warns(kind, option):
    for seed in range(3):
        expected, _ = by_stack(kind, "backprop", seed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", odenet.GradientWarning)
            found, certificate = by_stack(kind, f"discrete-adjoint{option}", seed)
            jax.effects_barrier()
        off = error(found, expected)
        assert off <= max(3 * certificate, 1e-9) or said, (seed, off, certificate)


X = jax.random.normal(jax.random.key(101), (3, WIDTH))
LAYERS, MODULO = blocks("routed", 1), blocks("modulo", 1)[0]


class Layer(eqx.Module):
    block: Block

    def __call__(self, x):
        return x + self.block(x)


class Layers(eqx.Module):
    layers: list[Layer]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def stack(gradient, *, one_by_one=False):
    def loss(blocks):
        net = ResidualStack(blocks, gradient=gradient)
        return jnp.sum((jax.vmap(net)(X) if one_by_one else net(X)) ** 2)

    return jax.jit(jax.grad(loss))(LAYERS)


def converted(gradient):
    net = Layers([Layer(block) for block in LAYERS])
    other = net if gradient == "backprop" else convert(net, example=X, gradient=gradient)
    return eqx.filter_grad(lambda net: jnp.sum(net(X / 2) ** 2))(other)


def node(gradient, **grid):
    def loss(block, x):
        return jnp.sum(NeuralODE(Field(block), gradient=gradient, t1=2.0, **grid)(x) ** 2)

    return jax.grad(loss)(MODULO, X)


class Field(eqx.Module):
    block: Block

    def __call__(self, t, y):
        return self.block(y)


def verb(gradient):
    def field(t, y, w):
        return w(y)

    def loss(solution):
        return jnp.sum(solution.y1**2)

    depth = odenet.Depth.each(LAYERS)
    return odenet.value_and_grad(loss, field, X, depth, gradient=gradient, solver="euler", t1=8.0)[1].weights


def over_devices(gradient):
    mesh, spec = jax.make_mesh((1,), ("rows",), (jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(spec(), spec("rows")), out_specs=spec("rows"))
    def net(layers, x):
        return ResidualStack(layers, gradient=gradient)(x)

    return jax.jit(jax.grad(lambda layers: jnp.sum(net(layers, X) ** 2)))(LAYERS)


WAYS = {
    "jit": stack,
    "vmap": functools.partial(stack, one_by_one=True),
    "convert": converted,
    "value_and_grad": verb,
    "equal steps": functools.partial(node, steps=6, solver="heun"),
    "adaptive": functools.partial(node, rtol=1e-2, atol=1e-2, solver="heun"),
    "devices": over_devices,
}


@pytest.mark.parametrize("way", ["value_and_grad", *(pytest.param(n, marks=pytest.mark.slow) for n in WAYS)])
def test_every_way_to_the_discrete_adjoint_says_it(way):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", odenet.GradientWarning)
        found = jax.block_until_ready(WAYS[way]("discrete-adjoint"))
        jax.effects_barrier()
    off = error(*(eqx.filter(tree, eqx.is_inexact_array) for tree in (found, WAYS[way]("backprop"))))
    assert off > 0.01
    assert [each.category for each in said if issubclass(each.category, odenet.GradientWarning)]


def test_a_field_that_does_not_jump_has_the_certificate_that_it_had():
    """The same arithmetic, with and without an operation that jumps where it changes nothing."""
    smooth, idle = (by_stack(kind, "discrete-adjoint", 0)[1] for kind in ("smooth", "idle"))
    assert smooth < 2e-3
    assert idle > 3 * smooth


@pytest.mark.parametrize("kind", ["modulo", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS)])
def test_rounded_states_of_a_field_that_jumps(kind):
    """Of many entries some are rounded across a jump."""
    keys = jax.random.split(jax.random.key(0), 8)
    net = [Block(*(x / 8 for x in jax.random.normal(key, (2, 64, 64))), CODES, kind) for key in keys]
    x = jax.random.normal(jax.random.key(9), (32, 64))

    def gradient(method):
        def loss(both):
            return jnp.sum(ResidualStack(both[0], gradient=method)(x, probe=both[1]) ** 2)

        return jax.grad(loss)((net, jnp.zeros(())))

    (expected, _), (found, certificate) = gradient("backprop"), gradient("checkpoint:bits=8")
    assert error(found, expected) < 3 * certificate < 0.2
