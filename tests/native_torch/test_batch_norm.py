"""Batch normalisation in the networks of a `NetSpec`: right under every gradient method, and counted once a pass."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import odenet
from odenet import GradientError, InputError, NetSpec, UnsupportedError
from odenet._backend import registry
from odenet.kit import NORM_EPSILON, NORM_MOMENTUM
from odenet_torch.nets.modules import OdeNet

N, HORIZON = 3, 0.05  # so short a time that every method is near its limit
SPEC = NetSpec("conv", N, 4, inputs=(2, 6, 6), classes=3, norm="batch", activated=True, horizon=HORIZON)
STAGES = NetSpec("bottleneck", N, 8, inputs=(2, 6, 6), classes=3, norm="batch", before=(1,), after=(1,))
RNG = np.random.default_rng(0)
X, TARGETS = torch.tensor(RNG.standard_normal((5, 2, 6, 6))), torch.tensor(RNG.integers(0, 3, 5))
SOLVERS = {"euler": "piecewise", "heun": "linear", "midpoint": "shared", "rk4": "linear"}
ALL = [*SOLVERS, "reversible:heun", "reversible-heun", "alf"]
NEAR = {  # how far a gradient may be from backprop's
    "checkpoint": 1e-13,
    "checkpoint:segments=2": 1e-13,
    "discrete-adjoint:iterations=6": 1e-6,
    "discrete-adjoint:predictor=extrapolate:anchors=2:tolerance=1e-10": 1e-6,
    "discrete-adjoint:correct=no": 0.05,
    "continuous-adjoint": 0.05,
    "continuous-adjoint:interpolate=yes": 0.05,
    "reversible": 1e-12,
    "auto": 1e-13,
}


def made(spec, solver="euler", gradient="backprop", start="independent"):
    return OdeNet(spec, spec.init(0, start), solver=solver, gradient=gradient, dtype=torch.float64)


def passed(model, x=X):
    """The gradient of one pass, by all parameters in one."""
    loss = F.cross_entropy(model(x), TARGETS[: len(x)])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def offered(solver, method):
    chosen = odenet.gradient(method)
    return isinstance(chosen, odenet.Auto) or chosen.offered(odenet.solver(solver))


WAYS = [
    pytest.param(solver, method, marks=pytest.mark.slow if method == "auto" and solver != "euler" else ())
    for solver in ALL
    for method in NEAR
    if offered(solver, method)
]


@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
@pytest.mark.parametrize(("solver", "method"), WAYS)
def test_every_method_has_backprops_gradient_and_counts_the_batch_once(solver, method):
    spec = replace(SPEC, along=SOLVERS.get(solver, "piecewise"))
    plain, mine = made(spec, solver), made(spec, solver, method)
    for _ in range(2):  # the second pass is not looked at as closely
        exact, found = passed(plain), passed(mine)
        assert (found - exact).norm() <= NEAR[method] * exact.norm()
    assert plain.state_dict().keys() == mine.state_dict().keys()
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, statistics(mine)[name]), name


class Block(nn.Module):
    """What torch itself makes of a block of SPEC."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, y):
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(y)))))


class Plain(nn.Module):
    """The network of SPEC, of torch's own modules."""

    def __init__(self, weights):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.ModuleList(Block() for _ in range(N))
        self.head = nn.Linear(4, 3)
        self.double()
        names = {"stem.norm": "norm"}
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, array in weights.items():
                if name.startswith("block."):
                    for n, row in enumerate(array):
                        if "running" not in name:
                            own[f"blocks.{n}.{name.removeprefix('block.')}"].copy_(torch.tensor(row))
                elif "running" not in name:
                    start = next((s for s in names if name.startswith(s)), "")
                    own[names.get(start, start) + name.removeprefix(start)].copy_(torch.tensor(array))

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            y = y + HORIZON / N * block(y)
        return self.head(y.mean((2, 3)))


