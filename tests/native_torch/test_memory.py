"""Fields that reuse memory or write on what they are given: the solution and the caller's y0 are as they should be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import odenet
from odenet import GradientError, StateError
from odenet_torch import ResidualStack, odeint, odeint_adjoint

A = torch.tensor([[-0.3, 1.0], [-1.1, -0.2]], dtype=torch.float64)
Y0 = torch.tensor([[1.0, 0.5], [0.2, -1.0], [0.4, 0.7]], dtype=torch.float64)


def clean(t: Tensor, y: Tensor) -> Tensor:
    return torch.cos(t) * y @ A


def one_buffer() -> Any:
    kept = torch.empty_like(Y0)

    def field(t: Tensor, y: Tensor) -> Tensor:
        torch.mul(torch.cos(t), y @ A, out=kept)
        return kept

    return field


def copied_into_a_buffer() -> Any:
    kept = torch.empty_like(Y0)
    return lambda t, y: kept.copy_(clean(t, y).detach())


def a_view_of_a_buffer() -> Any:
    kept = torch.empty(2, *Y0.shape, dtype=Y0.dtype)

    def field(t: Tensor, y: Tensor) -> Tensor:
        kept[1] = clean(t, y)
        return kept[1]

    return field


def a_numpy_buffer() -> Any:
    kept = np.empty(Y0.shape)

    def field(t: Tensor, y: Tensor) -> Tensor:
        np.multiply(np.cos(t.detach().numpy()), y.detach().numpy() @ A.numpy(), out=kept)
        return torch.from_numpy(kept)

    return field


def on_the_state() -> Any:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return y.copy_(clean(t, y))

    return field


def beside_the_state() -> Any:
    def field(t: Tensor, y: Tensor) -> Tensor:
        slope = clean(t, y)
        y.zero_()
        return slope

    return field


def on_the_states_numpy_memory() -> Any:
    def field(t: Tensor, y: Tensor) -> Tensor:
        held = y.detach().numpy()
        held[:] = np.cos(t.detach().numpy()) * held @ A.numpy()
        return torch.from_numpy(held)

    return field


def another_shape_in_place() -> Any:
    def field(t: Tensor, y: Tensor) -> Tensor:
        return clean(t, y.t_().t())

    return field


FIELDS = (
    one_buffer,
    copied_into_a_buffer,
    a_view_of_a_buffer,
    a_numpy_buffer,
    on_the_state,
    beside_the_state,
    on_the_states_numpy_memory,
    another_shape_in_place,
)
TIMES = torch.linspace(0, 1, 4, dtype=torch.float64)
SOLVES: dict[str, Callable[..., Any]] = {
    "euler": lambda f, y: odenet.solve(f, y, steps=6).y1,
    "rk4": lambda f, y: odenet.solve(f, y, steps=6, solver="rk4", ts="all").ys,
    "reversible": lambda f, y: odenet.solve(f, y, steps=6, solver="reversible-heun", gradient="reversible").y1,
    "dopri5": lambda f, y: odenet.solve(f, y, rtol=1e-6, atol=1e-8, ts=TIMES).ys,
    "many rejected": lambda f, y: odenet.solve(f, y, control=odenet.PIDController(1e-8, 1e-8, first_step=1.0)).y1,
    "bosh3": lambda f, y: odenet.solve(f, y, rtol=1e-5, solver="bosh3", ts="all").ys,
    "fehlberg2": lambda f, y: odenet.solve(f, y, rtol=1e-4, solver="fehlberg2", ts=TIMES).ys,
    "dense": lambda f, y: odenet.solve(f, y, rtol=1e-6, dense=True).at(TIMES),
    "event": lambda f, y: odenet.solve(f, y, t1=4.0, rtol=1e-6, event=lambda t, y: y[0, 0]).y1,
    "max norm": lambda f, y: odenet.solve(f, y, control=odenet.PIDController(1e-6, 1e-8, "max")).y1,
    "per_sample": lambda f, y: odenet.solve(f, y, control=odenet.PIDController(1e-6, 1e-8, per_sample=True)).y1,
    "odeint": lambda f, y: odeint(f, y, TIMES),
    "odeint rk4": lambda f, y: odeint(f, y, TIMES, method="rk4"),
    "odeint cubic": lambda f, y: odeint(f, y, TIMES, method="rk4", options={"step_size": 0.25, "interp": "cubic"}),
    "odeint_adjoint": lambda f, y: odeint_adjoint(f, y, TIMES, adjoint_params=()),
}


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_solution_is_that_of_a_clean_field(kind: Callable[[], Any], mode: Any) -> None:
    for name, solve in SOLVES.items():
        if kind is another_shape_in_place and "odeint" in name:  # refused there: the slope has another shape
            continue
        if kind is one_buffer and mode is torch.enable_grad and name in ("reversible", "odeint_adjoint"):
            with pytest.raises(GradientError, match="by out="):
                solve(kind(), Y0.clone())
            continue
        with mode():
            right, y = solve(clean, Y0.clone()), Y0.clone()
            found = solve(kind(), y)
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12, msg=f"{kind.__name__} {name}")
        assert torch.equal(y, Y0), (kind.__name__, name)


def test_a_slope_that_is_the_state_or_part_of_it() -> None:
    """Nothing is written on: nothing is copied, and gradients are those of new tensors."""
    kinds: dict[str, tuple[Any, Any, Any]] = {
        "itself": (lambda t, y: y, lambda t, y: 1.0 * y, Y0),
        "a view": (lambda t, y: y.flip(0).transpose(0, 0), lambda t, y: y.flip(0) * 1.0, Y0),
        "expanded": (lambda t, y: y[:1].expand(3, 2), lambda t, y: y[:1].expand(3, 2) * 1.0, Y0),
        "a leaf": (lambda t, y: (y[1], -y[0]), lambda t, y: (1.0 * y[1], -y[0]), (Y0, Y0 + 1)),
        "leaves that are one tensor": (lambda t, y: (y[1], -y[0]), lambda t, y: (1.0 * y[1], -y[0]), (Y0, Y0)),
        "a constant": (lambda t, y: A[:1].expand_as(y), lambda t, y: A[:1].expand_as(y).clone(), Y0),
    }
    for name, (shared, apart, start) in kinds.items():
        for method in ("backprop", "checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint"):
            for choices in ({"steps": 5, "solver": "rk4"}, {"rtol": 1e-6}):

                def gradient(f: Any) -> Any:
                    y = odenet._tree.map(lambda leaf: leaf.clone().requires_grad_(), start)  # noqa: B023
                    end = odenet.solve(f, y, gradient=method, **choices).y1  # noqa: B023
                    loss = sum(leaf.square().sum() for leaf in odenet._tree.leaves(end))
                    return torch.autograd.grad(loss, odenet._tree.leaves(y), allow_unused=True)

                torch.testing.assert_close(gradient(shared), gradient(apart), msg=f"{name} {method} {choices}")


@pytest.mark.parametrize("kind", [on_the_state, beside_the_state])
@pytest.mark.parametrize("choices", [{"steps": 5, "solver": "rk4"}, {"steps": 5}, {"rtol": 1e-6}])
def test_gradients_of_a_field_that_writes_on_its_state(kind: Callable[[], Any], choices: Any) -> None:
    for method in ("backprop", "checkpoint", "checkpoint:states=2", "discrete-adjoint", "continuous-adjoint"):

        def gradient(f: Any) -> Tensor:
            y = Y0.clone().requires_grad_()
            stem = y * 1.0  # no leaf: torch would let f write on it
            loss = odenet.solve(f, stem, gradient=method, **choices).y1.square().sum()  # noqa: B023
            assert torch.equal(stem, Y0)
            return torch.autograd.grad(loss, y)[0]

        torch.testing.assert_close(gradient(kind()), gradient(clean), msg=method)


class Block(nn.Module):
    """Writes on its input by an activation in place, or not."""

    def __init__(self, writes: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Dropout(drop, inplace=writes) if drop else nn.ReLU(inplace=writes)
        self.linear = nn.Linear(3, 3)

    def forward(self, y: Tensor) -> Tensor:
        return self.linear(self.first(y))


@pytest.mark.parametrize("method", ["backprop", "checkpoint", "checkpoint:states=2", "discrete-adjoint"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("some", [{0, 1, 2, 3}, {2}, {0}])
def test_blocks_in_place(method: str, drop: float, some: set[int]) -> None:
    """Activations in place first in a block give what they give out of place, in each pass of the blocks' lives."""
    torch.manual_seed(0)
    blocks = [Block(n in some, drop) for n in range(4)]
    plain = [Block(False, drop) for n in range(4)]
    for block, other in zip(blocks, plain, strict=True):
        other.load_state_dict(block.state_dict())
    x = torch.randn(5, 3)
    for training in (False, True, True):
        found = []
        for stack in (ResidualStack(blocks, gradient=method), ResidualStack(plain, gradient=method)):
            stack.train(training)
            start = (x.requires_grad_() if training else x.detach()) * 1.0
            torch.manual_seed(1)
            end = stack(start)
            found.append((end, *torch.autograd.grad(end.square().sum(), list(stack.parameters()))))
            assert torch.equal(start, x)
        torch.testing.assert_close(found[0], found[1])


