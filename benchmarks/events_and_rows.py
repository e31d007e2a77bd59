"""Events and steps of their own on torch, beside what does the same without this library, dopri5.

An event ends a ball's fall from 10 m, and an MLP's solve where the sum of its state meets a level, beside
`torchdiffeq.odeint_event`, which asks the event's sign at the ends of steps alone; odenet looks at eight parts of every
step. Van der Pol's oscillator (mu = 5) never meets its event, and torchdiffeq would go on for ever: beside it is the
same solve without an event.

Rows: a batch with `per_sample=True` beside a loop that solves its rows one by one, without gradients and with them.

Milliseconds are the least of interleaved runs in one process, in time of the thread; steps are those accepted, of rows
the most that one of them took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchdiffeq
from torch import Tensor

import odenet_torch
from benchmarks.adaptive_torch import Mlp
from odenet import PIDController

TITLE = "Events, and rows with steps of their own, on torch"
REPEATS = 15


def rows() -> Iterator[dict[str, Any]]:
    """One row a problem."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield from events()
    for batch, width, hidden in ((16, 4, 16), (128, 16, 64)):
        for train in (False, True):
            yield of_rows(batch, width, hidden, train)


def events() -> Iterator[dict[str, Any]]:
    """Solves that an event ends, and one that none ends."""
    net, many = Mlp(8, 32), torch.randn(32, 8)
    weight = torch.tensor(-9.81, dtype=torch.float64)
    ball = torch.tensor([10.0, 0.0], dtype=torch.float64)
    wheel = torch.tensor([2.0, 0.0], dtype=torch.float64)
    with torch.no_grad():
        level = odenet_torch.solve(net, many, t1=2.0, rtol=1e-6, atol=1e-6).y1.sum()

    def falling(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], weight])

    def oscillator(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])

    cases: list[tuple[str, Any, Tensor, float, Callable[[Tensor, Tensor], Tensor], bool]] = [
        ("ball, until it lands", falling, ball, 10.0, lambda t, y: y[0], True),
        ("MLP 32 x 8, until its sum is met", net, many, 10.0, lambda t, y: y.sum() - level, True),
        ("van der Pol to t=30, never met", oscillator, wheel, 30.0, lambda t, y: y[0] - 10, False),
    ]
    for name, field, y0, end, event, ends in cases:
        given = {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6}

        def own(field: Any = field, y0: Tensor = y0, end: float = end, event: Any = event, given: Any = given) -> Any:
            return odenet_torch.solve(field, y0, t1=end, event=event, **given)

        def theirs(field: Any = field, y0: Tensor = y0, event: Any = event) -> Any:
            zero = torch.zeros((), dtype=y0.dtype)
            return torchdiffeq.odeint_event(
                field,
                y0,
                zero,
                event_fn=event,
                method="dopri5",
                odeint_interface=torchdiffeq.odeint,
                rtol=1e-6,
                atol=1e-6,
            )

        def plain(field: Any = field, y0: Tensor = y0, end: float = end, given: Any = given) -> Any:
            return odenet_torch.solve(field, y0, t1=end, **given)

        with torch.no_grad():
            one, other = least([own, theirs if ends else plain])
            steps = own().stats.steps
        yield row(name, steps, one, "torchdiffeq.odeint_event" if ends else "the same without an event", other)


def of_rows(batch: int, width: int, hidden: int, train: bool) -> dict[str, Any]:
    """A batch whose rows have steps of their own."""
    net, y0 = Mlp(width, hidden), torch.randn(batch, width)
    rates = torch.logspace(-1, 1, batch).unsqueeze(1)  # rows of different speed: the state has its own
    start = torch.cat([y0, rates], 1)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.cat([y[:, -1:] * net(t, y[:, :-1]), torch.zeros_like(y[:, -1:])], 1)

    control = PIDController(rtol=1e-4, atol=1e-4, per_sample=True)

    def together() -> Any:
        found = odenet_torch.solve(field, start, control=control)
        if train:
            found.y1.sum().backward()
        return found

    def apart() -> None:
        found = [odenet_torch.solve(field, one, rtol=1e-4, atol=1e-4, solver="dopri5") for one in start.split(1)]
        if train:
            torch.cat([each.y1 for each in found]).sum().backward()

    with torch.set_grad_enabled(train):
        one, other = least([together, apart])
        steps = int(together().stats.steps.max())
    name = f"rows {batch} x {width}, MLP of {hidden}, {'training' if train else 'inference'}"
    return row(name, steps, one, "a loop over the rows", other)


def row(problem: str, steps: Any, own: float, beside: str, other: float) -> dict[str, Any]:
    """A row of the table."""
    return {
        "problem": problem,
        "steps": steps,
        "odenet, ms": own,
        "beside": beside,
        "that, ms": other,
        "ratio": own / other,
    }


def least(runs: list[Callable[[], Any]]) -> list[float]:
    """The least milliseconds of each."""
    best = [float("inf")] * len(runs)
    for repeat in range(REPEATS + 2):
        for i, run in enumerate(runs):
            start = time.thread_time()
            run()
            if repeat > 1:
                best[i] = min(best[i], 1e3 * (time.thread_time() - start))
    return best
