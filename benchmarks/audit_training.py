"""The true error of the gradient while a network is trained, with the discrete adjoint alone and audited by `auto`.

32 residual blocks of width 16 (tanh, steps of 1/32), two interleaved spirals, Adam at 1e-2, 400 steps. In each step the
gradient is compared with exact checkpointing's on the same weights and batch: |g - exact| / |exact| over all weights.
`auto` begins with the discrete adjoint, too, audits itself at least every 20 steps, and moves where it is above 1e-2.
The figures of docs/paper/three-results.md are drawn from this and from the results of `gradient_order` and
`rounded_states`: `python -m benchmarks gradient_order rounded_states audit_training` makes them all.
"""

from __future__ import annotations

import copy
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn

import odenet
from odenet._files import write_atomically
from odenet._report.figures import canvas, render
from odenet._report.style import RC
from odenet_torch import ResidualStack

TITLE = "The error of the gradient in training, with and without audits"
STEPS, EVERY, AUDIT, TOLERANCE = 400, 5, 20, 1e-2
RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "three-results.png"
RUNS: dict[str, str | odenet.Gradient] = {
    "discrete-adjoint": "discrete-adjoint",
    "auto": odenet.Auto(TOLERANCE, audit=AUDIT, method=odenet.DiscreteAdjoint()),
}


def rows() -> Iterator[dict[str, Any]]:
    """One row for every fifth step of each run; the figure beside the table."""
    measured = []
    for name, method in RUNS.items():
        for row in trained(name, method):
            measured.append(row)
            yield row
    draw(measured)


def trained(name: str, method: str | odenet.Gradient) -> Iterator[dict[str, Any]]:
    """Train, and compare each gradient with the exact one."""
    torch.manual_seed(0)
    x, y = spirals(200)
    blocks = [nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16)) for _ in range(32)]
    stack = ResidualStack(blocks, gradient=method)
    model = nn.Sequential(nn.Linear(2, 16), stack, nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gradients that are far off: they are what is measured
        for step in range(STEPS):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            exact = copy.deepcopy(model) if step % EVERY == 0 else None
            loss.backward()
            if exact is not None:
                exact[1] = ResidualStack(exact[1].blocks, gradient="checkpoint")
                nn.functional.cross_entropy(exact(x), y).backward()
                yield {
                    "run": name,
                    "step": step,
                    "loss": float(loss),
                    "error": distance(model, exact),
                    "certificate": float(stack.certificate) if stack.certificate is not None else None,
                }
            optimizer.step()


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of two interleaved spirals, and which one each is of."""
    label = torch.arange(count) % 2
    turn = 3 * math.pi * torch.rand(count).sqrt() + 0.3
    radius = turn / 10
    angle = turn + math.pi * label
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), label


def distance(model: nn.Module, exact: nn.Module) -> float:
    """Relative distance of all gradients of two models."""
    one, other = (
        torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]) for net in (model, exact)
    )
    return float((one - other).norm() / other.norm())


def draw(measured: Sequence[dict[str, Any]]) -> None:
    """The three figures of the page, in one image."""
    order = json.loads((RESULTS / "gradient_order.json").read_text(encoding="utf-8"))["rows"]
    rounded = json.loads((RESULTS / "rounded_states.json").read_text(encoding="utf-8"))["rows"]
    with matplotlib.rc_context(RC):
        figure = canvas(15.6, 4.8)
        orders, bits, audits = figure.subplots(1, 3)
        depths = (16, 32, 64, 128)
        for solver, color in (("euler", "#0072B2"), ("heun", "#D55E00"), ("rk4", "#009E73")):
            for method, style, label in (
                ("discrete-adjoint:correct=no", "--o", "published"),
                ("discrete-adjoint", "-o", "corrected"),
            ):
                (row,) = (
                    row
                    for row in order
                    if (row["backend"], row["weights"], row["solver"], row["gradient"])
                    == ("torch", "smooth", solver, method)
                )
                values = [row[f"N={n}"] for n in depths]
                orders.loglog(depths, values, style, color=color, markersize=4, label=f"{solver}, {label}")
        orders.set_title("One subtraction, one order")
        for network, color in (("tanh", "#0072B2"), ("relu", "#D55E00")):
            for method, style in (
                ("checkpoint:bits=8", "-o"),
                ("checkpoint:bits=16", ":o"),
                ("discrete-adjoint", "--s"),
            ):
                cells = [
                    row
                    for row in rounded
                    if network in row["network"] and row["h"] == "1" and row["gradient"] == method
                ]
                label = f"{network}, {method.removeprefix('checkpoint:')}"
                bits.loglog(
                    [row["N"] for row in cells],
                    [row["error"] for row in cells],
                    style,
                    color=color,
                    markersize=4,
                    label=label,
                )
        bits.set_title("Steps of 1: states in few bits")
        for axes, ticks in ((orders, depths), (bits, (16, 64, 256))):
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.set_xticks([], minor=True)
        for name, color in (("discrete-adjoint", "#D55E00"), ("auto", "#0072B2")):
            cells = [row for row in measured if row["run"] == name]
            audits.semilogy(
                [row["step"] for row in cells], [max(row["error"], 1e-9) for row in cells], "-", color=color, label=name
            )
        audits.axhline(TOLERANCE, color="grey", linestyle=":", label="tolerance")
        audits.set_title("Training: left alone, and audited")
        bits.legend(loc=(0.5, 0.3), fontsize=8)
        for axes, across in ((orders, "steps N"), (bits, "steps N"), (audits, "training step")):
            axes.set_xlabel(across)
            axes.set_ylabel("relative error of the gradient")
            if axes is not bits:
                axes.legend(fontsize=8)
        content = render(figure, "png")
    write_atomically(FIGURE, lambda file: file.write(content))
