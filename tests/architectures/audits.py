"""`python tests/architectures/audits.py [STEPS]`: is the gradient in training with `auto` ever too far off?

Each network is converted, and trains three times: without a limit of memory, with one that exact methods by layers do
not meet, and beginning with the discrete adjoint. In the first 20 steps, and in every tenth after them, the gradient is
compared with plain autograd's on the same weights, batch and random numbers.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from catalogue import CATALOGUE, Batch
from judge import call, difference, functional
from torch import nn

import odenet
from odenet_torch import convert
from odenet_torch.verbs.examine import solved

NETWORKS = ("timm-resnetv2-50", "timm-vit", "gpt2", "mixtral")
TOLERANCE = 1e-2
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "audits.json"


def trained(network: str, steps: int, auto: odenet.Auto) -> dict[str, Any]:
    """Train, and compare."""
    torch.manual_seed(0)
    model, batch = CATALOGUE[network]()
    model.train()
    plain = copy.deepcopy(model)
    first = None if auto.method is None else auto.method.label
    row: dict[str, Any] = {"network": network, "memory_bytes": auto.memory, "begins_with": first, "steps": steps}
    began = time.perf_counter()
    try:
        convert(model, example=batch, gradient=auto)
    except odenet.OdenetError as error:
        return row | {"outcome": "refused", "reason": str(error)}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    worst, methods = 0.0, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(steps):
            before = copy.deepcopy(model.state_dict())
            try:
                found = gradient(model, batch, step)
            except odenet.OdenetError as error:  # of what the first call alone shows, as hooks of the model's own
                return row | {"outcome": f"refused in step {step}", "reason": str(error)}
            if step < 20 or step % 10 == 0:
                plain.load_state_dict(before)
                worst = max(worst, difference(found, gradient(plain, batch, step)))
            methods.append(", ".join(sorted({_method(solve).label for solve in solved(model).values()})))
            optimizer.step()
    audits = [audit for solve in solved(model).values() for audit in getattr(solve, "audits", ())]
    return row | {
        "outcome": "trained",
        "methods": list(dict.fromkeys(methods)),
        "true_error": worst,
        "audits": len(audits),
        "largest_audit": max((audit.gradient_error for audit in audits), default=None),
        "moves": sum(audit.moved_to is not None for audit in audits),
        "warnings": len(said),
        "seconds": time.perf_counter() - began,
    }


def gradient(model: nn.Module, batch: Batch, seed: int) -> dict[str, torch.Tensor]:
    """Of the functional, with random numbers of its own."""
    model.zero_grad()
    torch.manual_seed(seed)
    functional(call(model, batch)).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def _method(solve: Any) -> odenet.Gradient:
    auditor = getattr(solve, "auditor", None)
    return solve.gradient if auditor is None else auditor.method or solve.gradient


def least(network: str) -> int:
    """Bytes that exact layer-by-layer methods need: one less than that is a limit which they do not meet."""
    torch.manual_seed(0)
    model, batch = CATALOGUE[network]()
    convert(model, example=batch, gradient="auto")
    plan = next(iter(solved(model).values())).plan
    return min(profile.peak_bytes for profile in plan.profiles if profile.peak_bytes)


def main(steps: int) -> int:
    rows: list[dict[str, Any]] = []
    for network in NETWORKS:
        tight = odenet.Auto(TOLERANCE, memory=least(network) - 1)
        rebuilt = odenet.Auto(TOLERANCE, method=odenet.DiscreteAdjoint())
        for auto in (odenet.Auto(TOLERANCE), tight, rebuilt):
            rows.append(trained(network, steps, auto))
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    return any(row.get("true_error", 0) > TOLERANCE for row in rows)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
