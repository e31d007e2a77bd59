"""`convert(gradient="auto")`: exact by layers where that fits, else rebuilt and audited, else the least is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import odenet
from odenet_torch import convert
from odenet_torch.verbs.examine import solved

X = torch.randn(512, 6, generator=torch.Generator().manual_seed(0))


class Layer(nn.Module):
    """A residual block, which leaves a loss beside its state if it is asked to."""

    def __init__(self, side: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 6))
        self.side = side

    def forward(self, x: Any) -> Any:
        step = 0.1 * self.inner(x)
        return (x + step, step.square().mean()) if self.side else x + step


class Model(nn.Module):
    """Layers in a loop of its own."""

    def __init__(self, *, side: bool = False, head: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(Layer(side) for _ in range(12))
        self.head = nn.Linear(6, 2)
        nn.init.constant_(self.head.weight, head)

    def forward(self, x: Any) -> Any:
        total = 0.0
        for layer in self.layers:
            x, more = layer(x) if layer.side else (layer(x), 0.0)
            total = total + more
        return self.head(x).square().mean() + total


def gradient(model: nn.Module) -> list[torch.Tensor]:
    model.zero_grad()
    model(X).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def least(model: nn.Module) -> int:
    """Bytes of the exact method by layers that needs fewer."""
    plan = next(iter(solved(convert(copy.deepcopy(model), example=X, gradient="auto")).values())).plan
    return min(profile.peak_bytes for profile in plan.profiles if profile.peak_bytes)


@pytest.mark.parametrize("side", [False, True])
def test_without_a_limit_an_exact_method_is_taken(side: bool) -> None:
    plain = Model(side=side)
    own = convert(copy.deepcopy(plain), example=X, gradient="auto")
    for solve in solved(own).values():
        assert solve.gradient in (odenet.Backprop(), odenet.Checkpoint())
        assert {profile.gradient for profile in solve.plan.profiles} == {odenet.Backprop(), odenet.Checkpoint()}
        assert all(profile.gradient_error <= 1e-6 for profile in solve.plan.profiles)
    for one, other in zip(gradient(own), gradient(plain), strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.grad is None for p in convert(Model(side=side), example=X, gradient="auto").parameters())


def test_a_limit_that_checkpoint_meets_and_backprop_does_not() -> None:
    plain = Model()
    own = convert(copy.deepcopy(plain), example=X, gradient=odenet.Auto(memory=least(plain)))
    assert {solve.gradient for solve in solved(own).values()} == {odenet.Checkpoint()}


def test_below_it_layers_are_rebuilt_and_audited() -> None:
    plain = Model()
    own = convert(copy.deepcopy(plain), example=X, gradient=odenet.Auto(memory=least(plain) - 1))
    (stack,) = solved(own).values()
    assert stack.gradient.memory == least(plain) - 1
    for one, other in zip(gradient(own), gradient(plain), strict=True):  # the pass that plans is exact
        torch.testing.assert_close(one, other)
    assert stack.plan is not None
    assert stack.plan.chosen.peak_bytes <= stack.gradient.memory


def test_where_that_is_refused_the_least_is_said_and_the_model_is_as_it_was() -> None:
    plain = Model(side=True)
    own = copy.deepcopy(plain)
    needed = least(plain)
    with pytest.raises(odenet.InputError, match=f"at least {needed} bytes.*checkpoint needs") as caught:
        convert(own, example=X, gradient=odenet.Auto(memory=needed - 1))
    assert "rebuilt" in str(caught.value)
    assert [type(module) for module in own.modules()] == [type(module) for module in plain.modules()]


def test_a_head_of_zeros_hides_no_layer_from_the_plan() -> None:
    own = convert(Model(head=0.0), example=X, gradient="auto")
    assert next(iter(solved(own).values())).gradient in (odenet.Backprop(), odenet.Checkpoint())


def test_a_method_that_was_chosen_before_is_audited() -> None:
    plain = Model()
    own = convert(copy.deepcopy(plain), example=X, gradient=odenet.Auto(method=odenet.DiscreteAdjoint()))
    (stack,) = solved(own).values()
    gradient(own)
    assert len(stack.audits) == 1
    exact = convert(copy.deepcopy(plain), example=X, gradient=odenet.Auto(method=odenet.Checkpoint()))
    assert {solve.gradient for solve in solved(exact).values()} == {odenet.Checkpoint()}
