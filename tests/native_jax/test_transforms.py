"""Solves under JAX's transformations: jit, vmap, grad and any nesting of them."""

from __future__ import annotations

import collections
import itertools
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import odenet
from odenet import Depth, GradientError, UnsupportedError, _tree
from odenet_jax import NeuralODE, ResidualStack, solve

pytestmark = pytest.mark.usefixtures("x64")
ADJOINTS = pytest.mark.parametrize("gradient", ["discrete-adjoint:iterations=6", "continuous-adjoint"])
EVERY = pytest.mark.parametrize("gradient", ["backprop", "discrete-adjoint", "continuous-adjoint"])
NEAR = {"backprop": 1e-13, "discrete-adjoint:iterations=6": 1e-5, "discrete-adjoint": 2e-2, "continuous-adjoint": 0.2}
STEPS, WIDTH = 8, 3


def waiting(*case):
    """A case whose program waits for `make test-slow`: what it has is in others."""
    return pytest.param(*case, marks=pytest.mark.slow)


def field(t, y, w):
    return jnp.tanh(y @ w["a"]) * jnp.cos(t)


def stacked(kind="piecewise", steps=STEPS):
    """Weights along depth, smooth in it."""
    count = {"shared": 1, "piecewise": steps, "linear": steps + 1}[kind]
    s = jnp.arange(count)[:, None, None] / steps
    a, b = (0.5 * jax.random.normal(jax.random.key(i), (WIDTH, WIDTH), jnp.float64) for i in (0, 1))
    tree = {"a": jnp.cos(s) * a + jnp.sin(s) * b}
    return Depth(jax.tree.map(lambda leaf: leaf[0], tree) if kind == "shared" else tree, kind)


def start():
    return jnp.array([1.0, -0.5, 0.25])


def loss(y0, weights, gradient, solver="euler"):
    return jnp.sum(solve(field, y0, weights, steps=STEPS, solver=solver, gradient=gradient).y1 ** 2)


GRADIENT = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=(2, 3))  # compiled once for all tests


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def distance(one, other):
    return np.linalg.norm(flat(one) - flat(other)) / np.linalg.norm(flat(other))


@pytest.mark.parametrize(
    ("gradient", "kind"),
    [
        ("discrete-adjoint:iterations=6", "linear"),
        ("continuous-adjoint", "piecewise"),
        waiting("discrete-adjoint:iterations=6", "shared"),
        waiting("discrete-adjoint:iterations=6", "piecewise"),
        waiting("continuous-adjoint", "shared"),
        waiting("continuous-adjoint", "linear"),
    ],
)
def test_jit_of_grad_is_close_to_backprop_of_the_same(gradient, kind):
    derivative = jax.grad(loss, argnums=(0, 1))
    exact = GRADIENT(start(), stacked(kind), "backprop")
    plain = derivative(start(), stacked(kind), gradient)
    compiled = GRADIENT(start(), stacked(kind), gradient)
    assert distance(compiled, plain) < 1e-13
    assert distance(plain, exact) < NEAR[gradient]
    assert isinstance(plain[1], Depth)
    assert plain[1].kind == kind


def test_checkpoints_give_backprop_s_gradient_to_the_last_bit():
    """Where each step has weights of its own; gradients are added in the same order, those at kept times too."""

    @jax.jit
    def found(y0, weights):
        def total(y0, weights, gradient):
            return jnp.sum(solve(field, y0, weights, solver="heun", gradient=gradient, ts="all").ys ** 2)

        methods = ("backprop", "checkpoint", "checkpoint:segments=3", "checkpoint:states=2")
        return [jax.grad(total, (0, 1))(y0, weights, gradient) for gradient in methods]

    exact, *others = map(flat, found(start(), stacked("linear")))
    for other in others:
        np.testing.assert_array_equal(other, exact)


