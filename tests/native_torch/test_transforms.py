"""Solves under torch's own transformations: torch.func, vmap, second derivatives and copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from odenet import UnsupportedError
from odenet_torch import NeuralODE, ResidualStack, solve

# torch's own, where it first needs a forward derivative
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
METHODS = [
    ("heun", "checkpoint"),
    ("euler", "checkpoint:segments=2"),
    ("heun", "checkpoint:states=2"),
    ("euler", "checkpoint:memory=1M"),
    ("heun", "discrete-adjoint:iterations=20"),
    ("euler", "discrete-adjoint:predictor=extrapolate"),
    ("rk4", "continuous-adjoint"),
    ("rk4", "continuous-adjoint:interpolate=yes"),
    ("alf", "reversible"),
    ("reversible:heun", "reversible"),
]
EACH = pytest.mark.parametrize(("solver", "gradient"), METHODS)
SOLVERS = pytest.mark.parametrize("solver", ["euler", "rk4", "reversible-heun", "reversible:euler"])


@pytest.fixture
def x():
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def w():
    return torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) / 2


def run(x, w, solver, gradient="backprop"):
    field = lambda t, y, w: torch.tanh(y @ w) * torch.cos(t)  # noqa: E731
    return solve(field, x, w, steps=4, solver=solver, gradient=gradient).y1


def square(x, w, solver, gradient="backprop"):
    return run(x, w, solver, gradient).square().sum()


def plain(x, w, solver, gradient="backprop"):
    """By loss.backward()."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    square(x, w, solver, gradient).backward()
    return x.grad, w.grad


@SOLVERS
def test_grad_vmap_and_jvp_of_backprop_are_what_autograd_gives(x, w, solver):
    of_x, of_w = plain(x, w, solver)
    found = torch.func.grad(square, argnums=(0, 1))(x, w, solver)
    torch.testing.assert_close(found, (of_x, of_w), rtol=1e-13, atol=1e-15)
    each = torch.func.vmap(torch.func.grad(square), in_dims=(0, None, None))(x, w, solver)
    torch.testing.assert_close(each, of_x, rtol=1e-13, atol=1e-15)
    _, along = torch.func.jvp(lambda x: square(x, w, solver), (x,), (x,))
    torch.testing.assert_close(along, (of_x * x).sum(), rtol=1e-13, atol=1e-15)
    many = torch.stack([w, 2 * w])
    by_weights = torch.func.vmap(lambda w: run(x, w, solver))(many)
    torch.testing.assert_close(by_weights, torch.stack([run(x, each, solver) for each in many]))


@EACH
@pytest.mark.parametrize("transform", ["grad", "vjp", "jvp", "vmap", "jacrev", "hessian"])
def test_methods_with_a_way_back_of_their_own_refuse_the_transforms_of_torch_func(x, w, solver, gradient, transform):
    function = lambda x: square(x, w, solver, gradient)  # noqa: E731
    calls = {
        "vjp": lambda: torch.func.vjp(function, x),
        "jvp": lambda: torch.func.jvp(function, (x,), (x,)),
    }
    with pytest.raises(UnsupportedError, match=r"inside a transform of torch\.func.*backprop"):
        calls.get(transform, lambda: getattr(torch.func, transform)(function)(x))()


@EACH
def test_without_gradients_every_method_can_be_mapped(x, w, solver, gradient):
    with torch.no_grad():
        each = torch.func.vmap(lambda x: run(x, w, solver, gradient))(x)
    torch.testing.assert_close(each, run(x, w, solver), rtol=1e-13, atol=1e-15)


@EACH
def test_a_second_derivative_is_the_right_one_or_refused(x, w, solver, gradient):
    """Segments are torch's own checkpoints, which can be differentiated again."""

    def second(gradient):
        given = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(square(given, w, solver, gradient), given, create_graph=True)
        return torch.autograd.grad(first.square().sum(), given)[0]

    if gradient in ("checkpoint", "checkpoint:segments=2"):
        torch.testing.assert_close(second(gradient), second("backprop"), rtol=1e-13, atol=1e-15)
    else:
        with pytest.raises(UnsupportedError, match=r"second derivative.*backprop"):
            second(gradient)


@EACH
def test_forward_mode_is_right(x, w, solver, gradient):
    def along(gradient):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(run(forward_ad.make_dual(x, x), w, solver, gradient)).tangent

    torch.testing.assert_close(along(gradient), along("backprop"), rtol=1e-13, atol=1e-15)


@EACH
def test_a_batch_of_cotangents_is_a_loop_over_them(x, w, solver, gradient):
    given = x[:1].clone().requires_grad_()
    y1 = run(given, w, solver, gradient)
    cotangents = torch.eye(3, dtype=torch.float64)[:, None]
    (batched,) = torch.autograd.grad(y1, given, cotangents, is_grads_batched=True, retain_graph=True)
    looped = [torch.autograd.grad(y1, given, each, retain_graph=True)[0] for each in cotangents]
    torch.testing.assert_close(batched, torch.stack(looped), rtol=1e-13, atol=1e-15)


@EACH
def test_saved_tensors_may_be_moved_and_anomalies_looked_for(x, w, solver, gradient):
    expected = plain(x, w, solver, gradient)
    with torch.autograd.graph.save_on_cpu():
        found = plain(x, w, solver, gradient)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="Anomaly"), torch.autograd.detect_anomaly(check_nan=True):
        found = plain(x, w, solver, gradient)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@EACH
def test_only_what_is_asked_for_has_a_gradient(x, w, solver, gradient):
    x, w = x.requires_grad_(), w.requires_grad_()
    loss = square(x, w, solver, gradient)
    both = torch.autograd.grad(loss, [x, w], retain_graph=True)
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], both[0])
    assert torch.equal(torch.autograd.grad(loss, w, retain_graph=True)[0], both[1])
    loss.backward(inputs=[w])
    assert x.grad is None
    assert torch.equal(w.grad, both[1])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.2)

    def forward(self, x):
        return 0.5 * torch.tanh(self.dropout(self.norm(self.linear(x))))


class Flow(Block):
    def forward(self, t, y):
        return torch.cos(t) * super().forward(y)


@EACH
@pytest.mark.parametrize("kind", ["stack", "module"])
def test_a_model_can_be_copied_pickled_and_loaded_after_a_backward_pass(x, solver, gradient, kind):
    def made():
        if kind == "module":
            return NeuralODE(Flow(), steps=3, solver=solver, gradient=gradient)
        blocks = [Block() for _ in range(4)]
        return ResidualStack(blocks, solver=solver, gradient=gradient, along="linear")

    def step(of):
        torch.manual_seed(3)
        of.zero_grad()
        of(x.float()).square().sum().backward()
        return [p.grad for p in of.parameters()], of.certificate

    torch.manual_seed(0)
    model = made()
    step(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = made()
    other.load_state_dict(torch.load(file))
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other]
    grads, certificate = step(model)
    for twin in twins:
        found, its = step(twin)
        assert its == certificate
        for one, two in zip(found, grads, strict=True):
            assert (one is None and two is None) or torch.equal(one, two)
        assert all(torch.equal(one, two) for one, two in zip(twin.buffers(), model.buffers(), strict=True))
