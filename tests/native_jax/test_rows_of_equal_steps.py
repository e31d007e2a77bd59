"""Equal steps under `jax.vmap`: a row that overflows, or cannot be taken back, leaves the gradients of others alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet

RATES = jnp.array([0.3, 0.5, 50.0])  # of three rows: the last overflows

pytestmark = pytest.mark.usefixtures("x64")


def overflows(t, y, w, rate):
    return rate * w * jnp.exp(y)


def starts_at_nan(t, y, w, rate):
    return -w * y * jnp.sqrt(3 - rate)


def end(w, rate, field, gradient, y0=(0.5,), **choices):
    def slope(t, y, w):
        return field(t, y, w["w"], w["rate"])

    return odenet.solve(slope, jnp.array(y0), {"w": w, "rate": rate}, gradient=gradient, **choices).y1


def slopes(value):
    """By the weight and the rates, of all rows and of those that come to their end."""

    def total(w, rates):
        return jax.vmap(functools.partial(value, w))(rates).sum()

    program = jax.jit(jax.grad(total, (0, 1)))
    found = program(1.0, RATES), program(1.0, RATES[:2])
    jax.effects_barrier()
    return found


def masked(w, rate, **choices):
    y = end(w, rate, **choices)
    return (jnp.where(jnp.isfinite(y), y, 0) ** 2).sum()


@pytest.mark.parametrize("field", [overflows, pytest.param(starts_at_nan, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "gradient",
    [
        "checkpoint:states=3",
        pytest.param("checkpoint", marks=pytest.mark.slow),
        odenet.Checkpoint(bits=16, tolerance=0.1),
        pytest.param("discrete-adjoint:anchors=3", marks=pytest.mark.slow),
        "discrete-adjoint:tolerance=1e-3",
        "continuous-adjoint",
        pytest.param("reversible", marks=pytest.mark.slow),
    ],
)
def test_weights_of_all_rows_have_the_gradients_of_those_that_the_loss_reads(field, gradient):
    solver = "reversible-heun" if gradient == "reversible" else "euler"
    (of_w, of_rates), (w, rates) = slopes(
        functools.partial(masked, field=field, gradient=gradient, steps=8, solver=solver)
    )
    np.testing.assert_allclose(of_w, w, rtol=1e-12)
    np.testing.assert_allclose(of_rates, [*rates, 0], rtol=1e-12)


def test_the_gradient_of_a_row_that_the_loss_reads_is_not_finite_and_those_of_others_are_right():
    """As that of a loop of JAX is."""

    def value(w, rate):
        return end(w, rate, overflows, "checkpoint", steps=8, solver="euler").sum()

    (_, of_rates), (_, rates) = slopes(value)
    assert not np.isfinite(of_rates[2])
    np.testing.assert_allclose(of_rates[:2], rates, rtol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "choices"),
    [
        ("discrete-adjoint:tolerance=1e-2", {"steps": 8, "solver": "euler"}),
        pytest.param(
            "discrete-adjoint:tolerance=1e-2", {"rtol": 1e-3, "atol": 1e-3, "solver": "bosh3"}, marks=pytest.mark.slow
        ),
        (odenet.Checkpoint(bits=8, tolerance=1e-3), {"steps": 8, "solver": "euler"}),
    ],
)
@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
def test_a_row_that_misses_the_tolerance_is_nan_and_the_others_are_right(gradient, choices):
    rounded = isinstance(gradient, odenet.Checkpoint)

    def field(t, y, w, rate):
        if rounded:
            return -w * y * jnp.where(rate > 2, jnp.array([7.9, 1.0]), rate)
        return -w * rate * (y + jnp.where(rate > 2, jnp.sin(40 * y), 0))

    def value(w, rate):
        return end(w, rate, field, gradient, (1.0, 0.5) if rounded else (0.5,), **choices).sum()

    (of_w, of_rates), (_, rates) = slopes(value)
    assert np.isnan(of_rates[2])
    assert np.isnan(of_w)
    np.testing.assert_allclose(of_rates[:2], rates, rtol=1e-9)
    # a loss that leaves this row out needs no gradient of it
    (of_w, of_rates), (w, rates) = slopes(lambda w, rate: jnp.where(rate > 2, 0, value(w, rate)))
    np.testing.assert_allclose(of_w, w, rtol=1e-9)
    np.testing.assert_allclose(of_rates, [*rates, 0], rtol=1e-9)
    with pytest.raises(odenet.GradientError):
        jax.grad(value, 1)(1.0, 50.0)
