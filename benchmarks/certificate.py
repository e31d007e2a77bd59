"""The true relative error of the whole gradient over its estimate from the certificate alone (`Gradient.estimate`).

`ratio`: least, median and largest over solvers and depths; `within 3`: the share of them between 1/3 and 3; `root`: the
largest error over the square root of the estimate; `errors`: the least and the largest true error. Cells whose error
is rounding (below 1e-13) or whose certificate is 0 are left out; for `reversible`, where both are rounding, only the
latter. The last rows pool the cells of torch.

Where f is smooth the ratio is about 1 corrected, and below it uncorrected, where errors may also cancel as they add up.
It fails on the safe side where blocks do little (as after a start at zero), and on the other with ReLU: a rebuilt state
on the other side of a kink changes the VJP by a jump, and the share of such jumps goes with the certificate, so that
the norm of the error goes with its square root. With ReLU `root` is at most 0.45 here.

tanh: the network of the conformance suite, f = tanh(y A + b), width 16, batch 8, euler, heun and rk4 at N = 8, 32, 128.
conv: two 3x3 convolutions with group normalisation and the activation named, 8 channels, 10 images of digits, euler and
heun at N = 8 and 32. All in float64. "+ training": after 20 steps of SGD (rate 0.2) on 64 images; blocks of "zero" do
nothing before, so that every error and every certificate is 0.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import odenet
from odenet._jobs.data.digits import batch
from odenet._report.difference import flat, relative

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "conformance"))
import cases  # the network of the conformance suite

TITLE = "The gradient error and its estimate from the certificate"
METHODS = (
    "discrete-adjoint",
    "discrete-adjoint:iterations=2",
    "discrete-adjoint:tolerance=1e-10",
    "discrete-adjoint:predictor=extrapolate",
    "discrete-adjoint:correct=no",
    "discrete-adjoint:correct=no:anchors=8",
    "reversible",
)
REVERSIBLE = ("reversible-heun", "alf", "reversible:euler", "reversible:heun", "reversible:rk4")
ROUNDING = 1e-13
Found = tuple[float, float]
"""The true error and the estimate."""


def rows() -> Iterator[dict[str, Any]]:
    """One row a backend, network, start and method; then all cells of torch together, by what they have in common."""
    pool: dict[tuple[str, str, str], list[Found]] = {}
    for backend in ("torch", "jax"):
        for start in ("smooth", "independent"):
            for method in METHODS:
                cells = list(tanh_cells(backend, start, method))
                yield row(backend, "tanh", start, method, cells)
                if backend == "torch":
                    pool.setdefault(("tanh and conv tanh", "all but zero", kind(method)), []).extend(cells)
    for activation in ("tanh", "relu"):
        for start in ("smooth", "independent", "independent + training", "zero + training"):
            for method in METHODS[:-1]:
                cells = list(conv_cells(activation, start, method))
                yield row("torch", f"conv {activation}", start, method, cells)
                network = "tanh and conv tanh" if activation == "tanh" else "conv relu"
                group = ("conv", start) if start.startswith("zero") else (network, "all but zero")
                pool.setdefault((*group, kind(method)), []).extend(cells)
    for (network, start, methods), cells in pool.items():
        yield row("torch", network, start, methods, cells)


def kind(method: str) -> str:
    """What the estimate of a method is made by."""
    if method == "reversible":
        return method
    return "all uncorrected" if "correct=no" in method else "all corrected"


def row(backend: str, network: str, start: str, method: str, cells: list[Found]) -> dict[str, Any]:
    """The ratios of some cells."""
    least = 0.0 if method == "reversible" else ROUNDING
    kept = [(error, estimate) for error, estimate in cells if estimate > 0 and error > least]
    ratios = [error / estimate for error, estimate in kept]
    near = sum(1 / 3 <= ratio <= 3 for ratio in ratios)
    errors = [error for error, _ in kept]
    return {
        "backend": backend,
        "network": network,
        "weights": start,
        "gradient": method,
        "cells": len(ratios),
        "ratio min": min(ratios, default=None),
        "median": statistics.median(ratios) if ratios else None,
        "max": max(ratios, default=None),
        "within 3": near / len(ratios) if ratios else None,
        "root": max((error / estimate**0.5 for error, estimate in kept), default=None),
        "errors": f"{min(errors):.0e} to {max(errors):.0e}" if errors else "0",
    }


def tanh_cells(backend: str, start: str, method: str) -> Iterator[Found]:
    """Over solvers and depths, on the tanh network."""
    for solver in REVERSIBLE if method == "reversible" else ("euler", "heun", "rk4"):
        for steps in (8, 32, 128) if backend == "torch" else (8, 32):
            exact = cases.network_gradient(backend, solver, "backprop", steps, start)[0]
            found, stats = cases.network_gradient(backend, solver, method, steps, start)
            yield relative(found, exact), stats.gradient_error_estimate or 0.0


def conv_cells(activation: str, start: str, method: str) -> Iterator[Found]:
    """Over solvers and depths, on convolutional networks in torch."""
    inputs, labels = batch(10, 0)
    record, backend = odenet.gradient(method), odenet.backend("torch")
    for solver in (odenet.solver("euler"), odenet.solver("heun")):
        for steps in (8, 32):
            along = "piecewise" if solver.name == "euler" else "linear"
            spec = odenet.NetSpec(depth=steps, width=8, activation=activation, along=along)  # pyright: ignore[reportArgumentType]
            weights = started(spec, start, solver)

            def evaluate(by: odenet.Gradient, spec: Any = spec, solver: Any = solver, weights: Any = weights) -> Any:
                model = backend.build(spec, weights, solver=solver, gradient=by, dtype="float64")
                return backend.evaluate(model, inputs, labels)

            found = evaluate(record)
            exact = flat(evaluate(odenet.Backprop()).gradients)
            yield relative(flat(found.gradients), exact), record.estimate(found.certificate, steps) or 0.0


_STARTED: dict[Any, dict[str, np.ndarray]] = {}


def started(spec: odenet.NetSpec, start: str, solver: Any) -> dict[str, np.ndarray]:
    """The weights, after a little training if the start says so."""
    kind, _, trained = start.partition(" + ")
    if not trained:
        return spec.init(0, kind)  # pyright: ignore[reportArgumentType]
    if (spec, start) not in _STARTED:
        backend = odenet.backend("torch")
        weights = spec.init(0, kind)  # pyright: ignore[reportArgumentType]
        model = backend.build(spec, weights, solver=solver, gradient=odenet.Backprop(), dtype="float64")
        optimiser = torch.optim.SGD(model.parameters(), 0.2)
        inputs, labels = (torch.tensor(each) for each in batch(64, 1))
        for _ in range(20):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs.double()), labels.long()).backward()
            optimiser.step()
        _STARTED[spec, start] = backend.read(model)
    return _STARTED[spec, start]
