"""How the memory of a gradient grows with depth (section 4.1 and the paper's figure of memory)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from odenet._backend import registry as _registry
from odenet._gradients.names import Backprop, Checkpoint, DiscreteAdjoint, Gradient
from odenet._jobs.reproduce.controls import judged, thresholds
from odenet._jobs.reproduce.drawing import INK, finish, over_depth
from odenet._jobs.reproduce.network import BACKPROP, NETS, built
from odenet._jobs.reproduce.reproduction import CurveCell, Point, Reproduction, Settings, values
from odenet._jobs.reproduce.verdict import OverSeeds, Verdict, below, falls, from_depth
from odenet._nets.spec import NetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINT, ADJOINT = "checkpoint", "discrete adjoint"
METHODS = (BACKPROP, CHECKPOINT, ADJOINT)
TIED, UNTIED, GRADIENT = "bytes, tied", "bytes beyond the gradient, untied", "bytes of the gradient, untied"
EVALUATIONS = "evaluations of f a step, backward"

LIMITS = thresholds("memory")
_DEEP = int(LIMITS["from_depth"])


@dataclass(frozen=True)
class _MeasuredSize:
    inputs: tuple[int, int, int]
    width: int
    batch: int


_SIZES = (
    _MeasuredSize((1, 8, 8), 8, 4),
    _MeasuredSize((3, 32, 32), 16, 8),
    _MeasuredSize((3, 32, 32), 64, 128),
)  # quick, reduced, paper


def cells(choices: Settings) -> tuple[CurveCell, ...]:
    """N = 4 to 256. One seed, unless more are asked for: bytes do not depend on the values of weights."""
    curves = [_curve(net, method) for net in NETS for method in METHODS]
    return choices.cells(curves, choices.depths(4, 256, quick=32), seeds=1)


def _curve(net: str, method: str) -> str:
    return f"{net}, {method}"


def _method(name: str, depth: int) -> Gradient:
    """Checkpointing has sqrt(N) segments, which balances states and stages (Chen et al. 2016)."""
    return {
        BACKPROP: Backprop(),
        CHECKPOINT: Checkpoint(segments=round(math.sqrt(depth))),
        ADJOINT: DiscreteAdjoint(correct=False),
    }[name]


def measure(cell: CurveCell, choices: Settings) -> tuple[Point, ...]:
    """One gradient of the tied and of the untied network."""
    net, name = cell.curve.split(", ")
    solver, along = NETS[net]
    size = choices.sized(*_SIZES)
    backend = _registry.backend(cell.backend)
    generator = np.random.default_rng(cell.seed)
    images, labels = generator.standard_normal((size.batch, *size.inputs)), generator.integers(10, size=size.batch)

    def measured(spec: NetSpec) -> Any:
        with backend.prepare("float32", choices.device):
            method = _method(name, cell.depth)
            model = built(cell.backend, choices.device, spec, spec.init(cell.seed), solver, method)
            return backend.measure(model, images, labels, repeats=0)

    tied, untied = (
        NetSpec("conv", cell.depth, width=size.width, inputs=size.inputs, along=kind) for kind in ("shared", along)
    )
    gradient = 4 * sum(math.prod(shape) for shape in untied.shapes().values())
    cost = measured(tied)
    return (
        cell.point(TIED, cost.peak_bytes),
        cell.point(UNTIED, measured(untied).peak_bytes - gradient),
        cell.point(GRADIENT, gradient),
        cell.point(EVALUATIONS, cost.f_backward / cell.depth),
    )


def draw(points: Sequence[Point], figure: Figure) -> None:
    """Tied, and untied with the gradient that every method gives back."""
    tied, untied = figure.subplots(1, 2, sharey=True)
    for line, net in (("-", "ResNet"), ("--", "HeunNet")):
        for index, method in enumerate(METHODS):
            curve = _curve(net, method)
            over_depth(tied, _mebibytes(values(points, curve, TIED)), curve, index, line)
            gradient = values(points, curve, GRADIENT)
            beyond = values(points, curve, UNTIED)
            over_depth(untied, _mebibytes(_sum(beyond, gradient)), f"_{curve}", index, line)  # named on the left
    gradient = _mebibytes(values(points, _curve("ResNet", ADJOINT), GRADIENT))
    depths = sorted(gradient)
    untied.loglog(depths, [gradient[n][0] for n in depths], ":", color=INK, label="the gradient itself (ResNet)")
    finish(tied, "most bytes alive at once, MiB", "One block for all depths")
    finish(untied, "", "A block for each depth, gradient included")


def _mebibytes(over_seeds: OverSeeds) -> dict[int, list[float]]:
    return {n: [size / 2**20 for size in of_seeds] for n, of_seeds in over_seeds.items()}


def _sum(some: OverSeeds, more: OverSeeds) -> dict[int, list[float]]:
    return {n: [a + b for a, b in zip(some[n], more[n], strict=True)] for n in some}


def verdicts(points: Sequence[Point]) -> tuple[Verdict, ...]:
    """Who grows, and how much is saved."""
    return tuple(verdict for net in NETS for verdict in _verdicts(points, net))


def _verdicts(points: Sequence[Point], net: str) -> tuple[Verdict, ...]:
    backprop, checkpoint, adjoint = (values(points, _curve(net, method), TIED) for method in METHODS)
    beyond = values(points, _curve(net, ADJOINT), UNTIED)
    deepest = max(backprop, default=1)
    return (
        falls(f"{net}, backprop: what each doubling of N adds grows as N", _added(backprop), -1, LIMITS["growth"]),
        _constant(f"{net}, discrete adjoint: bytes do not grow with N (tied)", adjoint),
        _constant(f"{net}, discrete adjoint: bytes beyond the gradient do not grow with N (untied)", beyond),
        below(
            f"{net}: at the largest N the discrete adjoint needs at most {LIMITS['share']:g}/N of backprop's (tied)",
            from_depth(adjoint, deepest),
            backprop,
            LIMITS["share"] / deepest,
        ),
        below(
            f"{net}: checkpointing needs less than backprop from N={_DEEP} on (tied)",
            from_depth(checkpoint, _DEEP),
            backprop,
        ),
        below(
            f"{net}: the discrete adjoint needs less than checkpointing from N={_DEEP} on (tied)",
            from_depth(adjoint, _DEEP),
            checkpoint,
        ),
    )


def _added(over_seeds: OverSeeds) -> dict[int, list[float]]:
    """From each depth to the next: whatever a network of no depth would need is in neither."""
    return {
        n: [after - before for before, after in zip(over_seeds[n], over_seeds[more], strict=True)]
        for n, more in itertools.pairwise(sorted(over_seeds))
    }


def _constant(claim: str, over_seeds: OverSeeds) -> Verdict:
    """The most bytes against the fewest, over all depths of a seed. Bytes are counted: they have no scatter."""
    most = LIMITS["constant"]
    seeds = [list(of_seed) for of_seed in zip(*over_seeds.values(), strict=True)]
    depths = sorted(over_seeds)

    def test(counts: list[list[float]]) -> tuple[bool, str]:
        if len(depths) < 2 or not all(min(of_seed) > 0 for of_seed in counts):
            return False, "fewer than two depths with a number above 0"
        ratio = max(max(of_seed) / min(of_seed) for of_seed in counts)
        return ratio <= most, f"{ratio:.4g}, N={depths[0]}..{depths[-1]}"

    return judged(
        claim,
        f"most / fewest at most {most:g}, over all N",
        test,
        seeds,
        bad={"bytes that grow as N": [list(map(float, depths))]},
        good={"the same bytes at each N": [[1.0] * len(depths)]},
    )


REPRODUCTION = Reproduction(
    "memory",
    "Section 4.1: backpropagation through a residual network needs memory that grows linearly with depth; the discrete "
    "adjoint rebuilds the activations, and its memory does not depend on depth.",
    "The small convolutional network, float32, random images, a gradient. Quick: width 8, 4 images of 1x8x8, N to 32; "
    "reduced: width 16, 8 images of 3x32x32, N to 256; paper: width 64, 128 images of 3x32x32. Counted are the most "
    "bytes alive at once beyond weights and batch: exactly, by tensor storages in torch on a CPU, by the allocator on "
    "CUDA, by what XLA plans in JAX. A block for each depth has a gradient that grows with N whatever the method; so "
    "one block for all depths (tied) is measured as well, which has none, and of the untied network the bytes of the "
    "gradient are subtracted. The discrete adjoint is the paper's, uncorrected; checkpointing has sqrt(N) segments.",
    cells,
    measure,
    draw,
    verdicts,
    (11.0, 5.0),
)
