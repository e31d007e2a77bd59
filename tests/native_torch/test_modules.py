"""Modules on torch: what autograd gives through backprop, the adjoints give, parameter by parameter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import odenet
from odenet import DiscreteAdjoint, GradientError, NetSpec
from odenet_torch import NeuralODE, OdeNet, ResidualStack, solve

ADJOINTS = pytest.mark.parametrize(
    "gradient",
    ["discrete-adjoint", "discrete-adjoint:correct=no", "continuous-adjoint", "checkpoint:states=2"],
)
EVERY = pytest.mark.parametrize(
    "gradient",
    [
        "backprop",
        "checkpoint",
        "checkpoint:segments=2",
        "checkpoint:states=2",
        "checkpoint:memory=1M",
        "discrete-adjoint",
        "discrete-adjoint:iterations=3",
        "discrete-adjoint:predictor=extrapolate:order=1",
        "discrete-adjoint:anchors=2",
        "discrete-adjoint:tolerance=1e-10",
        "continuous-adjoint",
        "continuous-adjoint:interpolate=yes",
    ],
)
WIDTH = 3


class Block(nn.Module):
    """`x -> tanh(A x + b)`, with a parameter that it never reads."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        with torch.no_grad():
            for p in self.linear.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Flow(nn.Module):
    """`f(t, y) = tanh(A y + b) cos(t)`."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block(0)

    def forward(self, t, y):
        return self.block(y) * torch.cos(t)


@pytest.fixture
def x():
    return torch.tensor([[1.0, -0.5, 0.25], [0.1, 0.2, 0.3]], dtype=torch.float64)


def gradients(model, x):
    """Of half the squared output, by parameter; None where there is none."""
    model.zero_grad()
    (0.5 * model(x) ** 2).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def distance(one, other):
    """Norm-relative difference of gradients by name; None counts as zero."""
    both = [[torch.zeros(()) if g[name] is None else g[name] for name in other] for g in (one, other)]
    square = [(a - b).square().sum() for a, b in zip(*both, strict=True)]
    return float((sum(square) / sum(b.square().sum() for b in both[1])).sqrt())


def stack(gradient, order=(0, 1, 2, 3), **choices):
    blocks = [Block(seed) for seed in range(4)]
    return ResidualStack([blocks[i] for i in order], gradient=gradient, **choices)


def test_euler_is_the_residual_network(x):
    model = stack("backprop")
    y = x
    for block in model.blocks:
        y = y + block(y) / 4
    torch.testing.assert_close(model(x), y, rtol=1e-14, atol=1e-14)
    plain = stack("backprop", t1=4.0)
    y = x
    for block in plain.blocks:
        y = y + block(y)
    torch.testing.assert_close(plain(x), y, rtol=1e-14, atol=1e-14)


def test_heun_is_the_heunnet_of_one_step_less(x):
    model = stack("backprop", solver="heunnet")
    y, h = x, 1 / 3
    for one, other in zip(model.blocks[:-1], model.blocks[1:], strict=True):
        first = one(y)
        y = y + h / 2 * (first + other(y + h * first))
    torch.testing.assert_close(model(x), y, rtol=1e-14, atol=1e-14)
    assert (model.stats.steps, model.stats.f_evaluations) == (3, 6)
    assert model.along == "linear"


def test_midpoint_interpolates_the_parameters_between_blocks(x):
    model = stack("backprop", solver="midpoint", order=(0, 1))
    middle = copy.deepcopy(model.blocks[0])
    with torch.no_grad():
        for p, q in zip(middle.parameters(), model.blocks[1].parameters(), strict=True):
            p.copy_((p + q) / 2)
    expected = x + middle(x + model.blocks[0](x) / 2)
    torch.testing.assert_close(model(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
@pytest.mark.parametrize("along", ["piecewise", "linear"])
def test_the_adjoint_of_a_stack_is_close_to_backprop_and_the_certificate_says_so(x, solver, along):
    exact = gradients(stack("backprop", solver=solver, along=along), x)
    model = stack("discrete-adjoint:iterations=30", solver=solver, along=along)
    assert distance(gradients(model, x), exact) < 1e-12
    assert model.certificate < 1e-12
    model = stack("discrete-adjoint", solver=solver, along=along)
    assert distance(gradients(model, x), exact) < 2 * model.certificate


def test_the_correction_brings_the_gradient_closer(x):
    exact = gradients(stack("backprop"), x)
    paper, corrected = (
        distance(gradients(stack(f"discrete-adjoint:correct={correct}"), x), exact) for correct in ("no", "yes")
    )
    assert corrected < 0.6 * paper


@EVERY
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_tied_blocks_get_the_sum_of_the_gradients_of_their_places(x, gradient, solver):
    """The same as of four blocks of equal weights, summed; parameters deduplicated elsewhere gave 3 % of it."""
    tied = stack(gradient, (0, 1, 0, 0), solver=solver)
    assert len(list(tied.parameters())) == 6
    untied = ResidualStack([copy.deepcopy(block) for block in tied.blocks], gradient=gradient, solver=solver)
    found, parts = gradients(tied, x), gradients(untied, x)
    for name in ("linear.weight", "linear.bias"):
        expected = sum(parts[f"blocks.{i}.{name}"] for i in (0, 2, 3))
        torch.testing.assert_close(found[f"blocks.0.{name}"], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found[f"blocks.1.{name}"], parts[f"blocks.1.{name}"], rtol=1e-12, atol=1e-14)


@EVERY
def test_frozen_blocks_get_none_and_leave_the_others_as_they_are(x, gradient):
    free, frozen = stack(gradient), stack(gradient)
    for i in (0, 2):
        frozen.blocks[i].requires_grad_(False)
    expected, found = gradients(free, x), gradients(frozen, x)
    for name, g in found.items():
        if name.startswith(("blocks.0", "blocks.2")):
            assert g is None
        elif "unused" not in name:
            torch.testing.assert_close(g, expected[name], rtol=1e-13, atol=1e-15)


@EVERY
def test_with_everything_frozen_the_state_still_has_its_gradient(x, gradient):
    model = stack(gradient).requires_grad_(False)
    x.requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x)
    (exact,) = torch.autograd.grad(stack("backprop")(x).sum(), x)
    assert (g - exact).norm() < 0.2 * exact.norm()
    assert g.shape == x.shape
    assert not model(x.detach()).requires_grad


@EVERY
def test_parameters_that_are_never_read_get_nothing(x, gradient):
    for model in (stack(gradient), NeuralODE(Flow(), steps=4, gradient=gradient)):
        for name, g in gradients(model, x).items():
            assert g is None or g.any() != ("unused" in name)
            assert "unused" in name or g is not None


@EVERY
@pytest.mark.parametrize("of_y0", [False, True])
def test_y0_has_a_gradient_only_where_it_wants_one(x, gradient, of_y0):
    x.requires_grad_(of_y0)
    model = NeuralODE(Flow(), steps=8, gradient=gradient)
    found = gradients(model, x)
    assert (x.grad is not None) == of_y0
    again = gradients(model, x.detach())
    assert all(torch.equal(found[name], again[name]) for name in found if found[name] is not None)


@ADJOINTS
def test_a_parameter_in_a_closure_gets_its_gradient(x, gradient):
    block, scale = Block(0), nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def run(gradient, steps):
        y1 = solve(lambda t, y: scale * block(y), x, steps=steps, gradient=gradient).y1
        return torch.autograd.grad((y1**2).sum(), [scale, *block.linear.parameters()])

    for found, exact in zip(run(gradient, 256), run("backprop", 256), strict=True):
        assert (found - exact).norm() < 0.02 * exact.norm()


@ADJOINTS
def test_a_closure_over_weights_and_a_parameter_gets_both(x, gradient):
    scale, w = (torch.tensor(0.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    y1 = solve(lambda t, y, w: torch.sin(scale * w * y), x, w, steps=256, gradient=gradient).y1
    of_scale, of_w = torch.autograd.grad(y1.sum(), [scale, w])
    torch.testing.assert_close(of_scale, of_w, rtol=1e-12, atol=0)
    assert of_w.abs() > 0.1


@ADJOINTS
def test_a_closure_that_reads_another_parameter_later_is_an_error_and_not_a_zero(x, gradient):
    early, late = (nn.Parameter(torch.ones(WIDTH, dtype=torch.float64)) for _ in range(2))
    y1 = solve(lambda t, y: y * (early if t < 0.5 else late), x, steps=4, gradient=gradient).y1
    with pytest.raises(GradientError, match=r"in step \d the field reads tensors \(of shape \(3,\)\).*nn\.Module"):
        y1.sum().backward()


@ADJOINTS
def test_a_module_may_read_another_parameter_later(x, gradient):
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.early, self.late = (nn.Parameter(torch.ones(WIDTH, dtype=torch.float64)) for _ in range(2))

        def forward(self, t, y):
            return -y * (self.early if t < 0.5 else self.late)

    found = gradients(NeuralODE(Switch(), steps=64, solver="euler", gradient=gradient), x)
    exact = gradients(NeuralODE(Switch(), steps=64, solver="euler"), x)
    assert distance(found, exact) < 0.1
    assert all(g.any() for g in found.values())


@EVERY
def test_the_training_flag_is_never_touched(x, gradient):
    """Switching modules to eval() inside a backward pass gave gradients of another network elsewhere."""
    seen = []

    class Watched(Block):
        def forward(self, x):
            seen.append(self.training)
            return super().forward(x)

    for training in (True, False):
        model = ResidualStack([Watched(0), Watched(1)], gradient=gradient).train(training)
        seen.clear()
        gradients(model, x)
        assert set(seen) == {training}
        assert all(module.training == training for module in model.modules())


@EVERY
def test_without_grad_nothing_is_recorded(x, gradient):
    model = NeuralODE(Flow(), steps=4, gradient=gradient)
    with torch.no_grad():
        y1 = model(x)
    assert not y1.requires_grad
    assert model.certificate is None
    torch.testing.assert_close(y1, model(x).detach(), rtol=0, atol=0)


@EVERY
def test_a_graph_that_is_kept_can_be_gone_back_twice(x, gradient):
    model = NeuralODE(Flow(), steps=4, gradient=gradient)
    loss, parameters = model(x).square().sum(), [model.field.block.linear.weight]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, parameters)


@EVERY
@pytest.mark.parametrize("kind", ["stack", "module", "weights", "closure"])
def test_weights_changed_between_forward_and_backward_are_noticed(x, gradient, kind):
    w = torch.ones(WIDTH, WIDTH, dtype=torch.float64, requires_grad=True)
    if kind == "weights":
        loss = solve(lambda t, y, w: torch.sin(y @ w), x, w, steps=4, gradient=gradient).y1.sum()
    elif kind == "closure":
        loss = solve(lambda t, y: torch.sin(y @ w), x, steps=4, gradient=gradient).y1.sum()
    else:
        model = stack(gradient) if kind == "stack" else NeuralODE(Flow(), steps=4, gradient=gradient)
        w = next(p for p in model.parameters() if p.dim() == 2)
        x.requires_grad_()
        loss = model(x).sum()
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_backprop_can_be_differentiated_again(x):
    def final(y0, w):
        return solve(lambda t, y, w: torch.tanh(y @ w) * t, y0, w, steps=2, solver="heun").y1

    w = torch.eye(WIDTH, dtype=torch.float64, requires_grad=True)
    inputs = (x[:1].clone().requires_grad_(), w)
    assert torch.autograd.gradcheck(final, inputs)
    assert torch.autograd.gradgradcheck(final, inputs)


@pytest.mark.parametrize("gradient", ["discrete-adjoint:iterations=40"])
@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_a_converged_adjoint_is_the_numerical_gradient(x, gradient, solver):
    w = torch.eye(WIDTH, dtype=torch.float64, requires_grad=True)

    def final(y0, w):
        made = {"steps": 4, "ts": "all", "solver": solver, "gradient": gradient}
        return solve(lambda t, y, w: torch.tanh(y @ w) * torch.cos(t), y0, w, **made).ys

    assert torch.autograd.gradcheck(final, (x[:1].clone().requires_grad_(), w))


@pytest.mark.parametrize(
    "spec",
    [
        NetSpec(depth=2, width=4),
        NetSpec(depth=2, width=4, norm="none", along="linear"),
        NetSpec("mlp", depth=2, width=4, along="shared"),
        NetSpec("linear", depth=2, width=4, inputs=(4,), classes=None),
    ],
    ids=lambda spec: f"{spec.block}-{spec.along}",
)
def test_a_network_is_a_module_like_any_other(spec):
    weights = spec.init(2)
    model = OdeNet(spec, weights, solver="euler", gradient="discrete-adjoint", dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == spec.shapes()
    batch = torch.tensor(np.random.default_rng(0).standard_normal((2, *spec.inputs)))
    model(batch).sum().backward()  # leaves statistics behind
    twin, other = copy.deepcopy(model), OdeNet(spec, spec.init(3), dtype=torch.float64)
    other.load_state_dict(model.state_dict())
    assert torch.equal(twin(batch), model(batch))
    assert torch.equal(other(batch), model(batch))
    with torch.no_grad():
        next(twin.parameters()).add_(1)
    assert not torch.equal(twin(batch), model(batch))
    read = odenet.backend("torch").read(model)
    assert all(np.array_equal(read[name], weights[name]) for name in weights)
    assert "gradient=discrete-adjoint" in repr(model)


def test_optimizer_and_a_stack_learn(x):
    """A few steps of gradient descent by the adjoint go down as those by backprop do."""
    losses = {}
    for gradient in ("backprop", "discrete-adjoint"):
        model = stack(gradient)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses[gradient] = []
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            losses[gradient].append(loss.item())
    assert losses["discrete-adjoint"] == pytest.approx(losses["backprop"], rel=2e-3)
    assert losses["backprop"] == sorted(losses["backprop"], reverse=True)


def test_half_precision_is_carried_in_single():
    """Steps of 1/1024 are lost in bfloat16; the field and the solution are bfloat16 all the same."""
    seen = set()

    def field(t, y):
        seen.add(y.dtype)
        return torch.ones_like(y)

    found = solve(field, torch.ones(1, dtype=torch.bfloat16), steps=1024, gradient=DiscreteAdjoint())
    assert found.y1.dtype == torch.bfloat16
    assert found.ts.dtype == torch.float32
    assert seen == {torch.bfloat16}
    assert found.y1.item() == pytest.approx(2, rel=1e-2)


def test_numpy_arrays_may_be_views_that_run_backward():
    weights, y0 = np.arange(9.0).reshape(3, 3) / 9, np.ones(3)
    turned = solve(lambda t, y, w: y @ w, y0[::-1], weights[::-1], steps=4).y1
    torch.testing.assert_close(turned, solve(lambda t, y, w: y @ w, y0, weights[::-1].copy(), steps=4).y1)
