"""The doctor on what is untrained: gradients that are zero, and errors that come with the first steps."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import odenet
import odenet_jax
import odenet_torch

RNG = np.random.default_rng(0)
X, LABELS = RNG.standard_normal((6, 8)), np.arange(6) % 3
W = RNG.standard_normal((4, 8, 8))


class Block(nn.Module):
    """A layer scaled by a number, as in LayerScale and ReZero."""

    def __init__(self, w, scale):
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(scale).double())

    def forward(self, x):
        return self.scale * 30 * torch.tanh(x @ self.w)


class JaxBlock(eqx.Module):
    w: jax.Array
    scale: jax.Array

    def __call__(self, x):
        return self.scale * 30 * jnp.tanh(x @ self.w)


class JaxModel(eqx.Module):
    stack: odenet_jax.ResidualStack
    head: jax.Array

    def __call__(self, x):
        return self.stack(x) @ self.head


def model(backend, scale, head):
    weights = head * RNG.standard_normal((8, 3))
    if backend == "jax":
        blocks = [JaxBlock(jnp.asarray(w), jnp.asarray(scale)) for w in W]
        return JaxModel(odenet_jax.ResidualStack(blocks, t1=4.0), jnp.asarray(weights))
    linear = nn.Linear(8, 3, bias=False).double()
    linear.weight.data = torch.tensor(weights.T.copy())
    return nn.Sequential(odenet_torch.ResidualStack([Block(w, scale) for w in W], t1=4.0), linear)


METHODS = ("discrete-adjoint", "checkpoint", "discrete-adjoint:correct=no")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_scales_that_start_at_zero_are_examined_after_a_few_steps(backend):
    made = model(backend, scale=0.0, head=1.0)
    before = copy.deepcopy(made)
    diagnosis = odenet.check_gradients(made, (X, LABELS), gradients=METHODS)
    adjoint = diagnosis.of("discrete-adjoint")
    assert adjoint.gradient_error < 1e-6  # nothing moves, and so nothing is lost
    assert adjoint.later > 0.1
    assert diagnosis.recommended.label == "checkpoint"
    assert "only before training" in diagnosis.verdict
    if backend == "torch":
        pairs = zip(made.parameters(), before.parameters(), strict=True)
        assert all(torch.equal(one, other) and one.grad is None for one, other in pairs)
    else:
        assert eqx.tree_equal(made, before)


def test_gradients_that_stay_zero_are_said_and_nothing_that_rebuilds_is_recommended():
    diagnosis = odenet.check_gradients(
        model("torch", scale=0.01, head=0.0), (X, LABELS), gradients=METHODS, loss=lambda out, _: (0 * out).sum()
    )
    assert diagnosis.silent
    assert diagnosis.recommended.label == "checkpoint"
    assert "Every gradient of the layers is zero" in diagnosis.verdict


def test_a_model_that_cannot_be_copied_is_said():
    made = model("torch", scale=0.001, head=1.0)
    made.lock = iter(())  # no deepcopy
    made.register_buffer("step", torch.zeros(()))

    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("not this one")

    diagnosis = odenet.check_gradients(Uncopied(*made), (X, LABELS), gradients=METHODS)
    assert "could not be examined after a few steps of training (RuntimeError: not this one)" in diagnosis.verdict


def test_a_correction_that_makes_it_worse_is_said():
    class Odd(nn.Module):
        def __init__(self, angle):
            super().__init__()
            turn = 3.0 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            self.w = nn.Parameter(torch.tensor(turn))

        def forward(self, x):
            return torch.sin(x @ self.w)

    stack = odenet_torch.ResidualStack([Odd(n) for n in range(6)], t1=6.0)
    diagnosis = odenet.check_gradients(stack, RNG.standard_normal((5, 2)), gradients=METHODS)
    once, paper = diagnosis.of(METHODS[0]), diagnosis.of(METHODS[2])
    assert ("correction makes it worse" in diagnosis.verdict) == (once.gradient_error > paper.gradient_error)
    assert diagnosis.recommended.label == "checkpoint"
