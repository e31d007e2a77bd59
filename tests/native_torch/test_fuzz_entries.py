"""Random calls of the other entries (drop-ins, NeuralODE, ResidualStack, value_and_grad, convert): solved, or refused.

The judge of `tests/support/fuzz.py` compares values of `solve`; here bad values meet every argument of every entry, and
what is raised must be an error of ours. What is not bad must be solved.
"""

from __future__ import annotations

import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import odenet
import odenet_torch

NAN, INF, HUGE = float("nan"), float("inf"), 10**400
SECONDS = 120

STATES: tuple[Any, ...] = (
    None, "a", np.str_("a"), HUGE, [], {}, (), True, NAN, object(), 1e308, -0.0, 5e-324, [1.0, "a"], np.array([None]),
    np.array(["a"]), np.ones((2, 2))[::-1], torch.ones(2, dtype=torch.float8_e5m2), torch.ones(2, device="meta"),
    torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.empty(0), torch.tensor(1.0),
    torch.full((2,), 1e308, dtype=torch.float64), torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.bool),
    torch.ones(4, 4)[::2, ::2].T, torch.ones(4, 2, requires_grad=True)[1:3, 0], torch.tensor([NAN, 1.0]),
    torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), (torch.ones(2), 1.0),
    (torch.ones(2), None), {"a": torch.ones(2)}, torch.ones(1, 2, 1, 2), torch.full((2,), 5e-324, dtype=torch.float64),
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    NAN, INF, -INF, HUGE, "a", "", None, b"1", 1j, True, [1.0], {}, np.str_("1e-3"), 1e308, 5e-324, -1.0, 0, -0.0,
    object(), np.array([1e-3]), np.array(["a"]), torch.tensor(1e-3), torch.tensor([1e-3, 1.0, 2.0]), 2**63, 1e-400,
    torch.tensor(0.5, device="meta"), torch.tensor(0.5, requires_grad=True),
)  # fmt: skip
TIMES: tuple[Any, ...] = (
    None, "a", 1.0, [], [0.0], [0.0, 1.0], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([0, 1]),
    torch.tensor([0.0, 1.0, 0.5]), torch.tensor([0.0, NAN]), torch.tensor([0.0, INF]), torch.tensor(0.0),
    torch.tensor([[0.0, 1.0]]), torch.empty(0), torch.tensor([0.0, 1.0], device="meta"), np.array([0.0, 1.0]),
    torch.tensor([0.0, 1e-310], dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float16), HUGE,
    torch.tensor([True, False]), torch.tensor([0j, 1j]), torch.tensor([0.0, 1.0], requires_grad=True),
    torch.tensor([0.0, 1.0]).to_sparse(), torch.arange(4.0)[::2] / 2,
)  # fmt: skip
NAMES: tuple[Any, ...] = (
    "",
    0,
    False,
    None,
    "eulr",
    np.str_("rk4"),
    b"rk4",
    "rk4 ",
    object(),
    [],
    "dopri5",
    "alf",
    1.5,
)
OPTIONS: tuple[Any, ...] = (
    None, {}, {"step_size": 0.1}, {"step_size": 0}, {"step_size": NAN}, {"step_size": "a"}, {"step_size": HUGE}, "a",
    {"grid_points": [0.0]}, {"nothing": 1}, {"max_num_steps": 0}, {"max_num_steps": 3}, {"max_num_steps": 2.5}, {1: 2},
    {"first_step": -1}, {"first_step": "a"}, {"norm": 3}, {"norm": "seminorm"}, {"jump_t": ["a"]}, {"jump_t": 0.5},
    {"step_t": torch.tensor([0.5])}, {"min_step": 1e308}, {"safety": 2}, {"dtype": "a"}, {"perturb": 1},
    {"grid_constructor": 1}, {"interp": "x"}, {"jump_t": torch.tensor([NAN])}, {"ifactor": NAN},
)  # fmt: skip
FUNCTIONS: tuple[Any, ...] = (
    None, "f", 3, lambda t: t, lambda t, y, z: y, lambda t, y: None, lambda t, y: "a", lambda t, y: 1.0,
    lambda t, y: y.reshape(-1)[:1], lambda t, y: y * NAN, lambda t, y: [y], lambda t, y: (y, y), nn.Linear(3, 3),
    lambda t, y: y.double(), lambda t, y: y.numpy(), lambda t, y: y.to("meta"),
)  # fmt: skip
WORDS: tuple[Any, ...] = (
    "",
    0,
    False,
    None,
    "backprob",
    "checkpoint:",
    "checkpoint:states=0",
    b"x",
    object(),
    ":",
    "auto",
)
COUNTS: tuple[Any, ...] = (0, -1, 2.5, True, "4", 10**30, HUGE, NAN, [4], None, 4.0, np.int64(4), np.float64(3), {})


