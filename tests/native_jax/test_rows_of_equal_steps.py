"""Equal steps under `jax.vmap`: a row that overflows leaves the gradients of the others alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet

RATES = np.array([0.3, 0.5, 50.0])  # of three rows: the last overflows
EULER = {"steps": 8, "solver": "euler"}

pytestmark = pytest.mark.usefixtures("x64")


def overflows(t, y, w, rate):
    return rate * w * jnp.exp(y)


def starts_at_nan(t, y, w, rate):
    return -w * y * jnp.sqrt(3 - rate)


def end(w, rate, field, gradient, **choices):
    def slope(t, y, w):
        return field(t, y, w["w"], w["rate"])

    return odenet.solve(slope, jnp.array([0.5]), {"w": w, "rate": rate}, gradient=gradient, **choices).y1


def masked(w, rate, **choices):
    y = end(w, rate, **choices)
    return (jnp.where(jnp.isfinite(y), y, 0) ** 2).sum()


def slopes(value, transform=jax.jit):
    """By the weight and by the rates, of all rows and of those that come to their end."""

    def total(w, rates):
        return jax.vmap(functools.partial(value, w))(rates).sum()

    program = transform(jax.grad(total, (0, 1)))
    found = program(1.0, RATES), program(1.0, RATES[:2])
    jax.effects_barrier()
    return found


@pytest.mark.parametrize(
    ("field", "gradient", "solver"),
    [
        pytest.param(overflows, "checkpoint:states=3", "euler", marks=pytest.mark.slow),
        (starts_at_nan, odenet.Checkpoint(bits=16, tolerance=0.1), "euler"),
        (overflows, "discrete-adjoint:tolerance=1e-3", "euler"),
        (overflows, "reversible", "reversible-heun"),
        *(
            pytest.param(field, gradient, solver, marks=pytest.mark.slow)
            for field in (overflows, starts_at_nan)
            for gradient, solver in (
                ("checkpoint", "heun"),
                ("discrete-adjoint:anchors=3", "euler"),
                ("discrete-adjoint:predictor=extrapolate", "heun"),
                ("continuous-adjoint", "rk4"),
                ("continuous-adjoint:interpolate=yes", "heun"),
                ("reversible", "alf"),
            )
        ),
    ],
)
def test_shared_weights_have_the_gradients_of_the_rows_that_the_loss_reads(field, gradient, solver):
    value = functools.partial(masked, field=field, gradient=gradient, steps=8, solver=solver)
    (of_w, of_rates), (w, rates) = slopes(value)
    np.testing.assert_allclose(of_w, w, rtol=1e-12)
    np.testing.assert_allclose(of_rates, [*rates, 0], rtol=1e-12)


@pytest.mark.slow
def test_without_jit_too():
    value = functools.partial(masked, field=overflows, gradient="discrete-adjoint:tolerance=1e-3", **EULER)
    (of_w, of_rates), (w, rates) = slopes(value, lambda function: function)
    np.testing.assert_allclose(of_w, w, rtol=1e-12)
    np.testing.assert_allclose(of_rates, [*rates, 0], rtol=1e-12)


def test_a_row_that_the_loss_reads_has_a_gradient_that_is_not_finite_and_the_others_are_right():
    """As a loop of JAX has; the value says it, too."""

    def value(w, rate):
        return end(w, rate, overflows, "checkpoint", **EULER).sum()

    (_, of_rates), (_, rates) = slopes(value)
    assert not np.isfinite(of_rates[2])
    np.testing.assert_allclose(of_rates[:2], rates, rtol=1e-12)


@pytest.mark.parametrize(
    ("gradient", "choices"),
    [
        ("discrete-adjoint:tolerance=1e-2", EULER),
        pytest.param(
            "discrete-adjoint:tolerance=1e-2", {"rtol": 1e-3, "atol": 1e-3, "solver": "bosh3"}, marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
def test_a_row_that_misses_the_tolerance_is_an_error_only_where_the_loss_reads_it(gradient, choices):
    def field(t, y, w, rate):
        return -w * rate * (y + jnp.where(rate > 2, jnp.sin(40 * y), 0))

    def value(w, rate):
        return end(w, rate, field, gradient, **choices).sum()

    (of_w, of_rates), (w, rates) = slopes(lambda w, rate: jnp.where(rate > 2, 0, value(w, rate)))
    np.testing.assert_allclose(of_w, w, rtol=1e-9)
    np.testing.assert_allclose(of_rates, [*rates, 0], rtol=1e-9)
    with pytest.raises(Exception, match="cannot be undone"):
        jax.block_until_ready(slopes(value))
