"""Looks at what lies within steps are put off and made together: the event is the same, and all that is said of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import odenet
from odenet import Event, PIDController, Result
from odenet_torch.steps.batched_condition import BatchedCondition
from odenet_torch.steps.events import Watch

pytestmark = pytest.mark.usefixtures("double")
STEPS = 20  # of a tenth


def advancing(t: Tensor, y: Tensor) -> Tensor:
    """y(t) = t, beside a wave."""
    return torch.stack([torch.ones_like(t), torch.cos(3 * t)])


def solved(field: Callable[[Tensor, Any], Any], event: Any, **choices: Any) -> odenet.Solution[Any]:
    control = PIDController(rtol=1e-3, atol=1e-3, first_step=0.1, max_step=0.1, **choices.pop("control", {}))
    choices = {"t1": STEPS / 10, "y0": torch.zeros(2), **choices}
    return odenet.solve(field, choices.pop("y0"), control=control, event=event, **choices)


def facts(solution: odenet.Solution[Any]) -> tuple[Any, ...]:
    """All that a solve says."""
    stats, y1 = solution.stats, solution.y1
    y1 = y1 if isinstance(y1, Tensor) else y1["y"]
    t = solution.event_t
    return solution.result, repr(t), repr(y1), stats.steps, stats.rejected, stats.f_evaluations, solution.ts.tolist()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[odenet.Solution[Any], int]]:
    """A solve, the same when nothing is put off as when steps are; and how many were."""
    counts: list[bool] = []
    put_off = Watch.put_off

    def counted(watch: Watch, step: Any) -> bool:
        counts.append(put_off(watch, step))
        return counts[-1]

    def run(*arguments: Any, **choices: Any) -> tuple[odenet.Solution[Any], int]:
        with torch.no_grad():
            solved(*arguments, **choices)  # a condition is compared with single calls when it is first seen
            monkeypatch.setattr(Watch, "put_off", lambda watch, step: False)
            alone = solved(*arguments, **choices)
            monkeypatch.setattr(Watch, "put_off", counted)
            counts.clear()
            together = solved(*arguments, **choices)
            monkeypatch.setattr(Watch, "put_off", put_off)
        assert facts(together) == facts(alone)
        return together, sum(counts)

    return run


def beside(early: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Two roots in one step, before another event."""
    return lambda t, y: torch.stack([y[0] - 0.75, (y[0] - early) * (y[0] - early - 0.05) + 0 * t])


