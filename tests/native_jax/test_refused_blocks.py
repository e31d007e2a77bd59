"""Arrays and states of a network that would be lost in silence: leaves with a gradient, or refused by name."""

from __future__ import annotations

import inspect
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import odenet
from odenet_jax import NeuralODE, ResidualStack


class Normed(eqx.Module):
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        # older versions of equinox have one mode, and no name for it
        named = {"mode": "batch"} if "mode" in inspect.signature(eqx.nn.BatchNorm).parameters else {}
        self.norm = eqx.nn.BatchNorm(2, axis_name="rows", **named)

    def __call__(self, x, state):
        return self.norm(x, state)


class Decay(eqx.Module):
    rate: jax.Array

    def __call__(self, t, y):
        return -self.rate * y


def test_blocks_with_a_state_are_told_of_stateful():
    keys = jax.random.split(jax.random.key(0), 2)
    for blocks in ([Normed(key) for key in keys], [Normed(key).norm for key in keys]):
        with pytest.raises(odenet.InputError, match=r"ResidualStack\.stateful"):
            ResidualStack(blocks)
    stack, _ = ResidualStack.stateful(Normed, keys)
    for made in (stack, ResidualStack([Normed(keys[0])])):
        with pytest.raises(odenet.StateError, match=r"ResidualStack\.stateful"):
            made(jnp.ones((3, 2)), axis_name="rows")


class Incomparable:
    """As an array of NumPy, whose comparison has no truth value."""

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")

    def __hash__(self):
        return 0


class Scaled(eqx.Module):
    scale: object
    factor: object = None
    name: object = eqx.field(static=True, default="")

    def __call__(self, x):
        return self.scale * x


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (Scaled(jnp.ones(2)), Scaled(jnp.ones(3)), r"\.scale is float32\[2\] and float32\[3\]"),
        (Scaled(jnp.ones(2)), Scaled(jnp.ones(2, "bfloat16")), r"\.scale is float32\[2\] and bfloat16\[2\]"),
        (Scaled(jnp.ones(2), 0.5), Scaled(jnp.ones(2), 0.6), r"\.factor is 0\.5 and 0\.6"),
        (Scaled(jnp.ones(2), name="a"), Scaled(jnp.ones(2), name="b"), "a static field"),
        (Scaled(jnp.ones(2), name=Incomparable()), Scaled(jnp.ones(2), name=Incomparable()), "cannot be compared"),
        (Scaled(jnp.ones(2)), Decay(jnp.ones(2)), "a Scaled and a Decay"),
    ],
)
def test_blocks_of_another_structure_say_what_differs(one, other, words):
    """Arrays of other shapes, and static fields that are arrays, were errors of JAX; other number types were widened
    in silence."""
    with pytest.raises(odenet.InputError, match=rf"2 blocks of different structures \(.*{words}"):
        ResidualStack([one, other])


def test_a_time_that_is_an_array_has_a_gradient_or_is_refused():
    model = NeuralODE(Decay(jnp.ones(())), t1=jnp.array(1.0), rtol=1e-6)
    found = eqx.filter_grad(lambda model: model(jnp.ones(2)).sum())(model)
    np.testing.assert_allclose(found.times[1], -2 / math.e, rtol=1e-5)
    assert model.t1 == 1
    equal = NeuralODE(Decay(jnp.ones(())), t1=jnp.array(1.0), steps=4)
    with pytest.raises(odenet.GridError, match="no number that is known"):
        eqx.filter_grad(lambda model: model(jnp.ones(2)).sum())(equal)
    with pytest.raises(odenet.InputError, match="t1 of a ResidualStack"):
        ResidualStack([eqx.nn.Identity()], t1=jnp.array(1.0))  # pyright: ignore[reportArgumentType]


@jax.tree_util.register_pytree_node_class
class Counting:
    """A module as those of flax.nnx are: an object whose arrays a call may replace."""

    def __init__(self, rate, calls, counts):
        self.rate, self.calls, self.counts = rate, calls, counts

    def __call__(self, *arguments):
        if self.counts == "attribute":
            self.counts = "another"
        elif self.counts:
            self.calls = self.calls + 1
        return -self.rate * arguments[-1]

    def tree_flatten(self):
        return (self.rate, self.calls), self.counts

    @classmethod
    def tree_unflatten(cls, counts, leaves):
        rate, calls = leaves
        return cls(rate, calls, counts)


@pytest.mark.parametrize("choices", [{"steps": 2}, {"rtol": 1e-3}], ids=str)
def test_a_module_that_writes_on_itself_is_refused(choices):
    def end(counts):
        module = Counting(jnp.ones(()), jnp.zeros(()), counts)
        nested = odenet.solve(lambda t, y, w: w["net"](y), jnp.ones(2), {"net": module}, **choices).y1
        return nested, NeuralODE(module, **choices)(jnp.ones(2))

    for found in end(False):
        np.testing.assert_allclose(found, math.exp(-1), rtol=0.5)
    for counts in (True, "attribute"):
        with pytest.raises(odenet.StateError, match="a Counting wrote on itself"):
            end(counts)
    with pytest.raises(odenet.StateError, match=r"ResidualStack\.stateful"):
        ResidualStack([Counting(jnp.ones(()), jnp.zeros(()), True) for _ in range(2)])(jnp.ones(2))


def test_a_field_may_write_on_the_dictionary_that_it_is_called_with():
    def field(t, y, w):
        w["scaled"] = w["rate"] * y
        return -w.pop("scaled")

    assert np.isfinite(odenet.solve(field, jnp.ones(2), {"rate": jnp.ones(())}, steps=2).y1).all()


@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_a_traced_tolerance_that_is_none_gives_nan(name):
    @jax.jit
    def end(value):
        tolerances = {"rtol": 1e-4, "atol": 1e-6, name: value}
        return odenet.solve(lambda t, y: -y, jnp.ones(2), **tolerances).y1

    assert np.isfinite(end(1e-5)).all()
    assert np.isnan(end(-1e-5)).all()
    assert np.isnan(end(jnp.nan)).all()


@pytest.mark.parametrize("backend", ["jax", "scipy"])
@pytest.mark.parametrize("name", ["t0", "t1", "ts"])
def test_a_time_of_torch_that_needs_a_gradient_is_refused_elsewhere(backend, name):
    torch = pytest.importorskip("torch")
    time = torch.tensor(0.0 if name == "t0" else 1.0, requires_grad=True)
    choices = {name: [0.5, time] if name == "ts" else time, "rtol": 1e-4, "backend": backend}
    solver = "lsoda" if backend == "scipy" else "dopri5"
    for call in (odenet.solve, lambda *a, **k: odenet.value_and_grad(lambda s: s.y1.sum(), *a, **k)):
        with pytest.raises(odenet.InputError, match=rf"{name} is an array of torch that needs a gradient"):
            call(lambda t, y: -y, np.ones(2, np.float32), solver=solver, **choices)