def decay(t, y):
    """The field of the good calls."""
    return -0.5 * y


class Net(nn.Module):
    """The same as a module, of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.5))

    def forward(self, t: Any, y: Any) -> Any:
        return -self.w * y


def _drop_in(call: Callable[..., Any], net: bool = False) -> tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]:
    good = {"func": Net() if net else decay, "y0": torch.ones(2), "t": torch.tensor([0.0, 0.5])}
    good |= {"rtol": 1e-3, "atol": 1e-6, "method": None, "options": None}
    bad = {"func": FUNCTIONS, "y0": STATES, "t": TIMES, "rtol": NUMBERS, "atol": NUMBERS, "method": NAMES}
    return call, good, bad | {"options": OPTIONS}


def entries() -> dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]]:
    """Of each entry: the call, good arguments, and bad ones."""
    adjoint, good, bad = _drop_in(odenet_torch.odeint_adjoint, net=True)
    also = {"adjoint_rtol": NUMBERS, "adjoint_atol": NUMBERS, "adjoint_method": NAMES, "adjoint_options": OPTIONS}
    also |= {"adjoint_params": (None, (), "a", [1.0], (torch.ones(2),), 3)}

    def backward(**choices: Any) -> Any:
        ys = adjoint(**choices)
        leaves = [leaf for leaf in (ys if isinstance(ys, tuple) else (ys,)) if leaf.requires_grad]
        if leaves:
            torch.stack([leaf.real.sum() for leaf in leaves]).sum().backward()
        return ys

    def event(**choices: Any) -> Any:
        choices.pop("t")
        return odenet_torch.odeint_event(
            choices.pop("func"), choices.pop("y0"), choices.pop("t0"), odeint_interface=odenet_torch.odeint, **choices
        )

    _, plain, of_plain = _drop_in(odenet_torch.odeint)
    events = {"t0": torch.tensor(0.0), "event_fn": lambda t, y: y.reshape(-1)[0] - 0.8, "reverse_time": False}
    of_events = {"t0": TIMES[:4] + TIMES[12:15] + NUMBERS, "event_fn": FUNCTIONS, "reverse_time": (1, "a", None)}

    def module(**choices: Any) -> Any:
        y = choices.pop("y")
        return odenet_torch.NeuralODE(choices.pop("field"), **choices)(y)

    solve = {"rtol": NUMBERS, "atol": NUMBERS, "t0": NUMBERS, "t1": NUMBERS, "gradient": WORDS, "solver": NAMES}

    def stack(**choices: Any) -> Any:
        y = choices.pop("y")
        y = odenet_torch.ResidualStack(choices.pop("blocks"), **choices)(y)
        return y.real.sum().backward() if isinstance(y, torch.Tensor) and y.requires_grad else y

    def convert(**choices: Any) -> Any:
        torch.manual_seed(0)
        model = nn.Sequential(*(Residual() for _ in range(4)))
        found = odenet_torch.convert(choices.pop("model") or model, **choices)
        return found(torch.ones(2, 3)).sum().backward()

    def rows(**choices: Any) -> Any:
        control = odenet.PIDController(choices.pop("rtol"), choices.pop("atol"), per_sample=True)
        y0 = choices.pop("y0")
        return odenet.solve(decay, y0, control=control, backend="torch", **choices)

    def value(**choices: Any) -> Any:
        field, y0, w, loss = (choices.pop(name) for name in ("field", "y0", "weights", "loss"))
        return odenet.value_and_grad(loss, field, y0, w, backend="torch", **choices)

    linear = [nn.Linear(3, 3) for _ in range(4)]
    return {
        "odeint": (odenet_torch.odeint, plain, of_plain),
        "odeint fixed": (odenet_torch.odeint, plain | {"method": "rk4"}, of_plain),
        "odeint_adjoint": (backward, good, bad | also),
        "odeint_event": (event, plain | events, {k: v for k, v in of_plain.items() if k != "t"} | of_events),
        "NeuralODE": (
            module,
            {"field": Net(), "y": torch.ones(2), "rtol": 1e-3},
            {"field": FUNCTIONS, "y": STATES, **solve, "steps": COUNTS},
        ),
        "ResidualStack": (
            stack,
            {"blocks": linear, "y": torch.ones(2, 3)},
            {
                "blocks": (None, [], "a", [None], [3], linear[0], [nn.Linear(2, 3)], {}, [lambda y: y]),
                "y": STATES, "solver": NAMES, "gradient": WORDS, "t0": NUMBERS, "t1": NUMBERS, "along": WORDS,
            },
        ),
        "convert": (
            convert,
            {"model": None, "example": torch.ones(2, 3)},
            {
                "model": (3, "a", nn.Identity(), nn.Sequential(), nn.Linear(3, 3), decay, [nn.Linear(3, 3)]),
                "example": STATES, "gradient": WORDS, "where": ("", 0, b"x", [], 3, [1], "0", ["0"], "nothing"),
                "solver": NAMES, "along": WORDS, "tolerance": NUMBERS,
            },
        ),
        "per_sample": (
            rows,
            {"y0": torch.ones(3, 2), "rtol": 1e-3, "atol": 1e-6, "t1": 0.5},
            {"y0": STATES, "rtol": NUMBERS, "atol": NUMBERS, "t0": NUMBERS, "t1": NUMBERS, "ts": TIMES},
        ),
        "value_and_grad": (
            value,
            {
                "field": lambda t, y, w: -w * y, "y0": torch.ones(2), "weights": torch.tensor(0.5),
                "loss": lambda sol: sol.y1.sum(), "steps": 4,
            },
            {
                "field": FUNCTIONS, "y0": STATES, "weights": STATES, "steps": COUNTS, "gradient": WORDS,
                "loss": (None, 3, "a", lambda sol: None, lambda sol: "a", lambda sol: sol.y1, lambda: 1, lambda s: 1.0),
            },
        ),
    }  # fmt: skip


class Residual(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(3, 3)

    def forward(self, y: Any) -> Any:
        return y + torch.tanh(self.l(y))


def made(name: str, seed: int) -> str:
    """One call, judged.

    Returns:
        "solved" or "refused".

    Raises:
        AssertionError: naming the call, whose error was not ours, or that refused what is good.
    """
    draw = random.Random(f"{name} {seed}")
    call, good, bad = entries()[name]
    spoiled = draw.sample(sorted(bad), min(len(bad), draw.choice((0, 1, 1, 1, 2))))
    chosen = good | {argument: draw.choice(bad[argument]) for argument in spoiled}
    told = f"{name} {seed}: " + ", ".join(f"{argument}={str(chosen[argument])[:80]}" for argument in spoiled)
    try:
        call(**chosen)
    except odenet.OdenetError as error:
        if not spoiled or not str(error).strip():
            raise AssertionError(told) from error
        return "refused"
    except Exception as error:
        if not of_caller(error):
            raise AssertionError(told) from error
        return "refused"
    return "solved"


def of_caller(error: Exception) -> bool:
    """Whether the caller's own function raised it: the last of what is not torch's is not ours."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in frames if "site-packages" not in name]
    called = any("modules" in name and "site-packages" in name for name in frames[-3:])
    return (own[-1] == __file__ and len(own) > 2) or called


def ring(*_: Any) -> None:
    raise TimeoutError(f"{SECONDS} s")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(entries()))
@pytest.mark.parametrize(("first", "count"), [(0, 12), pytest.param(100, 200, marks=pytest.mark.slow)])
def test_random_calls_are_solved_or_refused(name, first, count):
    before, endings = signal.signal(signal.SIGALRM, ring), Counter()
    try:
        for seed in range(first, first + count):
            signal.alarm(SECONDS)
            endings[made(name, seed)] += 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert endings["refused"]
    assert endings["solved"]