def test_a_block_in_place_like_none_before_it_is_refused() -> None:
    class Clamps(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return F.relu_(y)

    with pytest.raises(StateError, match="wrote on the state"):
        ResidualStack([nn.Linear(3, 3), nn.Linear(3, 3), Clamps()])(torch.randn(5, 3))


def test_what_cannot_be_copied_in_time_is_refused() -> None:
    kept = torch.empty(3, *Y0.shape, dtype=Y0.dtype)
    calls = 0

    def ring(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return kept[calls % 3].copy_(clean(t, y))

    late = torch.empty_like(Y0)

    def sometimes(t: Tensor, y: Tensor) -> Tensor:
        return late.copy_(clean(t, y)) if t > 0.5 else clean(t, y)

    def clamps(t: Tensor, y: Tensor) -> Tensor:
        return clean(t, y.clamp_(min=-0.5) if t > 0.5 else y)

    for field, text in ((ring, "slope"), (sometimes, "slope"), (clamps, "state")):
        for choices in ({"steps": 8, "solver": "rk4"}, {"rtol": 1e-8}, {"rtol": 1e-8, "solver": "tsit5"}):
            with pytest.raises(StateError, match=f"wrote on (a|the) {text}"):
                print(field, odenet.solve(field, Y0, **choices).y1)  # pyright: ignore[reportArgumentType]
    table = torch.stack([Y0, 2 * Y0])  # shared, and never written on
    found = odenet.solve(lambda t, y: table[int(t * 1.999)], Y0, steps=8, solver="rk4").y1
    torch.testing.assert_close(found, 2.5 * Y0, rtol=0.1, atol=0)


def test_a_condition_that_writes_is_refused() -> None:
    with pytest.raises(StateError, match="condition wrote on the state"):
        odenet.solve(clean, Y0, t1=4.0, rtol=1e-6, event=lambda t, y: y.sub_(0.1)[0, 0])


def test_requires_grad_is_left_as_it_was() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            y.requires_grad_()
            return torch.autograd.grad(-(y**2).sum() / 2, y, create_graph=True)[0]

    for choices in ({"steps": 3}, {"rtol": 1e-4}):
        for method in ("backprop", "checkpoint", "discrete-adjoint"):
            y = torch.ones(2)
            odenet.solve(field, y, gradient=method, **choices)  # pyright: ignore[reportArgumentType]
            assert not y.requires_grad
