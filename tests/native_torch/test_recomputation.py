"""What is kept between the passes, and what is run again in which order."""

from __future__ import annotations

import io

import pytest
import torch
from keeping_methods import PAIRS
from quick import quick

import odenet
from odenet._gradients.revolve import schedule
from odenet_torch import solve
from odenet_torch.verbs.measure import LiveBytes

STATE = (256, 16)
BYTES = 256 * 16 * 8


def field(t, y, w):
    return torch.tanh(y * w)


def start():
    y0 = torch.linspace(0.1, 1, 256 * 16, dtype=torch.float64).reshape(STATE).requires_grad_()
    return y0, torch.ones(16, dtype=torch.float64, requires_grad=True)


def steps_evaluated(gradient, steps, solver="euler"):
    """The step of each evaluation on the way back, where the backward pass takes a VJP of it, and where it does not."""
    stages = odenet.SOLVERS[solver].stages
    lines = io.StringIO()  # no list, from which the trace of a single evaluation is taken again
    y0, w = start()

    def watched(t, y, w):
        print(round(float(t) * steps, 3), torch.is_grad_enabled(), file=lines)
        return field(t, y, w)

    y1 = solve(watched, y0, w, steps=steps, solver=solver, gradient=gradient).y1
    forward = lines.tell()
    torch.autograd.grad(y1.sum(), [y0, w])
    seen = [line.split() for line in lines.getvalue()[forward:].splitlines()]
    assert len(seen) % stages == 0
    return [(round(float(t)), grad == "True") for t, grad in seen[::stages]]


@pytest.mark.parametrize(("steps", "states"), [(7, 2), (10, 3), (20, 4), (12, 1), (6, 6), (5, 9), (1, 1)])
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_steps_run_again_in_the_order_of_the_schedule(steps, states, solver):
    """That order is held to the published one in tests/core/test_revolve.py."""
    expected = []
    for turn in schedule(steps, states).turns:
        expected += [(n, False) for n in range(turn.origin, turn.step)] + [(turn.step, True)]
    assert steps_evaluated(f"checkpoint:states={states}", steps, solver) == expected


@pytest.mark.parametrize(("steps", "segments"), [(12, 3), (10, 4), (5, 5), (4, 1), (3, 9)])
def test_segments_run_again_as_a_whole_the_last_one_first(steps, segments):
    parts = odenet.Checkpoint(segments=segments).parts(steps)
    expected = [(n, True) for first, end in reversed(parts) for n in range(first, end)]
    assert steps_evaluated(f"checkpoint:segments={segments}", steps) == expected


def test_every_step_runs_again_alone_without_an_option():
    assert steps_evaluated("checkpoint", 6, "heun") == [(n, True) for n in reversed(range(6))]


# every method with euler, and every solver with some of them
SOME = [pair for n, pair in enumerate(PAIRS) if pair[0] not in odenet.SOLVERS or pair[0] == "euler" or n % 5 == 0]


@pytest.mark.parametrize(("solver", "gradient"), quick(PAIRS, SOME))
def test_the_states_kept_between_the_passes_are_those_of_the_cost_model(solver, gradient):
    y0, w = start()
    with LiveBytes() as mode:
        y1 = solve(field, y0, w, steps=20, solver=solver, gradient=gradient).y1
    assert y1.requires_grad
    cost = odenet.gradient(gradient).cost(odenet.solver(solver), 20)
    assert mode.live // BYTES == cost.states + 1  # the solution is a copy, which is the caller's to write on


@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri8"])
def test_backprop_keeps_every_stage(solver):
    """So the count sees what it should see."""
    y0, w = start()
    with LiveBytes() as mode:
        y1 = solve(field, y0, w, steps=20, solver=solver).y1
    assert y1.requires_grad
    assert mode.live // BYTES >= 20 * odenet.SOLVERS[solver].stages


@pytest.mark.parametrize("solver", ["euler", "kutta3"])
def test_a_budget_of_memory_is_kept_and_used(solver):
    """The peak of both passes is under the budget, without the gradient of the weights, and not far under it."""
    evaluations = []
    for states in (38, 52, 200):
        y0, w = start()
        count = 0

        def counted(t, y, w):
            nonlocal count
            count += 1
            return field(t, y, w)

        with LiveBytes() as mode:
            y1 = solve(counted, y0, w, steps=60, solver=solver, gradient=f"checkpoint:memory={states * BYTES}").y1
            torch.autograd.grad(y1.sum(), [y0, w])
        evaluations.append(count)
        peak = (mode.peak - 4 * w.nbytes) / BYTES
        assert peak <= states
        if states == 38:
            assert peak > states - 8
    assert evaluations[0] > evaluations[1] > evaluations[2]


def test_a_budget_that_holds_every_state_computes_each_step_once_more():
    y0, w = start()
    seen = []

    def counted(t, y, w):
        seen.append(t)
        return field(t, y, w)

    y1 = solve(counted, y0, w, steps=10, gradient="checkpoint:memory=1G").y1
    torch.autograd.grad(y1.sum(), [y0, w])
    assert len(seen) == 20
