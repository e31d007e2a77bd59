"""The programs that JAX makes of a solve: their size, their memory and their number types."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from quick import pairwise, quick

import odenet
from odenet import Depth
from odenet_jax import solve
from odenet_jax.field.handed_on import changed, handed_on

METHODS = [
    "backprop",
    "checkpoint",
    "checkpoint:segments=3",
    "checkpoint:states=3",
    "discrete-adjoint",
    "discrete-adjoint:correct=no:iterations=3:anchors=3",
    "discrete-adjoint:predictor=extrapolate:tolerance=0.5",
    "continuous-adjoint",
    "continuous-adjoint:interpolate=yes",
]
REVERSIBLE = ["reversible:heun", "reversible-heun", "alf"]
EVERY = pytest.mark.parametrize("gradient", METHODS)
SHAPES = ["shared", "piecewise", "linear"]
LENGTHS = list(itertools.product(METHODS, SHAPES, [None, "all"]))
# every method, with the kinds of weights and of outputs in turn
IN_TURN = [(name, SHAPES[n % 3], (None, "all")[n % 2]) for n, name in enumerate(METHODS)]
WIDTH = 32


def field(t, y, w):
    return jnp.tanh(y @ w["a"] + t)


def weights(kind, layers, width=WIDTH):
    """Fifteen layers (or intervals) whatever the steps, unless told."""
    count = layers + (kind == "linear")
    shape = (width, width) if kind == "shared" else (count, width, width)
    return Depth({"a": 0.1 * jnp.ones(shape, jnp.float32)}, kind)


def derivative(steps, gradient, solver="euler", ts=None):
    def loss(y0, w):
        return jnp.sum(solve(field, y0, w, steps=steps, solver=solver, gradient=gradient, ts=ts).ys ** 2)

    return jax.grad(loss, argnums=(0, 1))


def inside(equation):
    """The programs that an equation runs: the body of a loop, say."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        program = getattr(value, "jaxpr", value)
        if hasattr(program, "eqns"):
            yield program


def programs(program):
    """Every equation of a program and of the programs inside it."""
    for equation in program.eqns:
        yield equation
        for sub in inside(equation):
            yield from programs(sub)


@pytest.mark.parametrize(("gradient", "kind", "ts"), quick(LENGTHS, IN_TURN))
def test_the_program_of_a_gradient_is_as_long_for_512_steps_as_for_8(gradient, kind, ts):
    """So is its compilation. Layers are as many as steps."""
    counts = []
    for steps in (8, 512):
        made = weights(kind, steps, 2)
        program = jax.make_jaxpr(derivative(steps, gradient, "heun", ts))(jnp.ones((1, 2)), made)
        counts.append(len(list(programs(program.jaxpr))))
    assert counts[0] == counts[1]
    assert counts[0] > 20  # programs inside programs were seen


@pytest.mark.parametrize(
    ("solver", "gradient", "kind"), pairwise(itertools.product(REVERSIBLE, ["backprop", "reversible"], SHAPES))
)
def test_so_is_that_of_reversible_solvers(solver, gradient, kind):
    counts = []
    for steps in (8, 512):
        program = jax.make_jaxpr(derivative(steps, gradient, solver, "all"))(jnp.ones((1, 2)), weights(kind, steps, 2))
        counts.append(len(list(programs(program.jaxpr))))
    assert counts[0] == counts[1]


@functools.cache
def temporaries(steps, gradient, kind, layers, solver="euler"):
    program = jax.jit(derivative(steps, gradient, solver)).lower(jnp.ones((64, WIDTH)), weights(kind, layers))
    return program.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("gradient", "kind"),
    quick(
        itertools.product(["discrete-adjoint", "continuous-adjoint"], SHAPES),
        [("discrete-adjoint", "linear"), ("continuous-adjoint", "piecewise")],
    ),
)
def test_memory_of_the_adjoints_does_not_grow_with_depth(gradient, kind):
    few, many = (temporaries(steps, gradient, kind, 16) for steps in (64, 1024))
    assert many - few < 64 * WIDTH * 4  # a state; XLA may keep an index a step


@pytest.mark.parametrize(
    "gradient",
    [
        "checkpoint:states=4",
        pytest.param("discrete-adjoint:iterations=3", marks=pytest.mark.slow),
        "discrete-adjoint:predictor=extrapolate:order=4",
        "discrete-adjoint:tolerance=1e-3",
    ],
)
def test_nor_does_that_of_their_variants_and_of_few_checkpoints(gradient):
    few, many = (temporaries(steps, gradient, "piecewise", 16) for steps in (16, 1024))
    assert many == pytest.approx(few, rel=0.05)


@pytest.mark.parametrize(("solver", "kind"), [("reversible:euler", "piecewise"), ("reversible-heun", "shared")])
def test_nor_does_that_of_reversible_solvers(solver, kind):
    few, many = (temporaries(steps, "reversible", kind, 16, solver) for steps in (16, 1024))
    assert many == pytest.approx(few, rel=0.05)


@pytest.mark.parametrize(
    ("gradient", "steps", "kept"),
    [
        ("checkpoint", 256, 256),
        ("checkpoint:states=16", 256, 17),
        ("discrete-adjoint:anchors=16", 256, 16),
        ("continuous-adjoint:interpolate=yes", 256, 257),
    ],
)
def test_kept_states_are_as_many_as_the_cost_model_says_beside_a_few_that_are_worked_on(gradient, steps, kept):
    assert odenet.gradient(gradient).cost(odenet.solver("euler"), steps).states == kept
    state = 64 * WIDTH * 4
    assert (
        (kept - 1) * state < temporaries(steps, gradient, "shared", 1) < (kept + 10) * state
    )  # some that are compared