def test_it_is_what_torchs_own_modules_do():
    """Outputs, statistics and outputs in evaluation, of a ResNet, after several passes."""
    weights = SPEC.init(0, "independent")
    mine, plain = made(SPEC, gradient="checkpoint"), Plain(weights)
    for seed in range(3):
        x = X + seed
        torch.testing.assert_close(mine(x), plain(x), rtol=1e-12, atol=1e-12)
    for n, block in enumerate(plain.blocks):
        for name in ("norm1", "norm2"):
            for kind in ("running_mean", "running_var"):
                own = mine.get_buffer(f"block.{name}.{kind}")[n]
                torch.testing.assert_close(own, block.get_submodule(name).get_buffer(kind), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(mine.get_buffer("stem.norm.running_var"), plain.norm.running_var)
    mine.eval(), plain.eval()
    before = statistics(mine)
    torch.testing.assert_close(mine(X), plain(X), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(buffer, before[name]) for name, buffer in mine.named_buffers())


def test_a_layer_that_is_read_twice_moves_once_by_the_mean():
    """HeunNet reads w[n] at the end of one step and at the start of the next."""
    spec = replace(SPEC, along="linear", classes=None, activated=False, inputs=(4, 6, 6), horizon=1.0)
    model, h = made(spec, "heun"), 1 / N
    weights = {name: torch.tensor(w) for name, w in spec.init(0, "independent").items()}
    seen = [[] for _ in range(N + 1)]

    def f(n, y):
        first = F.conv2d(y, weights["block.conv1.weight"][n], padding=1)
        seen[n].append(first.var((0, 2, 3)))  # unbiased
        hidden = torch.relu(F.batch_norm(first, None, None, training=True, eps=NORM_EPSILON))
        second = F.conv2d(hidden, weights["block.conv2.weight"][n], padding=1)
        return F.batch_norm(second, None, None, training=True, eps=NORM_EPSILON)

    x = y = torch.tensor(RNG.standard_normal((5, 4, 6, 6)))
    for n in range(N):
        k = f(n, y)
        y = y + h / 2 * (k + f(n + 1, y + h * k))
    torch.testing.assert_close(model(x), y, rtol=1e-12, atol=1e-12)
    assert [len(each) for each in seen] == [1, *[2] * (N - 1), 1]
    for n, each in enumerate(seen):
        expected = 1 + NORM_MOMENTUM * (torch.stack(each).mean(0) - 1)
        torch.testing.assert_close(model.get_buffer("block.norm1.running_var")[n], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore::odenet.GradientWarning")
@pytest.mark.parametrize("method", ["backprop", "checkpoint", "discrete-adjoint:iterations=30"])
def test_ordinary_stages_count_once_too(method):
    plain, mine = made(STAGES), made(STAGES, gradient=method)
    exact, found = passed(plain), passed(mine)
    assert (found - exact).norm() <= 1e-5 * exact.norm()
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, statistics(mine)[name]), name
        assert not torch.equal(buffer, torch.tensor(STAGES.init(0)[name])), f"{name} has not moved"


def test_two_forward_passes_before_one_backward_pass_are_two():
    pair = [made(SPEC, gradient=method) for method in ("backprop", "discrete-adjoint:iterations=6")]
    for model in pair:
        (model(X).square().sum() + model(X + 1).square().sum()).backward()
    for (name, one), other in zip(pair[0].named_buffers(), pair[1].buffers(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-8)


def test_a_pass_that_fails_counts_nothing_in_its_blocks():
    model = made(SPEC)
    before = model.get_buffer("block.norm1.running_mean").clone()
    with pytest.raises(RuntimeError):
        model(torch.full((5, 2, 6, 6), 1.0, dtype=torch.float32))
    assert torch.equal(model.get_buffer("block.norm1.running_mean"), before)
    assert torch.isfinite(passed(model)).all()


def test_without_gradients_it_counts_and_in_evaluation_it_does_not():
    model = made(SPEC, gradient="discrete-adjoint")
    before = statistics(model)
    with torch.no_grad():
        model(X)
    moved = statistics(model)
    assert all(not torch.equal(moved[name], before[name]) for name in moved)
    model.eval()
    passed(model)
    assert all(torch.equal(moved[name], buffer) for name, buffer in model.named_buffers())


def test_an_evaluation_between_the_passes_changes_nothing():
    plain, mine = made(SPEC), made(SPEC, gradient="discrete-adjoint:iterations=6")
    exact, loss = passed(plain), F.cross_entropy(mine(X), TARGETS)
    outputs = mine.eval()(X)
    mine.train()
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(mine.parameters()))])
    assert (found - exact).norm() <= 1e-6 * exact.norm()
    assert torch.equal(mine.eval()(X), outputs)
    loss = mine.train()(X).sum()
    mine.eval()
    with pytest.raises(GradientError, match="switched between"):
        loss.backward()


def test_gradients_in_evaluation_are_those_of_backprop():
    plain, mine = made(SPEC).eval(), made(SPEC, gradient="discrete-adjoint:iterations=8").eval()
    exact = passed(plain)
    assert (passed(mine) - exact).norm() <= 1e-8 * exact.norm()


def test_statistics_written_on_between_the_passes_in_evaluation_are_an_error():
    model = made(SPEC, gradient="discrete-adjoint").eval()
    loss = model(X).sum()
    model.get_buffer("block.norm1.running_var").mul_(2)
    with pytest.raises(GradientError, match="modified by an inplace operation"):
        loss.backward()


def test_copies_and_number_types_take_their_statistics_along():
    model = made(SPEC)
    passed(model)
    twin = copy.deepcopy(model)
    passed(twin)
    assert not torch.equal(twin.get_buffer("block.norm1.running_mean"), model.get_buffer("block.norm1.running_mean"))
    narrow = copy.deepcopy(model).float()
    narrow(X.float())
    passed(model)
    for (name, one), other in zip(narrow.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5, msg=name)
    again = made(SPEC)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(X), model.eval()(X), rtol=0, atol=0)