def twice(k: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Two roots in step k."""
    first, second = k / 10 + 0.026, k / 10 + 0.071
    return lambda t, y: (y[0] - first) * (y[0] - second)


@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_two_roots_in_any_step_are_found_as_if_no_later_step_had_been_taken(both, direction):
    for k in range(STEPS):
        solution, later = both(advancing, Event(twice(k), direction=direction))
        assert later >= min(k + 1, STEPS - 1)
        assert solution.result is Result.EVENT
        assert solution.event_t.item() == pytest.approx(k / 10 + (0.071 if direction == 1 else 0.026), abs=1e-12)
        assert solution.stats.steps == k + 1


def test_the_first_of_several_events_is_said(both):
    for early in (0.026, 0.226, 0.626):
        solution, later = both(advancing, beside(early))
        assert later > 0
        assert solution.event_t.item() == pytest.approx(early, abs=1e-12)
    # a change in the other direction is passed over, and not that after it
    other = lambda t, y: (y[0] - 0.026) * (y[0] - 0.58) * (y[0] - 0.62) * (y[0] - 0.66)  # noqa: E731
    solution, _ = both(advancing, Event(other, direction=1))
    assert solution.event_t.item() == pytest.approx(0.58, abs=1e-12)
    solution, later = both(advancing, lambda t, y: (y[0] - 0.326) * (y[0] - 0.371) > -1.0)
    assert (solution.result, later > STEPS - 3) == (Result.SUCCESS, True)


def test_what_comes_beyond_an_event_does_not_hide_it(both):
    def undefined(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.55:
            raise ValueError("beyond")
        return advancing(t, y)

    def grows(t: Tensor, y: Tensor) -> Tensor:
        return advancing(t, y) * torch.where(t > 0.55, torch.inf, 1.0)

    for field in (undefined, grows):
        for k in (1, 4):
            assert both(field, twice(k))[0].event_t.item() == pytest.approx(k / 10 + 0.026, abs=1e-12)
    with torch.no_grad():
        with pytest.raises(ValueError, match="beyond"):
            solved(undefined, twice(8))
        with pytest.raises(odenet.SolveError):
            solved(grows, twice(8))
    solution, _ = both(advancing, twice(3), control={"max_steps": 4})
    assert solution.result is Result.EVENT
    solution, _ = both(advancing, twice(3), control={"max_steps": 3, "throw": False})
    assert (solution.result, solution.stats.steps) == (Result.MAX_STEPS, 3)


def test_a_condition_that_is_nan_within_a_step_ends_the_solve_before_it(both):
    hollow = lambda t, y: ((y[0] - 0.33) ** 2 - 1e-4).sqrt()  # noqa: E731
    solution, later = both(advancing, hollow, control={"throw": False})
    assert later > 3
    assert (solution.result, solution.stats.steps) == (Result.EVENT_NAN, 3)


@pytest.mark.parametrize("k", range(1, STEPS, 3))
def test_a_condition_that_was_far_from_its_root_is_looked_at_where_it_jumps(both, k):
    at = k / 10 + 0.03
    solution, _ = both(advancing, lambda t, y: 10.0 - 20.0 * (y[0] > at))
    assert solution.event_t.item() == pytest.approx(at, abs=1e-9)
    assert solution.stats.steps == k + 1
    solution, _ = both(advancing, lambda t, y: 10.0 + 1e-3 * (at - y[0]).sqrt(), control={"throw": False})
    assert (solution.result, solution.stats.steps) == (Result.EVENT_NAN, k)
    solution, _ = both(advancing, lambda t, y: 10.0 + y[0])
    assert solution.result is Result.SUCCESS


def far(level: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda t, y: y[0] - level


def test_the_ends_of_steps_are_looked_at_together_where_the_condition_is_far_from_its_root(monkeypatch):
    calls, at = [], BatchedCondition.at
    monkeypatch.setattr(BatchedCondition, "at", lambda of, t, y: calls.append(t) or at(of, t, y))
    with torch.no_grad():
        for level, fewest, most in ((1e6, 2, 2), (2.05, 5, STEPS + 1)):
            for _ in range(2):  # the first time it is compared with single calls
                calls.clear()
                solved(advancing, far(level))
            assert fewest <= len(calls) <= most


@pytest.mark.parametrize(
    "choices",
    [{"ts": [0.1, 0.33, 0.9]}, {"ts": "all"}, {"dense": True}, {"t1": -2.0}, {"solver": "heun"}, {"solver": "tsit5"}],
)
def test_two_roots_with_other_choices(both, choices):
    solution, _ = both(advancing, twice(-4 if "t1" in choices else 3), **choices)
    assert solution.event_t.item() == pytest.approx(-0.329 if "t1" in choices else 0.326, abs=1e-9)


@pytest.mark.parametrize("kind", ["complex", "tree", "gradient"])
def test_two_roots_in_a_state_of_another_kind(kind):
    if kind == "tree":
        solution = solved(lambda t, y: {"y": torch.ones(1)}, lambda t, y: (y["y"] - 0.326) * (y["y"] - 0.371),
                          y0={"y": torch.zeros(1)})  # fmt: skip
    elif kind == "complex":
        solution = solved(lambda t, y: torch.ones_like(y), lambda t, y: (y.real - 0.326) * (y.real - 0.371),
                          y0=torch.zeros(1, dtype=torch.complex128))  # fmt: skip
    else:
        w = torch.tensor(1.0, requires_grad=True)
        solution = solved(lambda t, y: w * advancing(t, y), twice(3))
        (gradient,) = torch.autograd.grad(solution.event_t, w)
        assert gradient.item() == pytest.approx(-0.326, abs=1e-9)
    assert solution.event_t.item() == pytest.approx(0.326, abs=1e-12)


def test_slopes_that_the_field_writes_on_later_are_those_of_their_step():
    """A ring of slopes, longer than a step has stages, and shorter than the steps that wait."""
    ring, count = [torch.zeros(2) for _ in range(10)], [0]

    def field(t: Tensor, y: Tensor) -> Tensor:
        count[0] += 1
        return ring[count[0] % 10].copy_(advancing(t, y))

    with torch.no_grad():
        solved(advancing, crossed := twice(3))
        assert math.isclose(solved(field, crossed).event_t.item(), 0.326, abs_tol=1e-12)
