"""Numbers of Python's beside small tensors: the same numbers as torch's, in less time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from python_calls import python_calls
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from odenet_torch import solve
from odenet_torch.steps.scalars import beside, product

KINDS = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
ODD = [0.0, -0.0, 1.0, -3.7, 1e-40, 3e38, float("inf"), float("-inf"), float("nan")]


def bits(x: Tensor) -> list[Any]:
    """What tells zeros of both signs apart."""
    return list(map(repr, x.flatten().tolist()))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("factor", [0.3, -1e-30, 0.0, -0.0, 2.0])
def test_a_product_is_torch_s_to_the_last_bit_and_so_is_its_derivative(kind: torch.dtype, factor: float) -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.tensor(ODD), torch.randn(64)]).to(kind)
    found = []
    for of in (product, lambda number, x: number * x):
        x = values.clone().requires_grad_()
        y = of(factor, x)
        (g,) = torch.autograd.grad(y, x, values.flip(0))
        found.append((y.dtype, bits(y), bits(g)))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_number_is_kept_as_torch_rounds_it_also_where_it_overflows(kind: torch.dtype) -> None:
    x = torch.tensor(ODD[:5]).to(kind)
    real = x.real if x.is_complex() else x
    if kind is torch.bfloat16:  # states are carried in float32
        real = real.float()
    numbers = (1e-5, 0.1, 1e300, 1e-50, 0.0)
    for number, n in zip(numbers, beside(numbers, (real,) * len(numbers)), strict=True):
        assert bits(n * real) == bits(number * real)
        assert bits(n + real) == bits(number + real)


def test_what_is_made_in_inference_mode_is_no_tensor_of_it() -> None:
    with torch.inference_mode():
        solve(lambda t, y: -y, torch.ones(2), rtol=1.25e-3, atol=1.75e-4)
    y0 = torch.ones(2, requires_grad=True)
    solve(lambda t, y: -y, y0, rtol=1.25e-3, atol=1.75e-4).y1.sum().backward()
    assert y0.grad is not None


@pytest.mark.parametrize("gradient", ["inference", "backprop", "checkpoint", "continuous-adjoint"])
@pytest.mark.parametrize("atol", [1e-39, 1e-50, 1e-320])
def test_an_atol_below_the_numbers_of_float32_is_none(gradient: Any, atol: float) -> None:
    """Nothing is then allowed of an entry that is zero, which is right as long as there is no error in it."""
    found = []
    for least in (atol, 0.0):
        y0 = torch.tensor([1.0, 0.0], requires_grad=gradient != "inference")
        method = "backprop" if gradient == "inference" else gradient
        y1 = solve(lambda t, y: -y, y0, rtol=1e-4, atol=least, gradient=method).y1
        if y0.requires_grad:
            y1.sum().backward()
        found.append((y1, y0.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[0][0], torch.tensor([0.36788, 0.0]), rtol=1e-3, atol=0)


class Operations(TorchDispatchMode):
    """Counts operations of torch, and calls of functions of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_back_of_the_continuous_adjoint_takes_few_operations_and_calls() -> None:
    torch.manual_seed(0)
    net, y0 = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(3, 4)
    found = []
    for t1 in (4.0, 12.0):

        def output(t1: float = t1) -> Any:
            return solve(lambda t, y: net(y), y0, t1=t1, rtol=1e-5, atol=1e-5, gradient="continuous-adjoint")

        for _ in range(2):  # what is looked at once
            output().y1.sum().backward()
        evaluations: list[int] = []
        hook = net.register_forward_hook(lambda *_, evaluations=evaluations: evaluations.append(1))
        loss = output().y1.sum()
        evaluations.clear()
        with Operations() as seen:
            loss.backward()
        count = len(evaluations)
        hook.remove()
        loss = output().y1.sum()
        found.append((count, seen.count, python_calls(lambda loss=loss: loss.backward())))
    (few, operations, called), (many, more_operations, more_called) = found
    evaluations_more = many - few
    assert evaluations_more > 20
    with Operations() as one:
        y0.detach()
    again = one.count - 1  # torch 2.6 dispatches each `detach` twice, of which there are two an evaluation
    # 44.3 and 74.9; before products were freed of casts and the graph was walked once, 45.1 and 88.2
    assert (more_operations - operations) / evaluations_more < 45 + 2 * again
    assert (more_called - called) / evaluations_more < 80
