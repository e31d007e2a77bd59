"""The gradient methods that a plan tries."""

from __future__ import annotations

import dataclasses
import math

from odenet._backend.entry import BackendEntry
from odenet._gradients.adjoints import ContinuousAdjoint, DiscreteAdjoint
from odenet._gradients.auto import exact
from odenet._gradients.exact import Backprop, Checkpoint
from odenet._gradients.names import GRADIENTS
from odenet._gradients.record import Gradient
from odenet._solvers.names import AnySolver


def candidates(
    entry: BackendEntry, solvers: tuple[AnySolver, ...], steps: int, *, adaptive: bool = False
) -> tuple[Gradient, ...]:
    """The methods that a backend offers for all of these solvers, in the variants that a plan tries.

    The continuous adjoint is none of them: it is the gradient of another function. Methods of other packages are
    tried as they are by default.

    Args:
        entry: of the backend.
        solvers: of all solves in the model.
        steps: the most of one solve.
        adaptive: whether one of them is solved to a tolerance.
    """
    variants = [method for kind in GRADIENTS.values() for method in _variants(kind, steps)]
    return tuple(
        method
        for method in dict.fromkeys(variants)
        if all(entry.offers(solver, method, adaptive=adaptive) for solver in solvers)
        and not (adaptive and isinstance(method, DiscreteAdjoint) and method.extrapolates)
    )


def reference(entry: BackendEntry, solvers: tuple[AnySolver, ...], *, adaptive: bool = False) -> Gradient:
    """The exact method that all are compared with: checkpointing, and backprop where a solver does not go with it."""
    method = Checkpoint()
    return method if all(entry.offers(solver, method, adaptive=adaptive) for solver in solvers) else Backprop()


def few_states(steps: int) -> Checkpoint:
    """Checkpointing that keeps so few states that depth hardly counts, at about three evaluations of each layer."""
    return Checkpoint(states=max(1, math.ceil(math.log2(steps + 1))))


def checkpoints(gradient: Gradient) -> bool:
    """Whether a method is exact checkpointing."""
    return isinstance(gradient, Checkpoint) and exact(gradient)


def _variants(kind: type[Gradient], steps: int) -> tuple[Gradient, ...]:
    root = max(1, round(math.sqrt(steps)))
    if kind is ContinuousAdjoint:
        return ()
    if kind is Checkpoint:
        bits = [field.name for field in dataclasses.fields(kind) if field.name == "bits"]
        some = [kind(segments=root), few_states(steps)] if steps > 3 else []
        return (kind(), *(kind(**{name: count}) for name in bits for count in (16, 8)), *some)
    if kind is DiscreteAdjoint:
        repeated = (kind(iterations=2), kind(iterations=3), kind(predictor="extrapolate"))
        anchored = (kind(anchors=root), kind(iterations=2, anchors=root)) if 1 < root < steps else ()
        return (kind(), *repeated, *anchored)
    return (kind(),)