def test_the_verbs_count_in_training_only():
    torch_backend, spec = registry.backend("torch"), SPEC
    model = torch_backend.build(
        spec, spec.init(0), solver=odenet.solver("euler"), gradient=odenet.gradient("discrete-adjoint"), dtype="float64"
    )
    x, targets = X.numpy(), TARGETS.numpy()
    torch_backend.evaluate(model, x, targets)
    torch_backend.measure(model, x, targets, repeats=1)
    read = torch_backend.read(model)
    assert all(np.array_equal(read[name], array) for name, array in spec.init(0).items())
    trainer = torch_backend.trainer(model, momentum=0.9, weight_decay=0.0)
    trainer.step(x, targets, 0.1)
    state, outputs = trainer.state(), trainer.predict(x[:1])
    assert {f"weight.{name}" for name in spec.statistics()} <= state.keys()
    assert not {f"momentum.{name}" for name in spec.statistics()} & state.keys()
    assert all(not np.array_equal(state[f"weight.{name}"], read[name]) for name in spec.statistics())
    other = torch_backend.trainer(model, momentum=0.9, weight_decay=0.0)
    other.load(state)
    np.testing.assert_array_equal(other.predict(x[:1]), outputs)
    assert trainer.step(x, targets, 0.1) == other.step(x, targets, 0.1)


def test_a_way_back_that_switches_to_evaluation_is_another_gradient_and_stays_there():
    faulty = replace(SPEC, norm="batch-eval-backward")
    assert torch.equal(passed(made(faulty)), passed(made(SPEC))), "backprop runs nothing again"
    right, wrong = (made(spec, gradient="discrete-adjoint:iterations=6") for spec in (SPEC, faulty))
    with torch.no_grad():
        for model in (right, wrong):
            model(X + 1)
    one, other = passed(right), passed(wrong)
    assert (other - one).norm() > 0.02 * one.norm()
    first = statistics(wrong)
    for name, buffer in right.named_buffers():
        assert torch.equal(buffer, first[name]), f"{name}: the forward pass was the same"
    found, now = passed(wrong), statistics(wrong)
    assert torch.isfinite(found).all()
    assert not torch.equal(now["stem.norm.running_mean"], first["stem.norm.running_mean"]), "the rest is in training"
    assert torch.equal(now["block.norm1.running_mean"], first["block.norm1.running_mean"]), "the blocks are not"
    passed(wrong.train())
    assert not torch.equal(statistics(wrong)["block.norm1.running_mean"], now["block.norm1.running_mean"])
    with pytest.raises(UnsupportedError, match=r"batch-eval-backward.* with gradient 'checkpoint'"):
        passed(made(faulty, gradient="checkpoint"))


def test_a_backward_pass_that_counts_moves_the_statistics_three_times_and_nothing_else():
    """One step of Euler is evaluated in the forward pass, to rebuild its state, and to differentiate it."""
    spec, faulty = (replace(SPEC, norm=norm, depth=1) for norm in ("batch", "batch-counting-backward"))
    assert torch.equal(passed(made(faulty)), passed(made(spec))), "backprop runs nothing again"
    right, wrong = (made(spec, gradient="discrete-adjoint:correct=no") for spec in (spec, faulty))
    assert torch.equal(passed(wrong), passed(right))
    first, name = statistics(made(spec)), "block.norm1.running_mean"
    with torch.no_grad():
        model = made(faulty)
        model(X)
        once = statistics(model)[name] - first[name]
        model(X)
        twice = statistics(model)[name] - first[name]
        torch.testing.assert_close(twice, (1 + 0.9) * once)
    moved = statistics(wrong)[name] - first[name]
    assert torch.equal(statistics(right)["stem.norm.running_mean"], statistics(wrong)["stem.norm.running_mean"])
    torch.testing.assert_close(statistics(right)[name] - first[name], once)
    # the state that is rebuilt lies between the two that the evaluations are at, so that all three means are close
    torch.testing.assert_close(moved, (1 + 0.9 + 0.81) * once, rtol=0.2, atol=0.05 * once.abs().max().item())


def test_what_cannot_be_normalised_is_refused():
    with pytest.raises(InputError, match=r"at least 2 values in each channel"):
        made(replace(SPEC, activated=False, inputs=(2, 1, 1)))(torch.ones(1, 2, 1, 1, dtype=torch.float64))
    with pytest.raises(InputError, match=r"norm='batch' of a mlp network"):
        NetSpec("mlp", norm="batch")
    weights = SPEC.init(0)
    fewer = {name: w for name, w in weights.items() if name != "stem.norm.running_var"}
    with pytest.raises(InputError, match=r"weights without stem.norm.running_var"):
        OdeNet(SPEC, fewer)
    with pytest.raises(InputError, match=r"variances, 0 or more"):
        OdeNet(SPEC, weights | {"stem.norm.running_var": -np.ones(4)})
