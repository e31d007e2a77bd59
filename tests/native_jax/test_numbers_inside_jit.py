"""What is known where a function is traced, and what is not: tolerances, results, certificates, conversions."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import odenet
from odenet import ConversionError, InputError, PIDController, UnsupportedError
from odenet_jax import NeuralODE, ResidualStack, convert, odeint


@pytest.fixture(autouse=True)
def sixty_four_bits(x64):
    """Tolerances of 1e-9 ask for it."""


WEIGHTS = np.array([0.7, -0.4])
START = np.array([1.0, 0.5])
EXACT = START * np.exp(WEIGHTS)  # and its derivative by the weights at t1 = 1, too
ALLOWED = np.array([1e-9, 1e-8])


def field(t, y, w):
    return w * y


class Field(eqx.Module):
    weight: jax.Array

    def __call__(self, t, y):
        return self.weight * y


@pytest.mark.parametrize(
    ("call", "of"),
    quick(
        itertools.product(["solve", "odeint"], [np.asarray, jnp.asarray]),
        [("solve", jnp.asarray), ("odeint", np.asarray)],
    ),
)
def test_tolerances_of_each_entry_that_a_compiled_function_closes_over(of, call):
    """Arrays of JAX were compared within the trace, which is an error of JAX."""
    atol = of(ALLOWED)
    if call == "solve":
        y1 = jax.jit(lambda w: odenet.solve(field, jnp.asarray(START), w, rtol=1e-9, atol=atol).y1)(WEIGHTS)
    else:
        y1 = jax.jit(lambda w: odeint(lambda y, t, w: w * y, START, jnp.arange(2.0), w, rtol=1e-9, atol=atol)[-1])(
            WEIGHTS
        )
    np.testing.assert_allclose(y1, EXACT, rtol=1e-7)


def test_a_negative_one_among_them_is_refused_in_the_trace():
    atol = -jnp.asarray(ALLOWED)
    with pytest.raises(InputError, match="negative"):
        jax.eval_shape(lambda w: odenet.solve(field, jnp.asarray(START), w, rtol=1e-9, atol=atol).y1, WEIGHTS)


@pytest.mark.parametrize("form", quick(["array", "tree", "control"], ["tree", "control"]))
def test_a_neural_ode_with_tolerances_that_are_arrays_is_trained(form):
    """Two models of equal tolerances are of one structure, and of others of another: JAX compares and hashes that."""

    class Tree(eqx.Module):
        weight: jax.Array

        def __call__(self, t, z):
            return {"y": self.weight * z["y"]}

    def model(atol):
        if form == "control":
            return NeuralODE(
                Field(jnp.asarray(WEIGHTS)), control=PIDController(rtol=1e-9, atol=atol), gradient="checkpoint"
            )
        tree = form == "tree"
        return NeuralODE(
            (Tree if tree else Field)(jnp.asarray(WEIGHTS)),
            rtol=1e-9,
            atol={"y": atol} if tree else jnp.asarray(atol),
            gradient="checkpoint",
        )

    start = {"y": jnp.asarray(START)} if form == "tree" else jnp.asarray(START)
    traces = []

    @eqx.filter_jit
    def train(model):
        traces.append(model)
        loss = lambda model: sum(leaf.sum() for leaf in jax.tree.leaves(model(start)))  # noqa: E731
        gradient = eqx.filter_grad(loss)(model)
        return eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, gradient))

    for _ in range(2):
        moved = train(model(ALLOWED.copy()))
        np.testing.assert_allclose(moved.field.weight, WEIGHTS - 0.1 * EXACT, rtol=1e-7)
    assert len(traces) == 1
    assert jax.tree.structure(model(ALLOWED)) != jax.tree.structure(model(10 * ALLOWED))
    assert "rtol=1e-09" in repr(moved)


def test_numbers_of_numpy_are_numbers():
    """Equinox warned of arrays that are static by mistake (warnings are errors here)."""
    model = NeuralODE(Field(jnp.asarray(WEIGHTS)), steps=np.int64(32), t0=np.array(0.0), t1=np.float64(1.0))
    np.testing.assert_allclose(jax.eval_shape(model, START).shape, (2,))
    np.testing.assert_allclose(model(jnp.asarray(START)), EXACT, rtol=1e-6)
    assert NeuralODE(Field(jnp.asarray(WEIGHTS)), steps=jnp.array(32)).steps == 32
    assert ResidualStack([eqx.nn.Identity()], t1=np.array(2.0)).t1 == 2


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_results_are_asked_for_outside(transform):
    """They were errors of JAX."""
    solution = odenet.solve(field, jnp.asarray(START), WEIGHTS, rtol=1e-6)
    with pytest.raises(UnsupportedError, match=r"Solution\.outcome"):
        transform(lambda x: odenet.solve(field, x, WEIGHTS, rtol=1e-6).result.name)(jnp.ones((1, 2)))
    assert solution.result is odenet.Result.SUCCESS


def test_gradients_and_certificates_leave_a_compiled_function():
    """Gradients were no tree to JAX, so that no compiled function could return them."""

    @jax.jit
    def both(w):
        _, gradients, solution = odenet.value_and_grad(
            lambda solution: solution.y1.sum(),
            field,
            jnp.asarray(START),
            w,
            steps=16,
            solver="rk4",
            gradient="discrete-adjoint",
        )
        with pytest.raises(UnsupportedError, match=r"Stats\.residual"):
            _ = solution.stats.certificate
        return gradients, solution

    gradients, solution = both(WEIGHTS)
    np.testing.assert_allclose(gradients.weights, EXACT, rtol=1e-5)
    np.testing.assert_allclose(gradients.y0, jnp.exp(WEIGHTS), rtol=1e-5)
    assert 0 < solution.stats.certificate < 1e-4


class Model(eqx.Module):
    blocks: list

    def __call__(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize("name", ["convert", "plan", "check"])
@pytest.mark.parametrize("traced", ["model", "example", "nothing", "gradient"])
def test_models_are_converted_and_examined_outside_of_transformations(name, traced):
    """They were errors of JAX, about numbers that it has not yet."""
    model = Model([eqx.nn.Linear(2, 2, key=jax.random.key(n)) for n in range(2)])
    stack = ResidualStack(model.blocks)
    calls = {
        "convert": lambda model, stack, x: convert(model, example=x),
        "plan": lambda model, stack, x: odenet.plan(stack, (x, x)),
        "check": lambda model, stack, x: odenet.check_gradients(stack, (x, x)),
    }
    call = calls[name]
    transformed = {
        "model": lambda: eqx.filter_jit(lambda both: call(*both, START))((model, stack)),
        "gradient": lambda: eqx.filter_grad(lambda both: call(*both, START))((model, stack)),
        "example": lambda: jax.jit(lambda x: call(model, stack, x))(START),
        "nothing": lambda: jax.jit(lambda: call(model, stack, START))(),
    }
    with pytest.raises(UnsupportedError, match="before the transformed function"):
        transformed[traced]()


def test_an_example_of_shapes_alone_is_refused():
    model = Model([eqx.nn.Linear(2, 2, key=jax.random.key(n)) for n in range(2)])
    with pytest.raises(InputError, match="ShapeDtypeStruct") as refusal:
        convert(model, example=jax.ShapeDtypeStruct((2,), float))
    assert not isinstance(refusal.value, ConversionError)


def test_the_last_state_of_a_solution_of_shapes_is_refused_in_words():
    shapes = jax.eval_shape(lambda y0: odenet.solve(field, y0, WEIGHTS, steps=2), jnp.asarray(START))
    assert shapes.ys.shape == (1, 2)
    with pytest.raises(UnsupportedError, match="eval_shape"):
        _ = shapes.y1
    assert jax.eval_shape(lambda y0: odenet.solve(field, y0, WEIGHTS, steps=2).y1, jnp.asarray(START)).shape == (2,)