@EVERY
def test_vmap_over_states_is_a_loop_over_them(gradient):
    many = jnp.stack([start(), 2 * start(), -start()])
    each = jax.jit(jax.vmap(lambda y0: jax.grad(loss)(y0, stacked(), gradient)))(many)
    looped = np.stack([GRADIENT(one, stacked(), gradient)[0] for one in many])
    np.testing.assert_allclose(each, looped, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", ["discrete-adjoint", waiting("backprop"), waiting("continuous-adjoint")])
def test_vmap_over_weights_is_a_loop_over_them(gradient):
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), stacked("linear"))
    each = jax.jit(jax.vmap(lambda weights: jax.grad(loss, 1)(start(), weights, gradient)))(many).tree["a"]
    for i in range(2):
        one = GRADIENT(start(), jax.tree.map(lambda leaf, i=i: leaf[i], many), gradient)[1].tree["a"]
        np.testing.assert_allclose(each[i], one, rtol=1e-12, atol=1e-14)


@ADJOINTS
def test_grad_of_vmap_sums_over_the_batch(gradient):
    many = jnp.stack([start(), 2 * start(), -start()])

    def batched(weights, gradient):
        return jax.vmap(lambda y0: loss(y0, weights, gradient))(many).sum()

    found = jax.jit(jax.grad(batched), static_argnums=1)(stacked(), gradient)
    single = sum(flat(GRADIENT(one, stacked(), gradient)[1]) for one in many)
    np.testing.assert_allclose(flat(found), single, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        waiting("euler", "checkpoint:segments=3"),  # the way back is JAX's own
        ("heun", "checkpoint:states=2"),
        waiting("heun", "discrete-adjoint:anchors=3:tolerance=1e-12"),
        ("euler", "discrete-adjoint:predictor=extrapolate:iterations=6"),
        waiting("euler", "continuous-adjoint:interpolate=yes"),
        waiting("reversible:euler", "reversible"),
        ("reversible-heun", "reversible"),
    ],
)
def test_transformations_commute(solver, gradient):
    """`grad` inside `vmap`, outside of it, and without it; backprop's is near."""

    def batched(y0, weights, gradient):
        return jax.vmap(lambda y0: loss(y0, weights, gradient, solver))(y0).sum()

    @jax.jit
    def found(many, weights):
        each = jax.vmap(lambda y0: jax.grad(loss, (0, 1))(y0, weights, gradient, solver))(many)
        one = jax.grad(loss, (0, 1))(many[0], weights, gradient, solver)
        return one, each, *(jax.grad(batched, (0, 1))(many, weights, kind) for kind in (gradient, "backprop"))

    one, each, whole, exact = found(jnp.stack([start(), -2 * start()]), stacked("linear"))
    np.testing.assert_allclose(flat(jax.tree.map(lambda leaf: leaf[0], each)), flat(one), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(each[0], whole[0], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(flat(each[1].tree["a"].sum(0)), flat(whole[1]), rtol=1e-8, atol=1e-10)
    assert distance(whole, exact) < (0.2 if "continuous" in gradient else 1e-5 if "iterations" in gradient else 1e-10)


@pytest.mark.parametrize(
    ("gradient", "compiled"),
    [
        ("discrete-adjoint:iterations=6", True),
        ("continuous-adjoint", False),
        waiting("discrete-adjoint:iterations=6", False),
        waiting("continuous-adjoint", True),
    ],
)
def test_closures_get_their_gradients(gradient, compiled):
    def closed(scale, gradient):
        return jnp.sum(solve(lambda t, y: jnp.sin(scale * y), start(), steps=STEPS, gradient=gradient).y1)

    def handed(scale, gradient):
        return jnp.sum(solve(lambda t, y, w: jnp.sin(w * y), start(), scale, steps=STEPS, gradient=gradient).y1)

    wrap = (lambda f: jax.jit(jax.grad(f), static_argnums=1)) if compiled else jax.grad
    found = wrap(closed)(0.7, gradient)
    assert found == pytest.approx(float(wrap(handed)(0.7, gradient)), rel=1e-13)
    assert found == pytest.approx(float(wrap(closed)(0.7, "backprop")), rel=NEAR[gradient])


@pytest.mark.parametrize("gradient", ["discrete-adjoint:iterations=6", waiting("continuous-adjoint")])
def test_closures_over_values_of_an_outer_transformation(gradient):
    """Weights that are computed from the differentiated value, closed over in a field that has weights of its own."""

    def outer(x, gradient):
        scale = jnp.exp(x)
        fields = lambda t, y, w: jnp.sin(scale * y) * w  # noqa: E731
        return jnp.sum(solve(fields, start() * x, x * jnp.ones(3), steps=STEPS, gradient=gradient).y1)

    found, exact = (
        jax.jit(jax.vmap(jax.grad(lambda x, kind=kind: outer(x, kind))))(jnp.array([0.1, 0.4]))
        for kind in (gradient, "backprop")
    )
    np.testing.assert_allclose(found, exact, rtol=NEAR[gradient])


def test_depth_and_solution_pass_through_jit():
    @jax.jit
    def run(depth, y0):
        return depth.refine(2), solve(field, y0, depth, steps=STEPS, ts="all")

    depth, solution = run(stacked("linear"), {"q": start()}["q"])
    assert isinstance(depth, Depth)
    assert (depth.kind, depth.layers) == ("linear", 2 * STEPS + 1)
    assert isinstance(solution, odenet.Solution)
    assert solution.ys.shape == (STEPS + 1, WIDTH)
    np.testing.assert_allclose(solution.ts, np.arange(STEPS + 1) / STEPS, atol=1e-15)
    np.testing.assert_allclose(solution.y1, solve(field, start(), stacked("linear")).y1, rtol=1e-14)
    assert jax.tree.map(lambda leaf: leaf, solution).stats.steps == STEPS
    assert solution.result is odenet.Result.SUCCESS


def test_a_jitted_function_of_solutions_is_compiled_once():
    traced = []

    @jax.jit
    def last(solution):
        traced.append(1)
        return solution.y1

    for scale in (1.0, 2.0, 3.0):
        last(solve(field, scale * start(), stacked()))
    assert len(traced) == 1


@pytest.mark.parametrize("iterations", [waiting(1), 2])
def test_the_probe_brings_the_certificate_out_of_grad(iterations):
    gradient = odenet.DiscreteAdjoint(iterations=iterations)

    def scalar(y0, probe):
        return jnp.sum(solve(field, y0, stacked(), gradient=gradient, probe=probe).y1)

    _, residual = jax.jit(jax.grad(scalar, (0, 1)))(start(), jnp.zeros(()))
    made = odenet.value_and_grad(lambda s: s.y1.sum(), field, start(), stacked(), gradient=gradient)[2]
    assert made.stats.certificate == pytest.approx(float(residual), rel=1e-12)
    assert 1e-8 < residual < 1e-1


def test_the_probe_brings_out_the_defect_of_a_reversible_solver():
    def residual(solver):
        def scalar(probe):
            return jnp.sum(solve(field, start(), stacked(), solver=solver, gradient="reversible", probe=probe).y1)

        return jax.jit(jax.grad(scalar))(jnp.zeros((), jnp.float32))  # of any real number type

    assert 0 < residual("reversible:euler") < 1e-12
    assert residual("reversible:euler:coupling=0.05") > 1e-10


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_that_cannot_be_undone_is_an_error(compiled):
    def scalar(y0, tolerance):
        method = odenet.DiscreteAdjoint(tolerance=tolerance, limit=8)
        return jnp.sum(solve(lambda t, y: 9 * jnp.sin(5 * y), y0, steps=4, gradient=method).y1)

    found = jax.jit(jax.grad(scalar), static_argnums=1) if compiled else jax.grad(scalar)
    message = "step 3 cannot be undone to tolerance=1e-06: after 8 evaluations the residual went from"
    if compiled:
        message = "a step cannot be undone to tolerance=1e-06: after 8 evaluations the residual is about"
    with pytest.raises(RuntimeError if compiled else GradientError, match=message):
        jax.block_until_ready(found(start(), 1e-6))
    many = jnp.stack([1e-9 * start(), start()])
    with pytest.raises(RuntimeError, match="a step cannot be undone"):
        jax.block_until_ready(jax.vmap(lambda y0: jax.grad(scalar)(y0, 1e-6))(many))


@pytest.mark.parametrize("gradient", ["backprop", "checkpoint"])
def test_the_probe_is_nothing_to_methods_that_rebuild_nothing(gradient):
    def scalar(probe):
        return jnp.sum(solve(field, start(), stacked(), gradient=gradient, probe=probe).y1)

    assert jax.grad(scalar)(jnp.zeros(())) == 0


OWN_WAY_BACK = [
    waiting("euler", "checkpoint"),
    waiting("euler", "checkpoint:segments=3"),
    ("euler", "checkpoint:states=3"),
    ("euler", "discrete-adjoint:tolerance=0.001"),
    waiting("euler", "continuous-adjoint:interpolate=yes"),  # see `test_derivatives.py` for the method
    ("alf", "reversible"),
]


@pytest.mark.parametrize(("solver", "gradient"), OWN_WAY_BACK)
def test_a_second_derivative_is_refused_in_every_order_of_modes(solver, gradient):
    def first(x):
        chosen = {"steps": 4, "solver": solver, "gradient": gradient}
        return jax.grad(lambda x: jnp.sum(solve(lambda t, y, w: jnp.sin(w * y), x * start(), 0.5 + x, **chosen).y1))(x)

    message = re.escape(f"a second derivative through gradient={gradient!r}")
    for second in (jax.grad(first), jax.grad(jax.jit(first)), lambda x: jax.jvp(first, (x,), (1.0,))):
        with pytest.raises(UnsupportedError, match=message):
            jax.make_jaxpr(second)(0.3)
    jax.make_jaxpr(jax.grad(lambda x: first(0.3) * x))(1.0)  # no derivative of it


@pytest.mark.parametrize("gradient", ["checkpoint", "discrete-adjoint", "continuous-adjoint"])
def test_forward_mode_through_an_adjoint_is_an_error_and_through_backprop_is_right(gradient):
    def final(x, gradient):
        return loss(x * start(), stacked(), gradient)

    with pytest.raises(UnsupportedError, match=r"forward mode.*backprop"):
        jax.jvp(lambda x: final(x, gradient), (1.0,), (1.0,))
    # rows of tangents, which are refused before JAX refuses the rule of the solve
    for function in (jax.jacfwd(jax.jit(final, static_argnums=1)), jax.jit(jax.jacfwd(final), static_argnums=1)):
        with pytest.raises(UnsupportedError, match=r"forward mode.*backprop"):
            jax.make_jaxpr(function, static_argnums=1)(1.0, gradient)
    _, tangent = jax.jvp(lambda x: final(x, "backprop"), (1.0,), (1.0,))
    assert tangent == pytest.approx(float(jax.grad(final)(1.0, "backprop")), rel=1e-12)


class Block(eqx.Module):
    """`x -> activation(A x + b)`, with an array of integers that picks entries and a name."""

    linear: eqx.nn.Linear
    picks: jax.Array
    name: str = eqx.field(static=True, default="block")

    def __init__(self, seed):
        self.linear = eqx.nn.Linear(WIDTH, WIDTH, key=jax.random.key(seed), dtype=jnp.float64)
        self.picks = jnp.array([2, 0, 1])

    def __call__(self, x):
        return jnp.tanh(self.linear(x))[self.picks]


@eqx.filter_jit
def model_gradient(model, x):
    return eqx.filter_grad(lambda m: jnp.sum(m(x) ** 2))(model)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_stack_is_the_loop_written_by_hand(solver):
    blocks = [Block(i) for i in range(4)]
    y = start()
    if solver == "euler":
        for block in blocks:
            y = y + block(y) / 4
    else:
        for one, other in itertools.pairwise(blocks):
            first = one(y)
            y = y + (first + other(y + first / 3)) / 6
    np.testing.assert_allclose(ResidualStack(blocks, solver=solver)(start()), y, rtol=1e-13)


@pytest.mark.parametrize(
    ("solver", "gradient"),
    [
        ("euler", "discrete-adjoint"),
        ("heun", "continuous-adjoint"),
        waiting("heun", "backprop"),
        waiting("euler", "backprop"),
        waiting("heun", "discrete-adjoint"),
        waiting("euler", "continuous-adjoint"),
    ],
)
def test_tied_blocks_get_the_sum_of_the_gradients_of_their_places(solver, gradient):
    one, other = Block(0), Block(1)
    tied = ResidualStack([one, other, one, one], solver=solver, gradient=gradient)
    assert tied.blocks.linear.weight.shape == (2, WIDTH, WIDTH)
    copies = [jax.tree.map(lambda leaf: leaf + 0, block) for block in (one, other, one, one)]
    untied = ResidualStack(copies, solver=solver, gradient=gradient)
    found = model_gradient(tied, start()).blocks.linear.weight
    parts = model_gradient(untied, start()).blocks.linear.weight
    np.testing.assert_allclose(found, jnp.stack([parts[0] + parts[2] + parts[3], parts[1]]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gradient", ["discrete-adjoint:iterations=6", waiting("continuous-adjoint")])
def test_equinox_modules_are_weights_and_integers_among_them_are_no_trouble(gradient):
    modules = Depth.each([Block(i) for i in range(4)])

    def scalar(depth, gradient):
        return jnp.sum(solve(lambda t, y, block: block(y), start(), depth, gradient=gradient).y1 ** 2)

    found, exact = (eqx.filter_jit(eqx.filter_grad(scalar))(modules, kind) for kind in (gradient, "backprop"))
    assert isinstance(found.tree[0], Block)
    assert found.tree[0].picks is None
    assert distance(found, exact) < 2 * NEAR[gradient]
    _, gradients, _ = odenet.value_and_grad(
        lambda s: jnp.sum(s.y1**2), lambda t, y, block: block(y), start(), modules, gradient=gradient
    )
    np.testing.assert_allclose(flat(gradients.weights), flat(found), rtol=1e-12, atol=1e-14)


@EVERY
def test_integers_along_depth_choose_what_each_layer_does(gradient):
    """A leaf of integers is read layer by layer as the others are, and has no gradient."""
    weights = Depth({"a": jnp.array([1.0, 2.0, 3.0]), "sign": jnp.array([1, -1, 1])}, "piecewise")
    _, gradients, solution = odenet.value_and_grad(
        lambda s: s.y1, lambda t, y, w: w["a"] * w["sign"] + 0 * y, jnp.array(0.0), weights, steps=6, gradient=gradient
    )
    assert solution.y1 == pytest.approx((1 - 2 + 3) / 3)
    np.testing.assert_allclose(gradients.weights["a"], np.array([1, -1, 1]) / 3, rtol=1e-13)
    assert gradients.weights["sign"] is None


@pytest.mark.parametrize("gradient", [waiting("discrete-adjoint"), "continuous-adjoint"])
def test_a_neural_ode_is_a_module(gradient):
    class Flow(eqx.Module):
        block: Block
        scale: float = 0.5

        def __call__(self, t, y):
            return self.scale * self.block(y) * jnp.cos(t)

    model = NeuralODE(Flow(Block(0)), steps=16, gradient=gradient)
    exact = model_gradient(NeuralODE(Flow(Block(0)), steps=16), start())
    np.testing.assert_allclose(flat(model_gradient(model, start())), flat(exact), rtol=1e-3, atol=1e-6)


class Pair(NamedTuple):
    """Two trees."""

    first: Any
    second: Any


def _nest(trees):
    return st.one_of(
        st.lists(trees, max_size=3),
        st.lists(trees, max_size=3).map(tuple),
        st.builds(Pair, trees, trees),
        st.dictionaries(st.text("abAB_", max_size=3), trees, max_size=3),
        st.dictionaries(st.integers(-3, 12), trees, max_size=3),
    )


@given(st.recursive(st.none() | st.floats(allow_nan=False), _nest, max_leaves=10))
def test_trees_are_read_in_the_order_of_jax(tree):
    """So that leaves mean the same in the core, in torch and in JAX."""
    leaves, structure = jax.tree.flatten(tree)
    assert _tree.leaves(tree) == leaves
    assert [leaf for _, leaf in _tree.paths(tree)] == leaves
    doubled = _tree.map(lambda leaf: 2 * leaf, tree)
    assert doubled == jax.tree.map(lambda leaf: 2 * leaf, tree)
    assert jax.tree.structure(doubled) == structure


@given(st.permutations(["b", "a", "c"]))
def test_dicts_of_every_kind_are_read_in_the_order_of_jax(keys):
    for kind in (dict, collections.OrderedDict):
        tree = kind((key, float(i)) for i, key in enumerate(keys))
        if kind is dict:
            assert _tree.leaves(tree) == jax.tree.leaves(tree)
        assert sorted(_tree.leaves(tree)) == sorted(jax.tree.leaves(tree))


def test_modules_are_trees_for_the_core_too():
    block = Block(0)
    assert _tree.leaves(block) == jax.tree.leaves(block)
    assert _tree.same_shape(block, Block(1))
    assert next(path for path, _ in _tree.paths({"block": block})).startswith("block[")
