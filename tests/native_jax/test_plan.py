"""`odenet.plan` and `odenet.audit` of JAX modules, outside of jit; `gradient="auto"` inside of it needs a plan."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import odenet
import odenet_jax
from odenet import Auto, Checkpoint, DiscreteAdjoint

pytestmark = pytest.mark.usefixtures("x64")
WIDTH, ADJOINT = 6, DiscreteAdjoint()


class Block(eqx.Module):
    """A tanh block of a batch."""

    one: jax.Array
    other: jax.Array

    def __init__(self, key):
        one, other = jax.random.split(key)
        self.one = jax.random.normal(one, (WIDTH, WIDTH))
        self.other = 0.5 * jax.random.normal(other, (WIDTH, WIDTH))

    def __call__(self, x):
        return jnp.tanh(x @ self.one) @ self.other


class Network(eqx.Module):
    """A stack and a head."""

    stack: odenet_jax.ResidualStack
    head: jax.Array

    def __call__(self, x):
        return self.stack(x) @ self.head


def network(gradient, layers=8):
    keys = jax.random.split(jax.random.key(0), layers + 1)
    stack = odenet_jax.ResidualStack([Block(key) for key in keys[:-1]], gradient=gradient)
    return Network(stack, jax.random.normal(keys[-1], (WIDTH, 3)))


def batch():
    one, other = jax.random.split(jax.random.key(1))
    return jax.random.normal(one, (16, WIDTH)), jax.random.randint(other, (16,), 0, 3)


def loss(outputs, target):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), target[:, None], axis=1).mean()


def test_auto_needs_a_plan_and_is_audited_by_the_training_loop():
    model, data = network(Auto(tolerance=0.2)), batch()

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model, x, y):
        return loss(model(x), y)

    with pytest.raises(odenet.UnsupportedError, match=r"odenet\.plan\(model, batch\) outside of jit"):
        gradient(model, *data)
    made = odenet.plan(model, data, loss=loss, gradients=[ADJOINT, "checkpoint"], repeats=1)
    rows = {row.label: row for row in made.profiles}
    assert made.tolerance == 0.1
    truth, found = (gradient(network(name), *data).stack for name in ("backprop", "discrete-adjoint"))
    exact, other = (jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)) for tree in (truth, found))
    defect = sum(((a - b) ** 2).sum() for a, b in zip(exact, other, strict=True))
    squares = [defect, sum((leaf**2).sum() for leaf in exact)]
    assert rows["discrete-adjoint"].gradient_error == pytest.approx(float(squares[0] / squares[1]) ** 0.5, rel=1e-6)
    assert rows["checkpoint"].gradient_error < 1e-12
    assert all(row.seconds > 0 and row.peak_bytes > 0 for row in made.profiles)
    assert model.stack.gradient.method is None
    assert made.apply(model).stack.gradient == Auto(tolerance=0.2, method=made.gradient)

    model = odenet.backend("jax").with_gradient(model, ADJOINT)
    gradient(model, *data)
    same, audit = odenet.audit(model, data, loss=loss)
    assert same is model
    assert audit.gradient_error == pytest.approx(rows["discrete-adjoint"].gradient_error)
    rough = eqx.tree_at(lambda m: m.stack.blocks.other, model, replace_fn=lambda w: 12 * w)
    with pytest.warns(odenet.GradientWarning, match="discrete-adjoint is"):
        moved, audit = odenet.audit(rough, data, loss=loss, gradients=[ADJOINT, "checkpoint"])
    assert audit.gradient_error > 0.2
    assert audit.moved_to == moved.stack.gradient.method == Checkpoint()
    assert rough.stack.gradient.method == ADJOINT
    assert odenet.audit(moved, data, loss=loss).audit is None


def test_memory_and_zero_gradients():
    model, data = network("checkpoint", layers=3), batch()
    with pytest.raises(odenet.InputError, match=r"at least \d+ bytes .* which checkpoint needs"):
        odenet.plan(model, data, memory=10, loss=loss, gradients=["checkpoint"], repeats=1)
    model = eqx.tree_at(lambda m: m.head, model, replace_fn=jnp.zeros_like)
    made = odenet.plan(model, data, loss=loss, gradients=["discrete-adjoint", "checkpoint"], repeats=1)
    assert made.zero
    assert made.gradient == Checkpoint()
