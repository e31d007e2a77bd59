"""What makes rows with steps of their own, and the looks of an event, cheap, where it could make them wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from odenet import Event, PIDController, UnsupportedError
from odenet_torch import solve
from odenet_torch.steps import weighted_sum

ROWS = PIDController(rtol=1e-8, atol=1e-8, per_sample=True)


class Operations(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count and run."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_slope_that_is_a_parameter_keeps_no_hook() -> None:
    rate = nn.Parameter(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
    y0 = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        rate.grad = None
        solve(lambda t, y: rate, y0, t1=2.0, control=ROWS).y1.sum().backward()
        assert not rate._backward_hooks
        torch.testing.assert_close(rate.grad, torch.full_like(rate, 2.0))


def test_a_slope_that_is_the_state_itself() -> None:
    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    solve(lambda t, y: y, y0, control=ROWS).y1.sum().backward()
    torch.testing.assert_close(y0.grad, torch.full_like(y0, math.e), rtol=1e-6, atol=0)


@pytest.mark.parametrize("twice", [False, True], ids=["first", "second"])
def test_a_row_that_is_not_read_has_no_gradient_where_its_derivative_is_infinite(twice: bool) -> None:
    y0 = torch.tensor([[1.0], [0.0]], dtype=torch.float64, requires_grad=True)
    y1 = solve(lambda t, y: y.sqrt(), y0, control=ROWS).y1
    (g,) = torch.autograd.grad(y1[0].sum(), y0, create_graph=twice)
    torch.testing.assert_close(g, torch.tensor([[1.5], [0.0]], dtype=torch.float64), rtol=1e-6, atol=1e-12)
    if twice:  # of (sqrt(y) + 1/2)^2
        (h,) = torch.autograd.grad(g[0].sum(), y0)
        torch.testing.assert_close(h[0].item(), -0.25, rtol=1e-5, atol=0)


def test_gradients_of_rows_are_those_of_each_row_alone_also_for_batched_vectors() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y1 = solve(lambda t, y: net(y), y0, control=ROWS).y1
    vectors = torch.randn(2, 4, 3, dtype=torch.float64)
    (found,) = torch.autograd.grad(y1, y0, vectors, is_grads_batched=True, retain_graph=True)
    for vector, g in zip(vectors, found, strict=True):
        torch.testing.assert_close(torch.autograd.grad(y1, y0, vector, retain_graph=True)[0], g)
    alone = [solve(lambda t, y: net(y), row, rtol=1e-8, atol=1e-8).y1 for row in y0.split(1)]
    (right,) = torch.autograd.grad(torch.cat(alone), y0, vectors[0])
    torch.testing.assert_close(found[0], right, rtol=1e-6, atol=1e-8)


def test_rows_that_read_others_by_little_are_refused() -> None:
    y0 = torch.randn(6, 2, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match="rows read each other"):
        solve(lambda t, y: -y + 1e-6 * y.mean(0), y0, control=ROWS)


def test_rows_take_few_operations_a_step() -> None:
    y0 = torch.tensor([[1.0], [1.5], [2.0]], dtype=torch.float64)
    counts, steps = [], []
    for t1 in (5.0, 10.0):
        with Operations() as seen, torch.no_grad():
            stats = solve(lambda t, y: -y, y0, t1=t1, control=ROWS, ts=[t1 / 3, t1]).stats
        counts.append(seen.count)
        steps.append(int((stats.steps + stats.rejected).max()))
    assert (counts[1] - counts[0]) / (steps[1] - steps[0]) < 160  # 151; 175 before stages shared times and sizes


@pytest.mark.parametrize(
    ("condition", "right"),
    [
        (lambda t, y: torch.stack([t - 5, t - 0.4]), 0.4),
        (lambda t, y: t > 0.25, 0.25),
        (lambda t, y: (t - 0.31) * (t - 0.62) * (t - 0.93), 0.31),
        (lambda t, y: t * (t - 0.5), 0.5),
    ],
    ids=["the second entry", "boolean", "three roots in a step", "zero at t0"],
)
def test_changes_are_seen_whatever_the_other_looks_say(condition: Callable[[Tensor, Tensor], Tensor], right: float):
    y0 = torch.ones(2, dtype=torch.float64)
    found = solve(
        lambda t, y: 0 * y, y0, t1=1.0, event=Event(condition), control=PIDController(1e-6, 1e-6, first_step=1.0)
    )
    assert found.event_t is not None
    assert found.event_t.item() == pytest.approx(right, abs=1e-9)


def test_a_condition_that_writes_on_a_state_is_refused_wherever_it_does() -> None:
    from odenet import StateError

    for late in (0.1, 0.95):

        def condition(t: Tensor, y: Tensor, late: float = late) -> Tensor:
            if t > late:
                y.mul_(1.0)
            return t - 5

        with pytest.raises(StateError, match="wrote on the state"):
            solve(lambda t, y: 0 * y, torch.ones(2), t1=1.0, rtol=1e-6, atol=1e-6, event=condition)


KEPT: list[Tensor] = []


def remembering(t: Tensor, y: Tensor) -> Tensor:
    KEPT.append(y)
    return y.sum() - LEVEL


LEVEL = 0.8


@pytest.mark.parametrize(
    ("condition", "together"),
    [
        (lambda t, y: y.sum() - LEVEL, True),
        (lambda t, y: y < LEVEL / 2, True),
        (lambda t, y: torch.stack([y[0] - LEVEL / 2, abs(t) + 1]), True),
        (lambda t, y: y.sum() - LEVEL if t > 0 else 1.0, False),  # branches
        (lambda t, y: float(y.sum()) - LEVEL, False),  # asks for numbers
        (lambda t, y: y.sum() - sum([LEVEL]), False),  # calls what is not torch's
        (lambda t, y: y.sum() - LEVEL + 0 * len(KEPT), False),
        (lambda t, y: torch.add(y.sum(), -LEVEL, out=torch.empty(())), False),
        (remembering, False),
        # torch finds out that it cannot, or not with the same values
        (lambda t, y: y[y > 0].sum() - LEVEL, False),
        (lambda t, y: y.sum() - LEVEL + 0 * torch.bernoulli(y.abs().clamp(max=1)), False),
    ],
)
def test_conditions_are_asked_at_all_places_at_once_where_they_only_compute(
    condition: Callable[[Tensor, Tensor], Any], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def solved() -> tuple[float | None, Any]:
        found = solve(lambda t, y: -y, torch.ones(2, dtype=torch.float64), event=Event(condition), rtol=1e-9, atol=1e-9)
        return None if found.event_t is None else found.event_t.item(), found.result

    def counted(of: Any, *arguments: Any) -> Any:
        value = batched(of, *arguments)
        calls.append(value is not None)
        return value

    from odenet_torch.steps import events

    batched = events.BatchedCondition.entries
    monkeypatch.setattr(events.BatchedCondition, "entries", counted)
    for _ in range(2):  # the first time it is compared with single calls
        together_t, result = solved()
        assert any(calls) == together
    if together:
        assert all(calls)
    monkeypatch.setattr(events, "arithmetic", lambda _: False)
    count = len(calls)
    alone_t, alone = solved()
    assert len(calls) == count
    assert result is alone
    assert together_t == pytest.approx(alone_t, abs=1e-12, nan_ok=True)
    assert all(type(y) is Tensor and y.shape == (2,) for y in KEPT)
    KEPT.clear()


@pytest.mark.parametrize("removed", [False, True])
def test_a_hook_of_the_field_on_its_state_stands_beside_that_of_the_gate(removed: bool) -> None:
    seen: list[Tensor] = []
    y0 = torch.tensor([[1.0], [0.0]], dtype=torch.float64, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        if y.requires_grad:
            handle = y.register_hook(lambda g: seen.append(g))
            if removed:
                handle.remove()
        return y.sqrt()  # whose derivative at zero is infinite

    solve(field, y0, control=ROWS).y1[0].sum().backward()
    assert bool(seen) is not removed
    torch.testing.assert_close(y0.grad, torch.tensor([[1.5], [0.0]], dtype=torch.float64), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("event", [None, lambda t, y: y.sum() - 1e3, lambda t, y: y.sum() - 3.0])
@torch.no_grad()
def test_solves_at_once_do_not_share_the_rows_that_are_kept_between_solves(event: Any) -> None:
    """One solve inside of another's field, and a field that fails: each has the rows of its slopes for itself."""

    def inner(y: Tensor) -> Tensor:
        return solve(lambda t, y: -y, y, t1=0.5, rtol=1e-6, atol=1e-6, event=event).y1

    def failing(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.5:
            raise ZeroDivisionError
        return y

    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    choices: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-6, "event": event}
    expected = [solve(field, y0, t1=1.0, **choices).y1 for field in (lambda t, y: y.sin() + 1, lambda t, y: y)]
    exact = torch.exp(torch.tensor(-0.5, dtype=torch.float64))
    outer = solve(lambda t, y: 1 + (inner(y) / exact).sin(), y0, t1=1.0, **choices).y1
    torch.testing.assert_close(outer, expected[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ZeroDivisionError):
        solve(failing, y0, t1=1.0, **choices)
    torch.testing.assert_close(solve(lambda t, y: y, y0, t1=1.0, **choices).y1, expected[1], rtol=0, atol=0)


@torch.no_grad()
def test_the_rows_that_are_kept_between_solves_are_few() -> None:
    for entries in range(1, 30):
        solve(lambda t, y: -y, torch.ones(entries), t1=1.0, rtol=1e-3)
    assert len(weighted_sum._spare) <= 8
    solve(lambda t, y: -y, torch.ones(1 << 14), t1=1.0, rtol=1e-3)
    assert all(rows.matrix.numel() < 1 << 14 for rows in weighted_sum._spare.values())
