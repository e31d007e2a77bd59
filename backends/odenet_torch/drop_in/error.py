"""How large an error of the backward pass is: of the state, its adjoint, and the gradients of parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from odenet import InputError
from odenet.kit import shown
from odenet_torch.drop_in.flow import Norm, OdeintProblem, mixed, rms, state_norm, tolerance
from odenet_torch.field.state import Leaves
from odenet_torch.steps.tolerance import Tolerance, normed, scaled

Totals = Callable[[], Sequence[Tensor]]
Tried = Callable[[], Sequence[tuple[Tensor | None, Tensor | None]]]


class AdjointTolerance(Tolerance):
    """Tolerances of the state, its adjoint and the quadratures; the norm of torchdiffeq's adjoint, or the user's.

    Args:
        flow: the problem.
        rtol, atol: numbers; one for each of a tuple's entries; or for time, state, adjoint and each of the parameters.
        norm: None for all of these, "seminorm" without the parameters, or a function of a tuple of all.
        forward: norm of the state, None for the default.
        count: of parameters.

    Raises:
        InputError: tolerances that cannot be used.
    """

    def __init__(
        self, flow: OdeintProblem, rtol: Any, atol: Any, norm: str | Norm | None, forward: Norm | None, count: int
    ):
        self.flow, self.of_all = flow, norm
        self.rtol, self.rtol_beside = _parted("adjoint_rtol", rtol, flow, count)
        self.atol, self.atol_beside = _parted("adjoint_atol", atol, flow, count)
        state = state_norm(forward, flow)
        self.state = state if callable(state) else rms
        self.rows = self.plain = False
        self.totals: Totals = tuple
        self.tried: Tried = tuple

    def of(self, totals: Totals, tried: Tried) -> AdjointTolerance:
        """The same for one solve.

        Args:
            totals: the quadratures so far: by time, and by each parameter.
            tried: the error of each in the step that is tried, and what the step adds to it; None for none.
        """
        copied = copy.copy(self)
        copied.totals, copied.tried = totals, tried
        return copied

    def ratio(self, error: Leaves, y: Leaves, y1: Leaves) -> Tensor:
        with torch.no_grad():
            sizes = (torch.maximum(a.abs(), b.abs()) for a, b in zip(y, y1, strict=True))
            beside = [] if self.of_all == "seminorm" else self._beside()
            return self._whole(scaled(error, sizes, self.rtol, self.atol), beside)

    def at_start(self, ratios: Leaves) -> Tensor:
        return self._whole(ratios, [None] * len(self.totals()))

    def _beside(self) -> list[Tensor | None]:
        """The errors of the quadratures over what is allowed."""
        ratios: list[Tensor | None] = []
        allowed = zip(self.totals(), self.tried(), self.rtol_beside, self.atol_beside, strict=True)
        for total, (error, step), rtol, atol in allowed:
            if error is None or step is None:
                ratios.append(None)
                continue
            size = torch.maximum(total.abs(), (total + step).abs())
            bound = atol + rtol * size
            ratios.append(torch.where((bound == 0) & (error == 0), 0, error.abs() / bound))
        return ratios

    def _whole(self, both: Leaves, beside: list[Tensor | None]) -> Tensor:
        y, a = both
        if callable(self.of_all):
            t, *params = (
                torch.zeros_like(total) if ratio is None else ratio
                for ratio, total in zip(beside, self.totals(), strict=True)
            )
            shown = [leaf if isinstance(leaf, tuple) else (leaf,) for leaf in map(self.flow.unpacked, both)]
            return normed(self.of_all((t, *shown[0], *shown[1], *params)))
        parts = [normed(self.state(leaf)).to(y.device).double() for leaf in (y, a)]
        ratios = [ratio for ratio in beside if ratio is not None]
        return torch.stack([*parts, *((mixed(ratios).double(),) if ratios else ())]).amax()


def require_norm(norm: Any) -> None:
    """Raises InputError unless this can be the norm of a backward pass."""
    if norm is not None and not callable(norm) and not (isinstance(norm, str) and norm == "seminorm"):
        raise InputError(f"norm={shown(norm)} of adjoint_options", "'seminorm', or a function of a tuple")


def _parted(name: str, value: Any, flow: OdeintProblem, count: int) -> tuple[tuple[Any, Any], list[Any]]:
    """A tolerance of the state and of its adjoint, and of what is beside them: time and parameters."""
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes)) and getattr(value, "ndim", 1)
    if several and len(bounds := list(value)) == 3 + count:
        if flow.shapes is None or len(flow.shapes) != 3 + count:
            try:
                t, y, a, *params = (torch.as_tensor(bound).detach() for bound in bounds)
            except (TypeError, ValueError, RuntimeError, OverflowError) as error:
                raise InputError(f"{name}={shown(value)}", f"{3 + count} numbers of at least 0, or tensors") from error
            if any(bound.is_meta or bound.is_complex() or not bool((bound >= 0).all()) for bound in (t, y, a, *params)):
                raise InputError(f"{name}={shown(value)}", f"{3 + count} numbers of at least 0, or tensors of them")
            return (y, a), [t, *params]
    of_state = tolerance(name, value, flow)
    least = of_state if isinstance(of_state, float) else torch.as_tensor(of_state).min().item()
    return (of_state, of_state), [least] * (1 + count)