def test_a_budget_of_memory_is_not_exceeded():
    """It is for states and stages; weights and their gradients come on top."""
    for states in (20, 40, 80):
        budget = states * 64 * WIDTH * 4
        used = temporaries(1024, odenet.Checkpoint(memory=budget), "shared", 1)
        assert 0.5 * budget < used < budget + WIDTH * WIDTH * 4 * 4


@pytest.mark.parametrize("kind", ["piecewise", "linear"])
def test_memory_of_the_adjoint_with_as_many_layers_as_steps_is_not_a_copy_of_the_layers(kind):
    """Weights and their gradients are arguments and results; nothing else is as large as they are."""
    few, many = (temporaries(steps, "discrete-adjoint", kind, steps) for steps in (16, 1024))
    assert many - few < 0.05 * 1024 * WIDTH * WIDTH * 4


def test_memory_of_backprop_does_grow_with_depth():
    """So the measurement sees what it should see."""
    few, many = (temporaries(steps, "backprop", "shared", 16) for steps in (16, 1024))
    assert many > 20 * few


@EVERY
@pytest.mark.parametrize(("solver", "kind"), [("euler", "piecewise"), ("rk4", "linear"), ("heun", "shared")])
def test_no_number_is_promoted_in_float32(gradient, solver, kind):
    """Strict promotion makes every mixture of number types an error."""
    with jax.numpy_dtype_promotion("strict"):
        y0 = jnp.ones((2, 3), jnp.float32)

        def loss(y0, w):
            found = solve(_strict, y0, w, steps=4, solver=solver, gradient=gradient, ts="all")
            return jnp.sum(found.ys), found

        (y, w), found = jax.eval_shape(jax.grad(loss, argnums=(0, 1), has_aux=True), y0, weights(kind, 2, 3))
        assert found.ys.dtype == found.ts.dtype == y.dtype == w.tree["a"].dtype == jnp.float32


def _strict(t, y, w):
    return jnp.tanh(y @ w["a"]) * t


@EVERY
def test_float32_stays_float32_while_64_bit_numbers_are_on(x64, gradient):
    y, w = jax.eval_shape(derivative(4, gradient), jnp.ones((2, 3), jnp.float32), weights("linear", 4, 3))
    assert y.dtype == w.tree["a"].dtype == jnp.float32
    y0 = {"single": jnp.ones(2, jnp.float32), "double": jnp.ones(2, jnp.float64)}
    found = solve(lambda t, y: jax.tree.map(lambda leaf: -leaf, y), y0, steps=2, solver="heun")
    assert jax.tree.map(lambda leaf: leaf.dtype.name, found.y1) == {"single": "float32", "double": "float64"}
    assert found.ts.dtype == jnp.float64


def test_half_precision_is_carried_in_single():
    """Steps of 1/1024 are lost in bfloat16; the field and the solution are bfloat16 all the same."""
    seen = set()

    def ones(t, y):
        seen.add(y.dtype.name)
        return jnp.ones_like(y)

    found = solve(ones, jnp.ones(1, jnp.bfloat16), steps=1024, gradient="discrete-adjoint")
    assert (found.y1.dtype, found.ts.dtype) == (jnp.bfloat16, jnp.float32)
    assert seen == {"bfloat16"}
    np.testing.assert_allclose(float(found.y1[0]), 2, rtol=1e-2)


@pytest.mark.parametrize("kind", ["piecewise", "linear"])
@pytest.mark.parametrize("gradient", ["backprop", "discrete-adjoint", "continuous-adjoint"])
def test_no_step_touches_the_weights_of_all_layers(gradient, kind):
    """Inside the loops nothing as large as all layers is made but by writing into it in place: no zeros, no sums.

    A gradient that is indexed inside the loop adds an array of all layers at every step, O(steps^2) in all.
    """
    layers = 12
    program = jax.make_jaxpr(derivative(layers, gradient, "heun"))(jnp.ones((1, 3)), weights(kind, layers, 3))
    made = {
        eqn.primitive.name
        for loop in programs(program.jaxpr)
        if loop.primitive.name == "scan"
        for sub in inside(loop)
        for eqn in programs(sub)
        for out in eqn.outvars
        if out.aval.shape[:1] in ((layers,), (layers + 1,))
    }
    assert made <= {"scatter-add", "scatter_add", "dynamic_update_slice", "pjit", "jit"}
    assert gradient == "backprop" or made


def test_what_a_program_hands_on_is_told_from_what_it_computes():
    """By calls, loops and branches, of which flax's transformations are made; a written argument is another one."""

    def function(values):
        a, b, c, d, e = values
        a, b = jax.jit(lambda a, b: (b, a * 2))(a, b)  # (1, None)
        c = jax.checkpoint(lambda c: (jnp.sin(c), c))(c)[1]
        (c, _), d = lax.scan(lambda carry, row: ((carry[0], carry[1] + row), row), (c, 0.0), d)
        e, _ = lax.while_loop(lambda loop: loop[1] < 3, lambda loop: (loop[0], loop[1] + a), (e, 0.0))
        e = lax.cond(a > 0, lambda e: (e, e), lambda e: (e + 1, e), e)
        return a, b, c, d, *e, jnp.float32(1)

    one = jnp.float32(1)
    program = jax.make_jaxpr(function)([one, one, one, jnp.ones(3), one])
    assert handed_on(program) == [1, None, 2, 3, None, 4, None]
    assert changed(lambda values: [values[0], values[0]], [one, one]) == (1,)
    carries = jax.make_jaxpr(lambda a, b: lax.fori_loop(0, 2, lambda i, c: (c[1], c[0]), (a, b)))(one, one)
    assert handed_on(carries) == [None, None]
