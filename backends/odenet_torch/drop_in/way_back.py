"""How far `odeint_adjoint` is off where steps follow the error, or end at an event: by the states that are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from odenet.kit import Alarm, Tableau, Trial, local_error
from odenet.kit import Leaves as AnyLeaves
from odenet_torch.drop_in.compiled import AugmentedSlope
from odenet_torch.drop_in.flow import OdeintProblem
from odenet_torch.drop_in.recording import lent_buffers, modules_of
from odenet_torch.drop_in.step_back import Passes
from odenet_torch.field.state import Layout
from odenet_torch.field.surroundings import no_trace
from odenet_torch.gradients.way_back import Derivatives, WayBack

_ROUGH = 1e-3
"""Relative tolerance that steps without an estimate of their error are taken to have."""


class KnownStates:
    """What the backward pass of one solve comes to know of its error.

    As torchdiffeq's, it holds `atol` against the costate whatever the size of the loss: what steps leave of a costate
    below that is a part of the error, too.

    Args:
        flow: of the solve.
        layout: of the state.
        rtol: relative tolerance of the backward steps; None for steps without an estimate of their error.
        tableau: of these steps.
        by_y0: whether the gradient of y0 is asked for.
        field: slopes of state, adjoint and quadratures.
        end: the state at the last time.
        told: who says it.
        passes: of the function.
    """

    def __init__(
        self,
        flow: OdeintProblem,
        layout: Layout,
        rtol: float | None,
        tableau: Tableau,
        by_y0: bool,
        field: Callable[..., AugmentedSlope],
        end: Tensor,
        told: Alarm,
        passes: Passes,
    ) -> None:
        self.flow, self.layout, self.field, self.told, self.passes = flow, layout, field, told, passes
        self.end = end
        method = None if rtol is None else local_error(tableau)
        self.way = WayBack(_ROUGH if rtol is None else rtol, layout.device, method, by_y0)
        self.steps = 0

    def step(self, h: float, before: AnyLeaves, attempt: Trial | None) -> None:
        """A step is taken.

        Args:
            h: its size.
            before: state and costate at its beginning.
            attempt: the step, if it has an estimate of its error.
        """
        self.steps += 1
        if attempt is not None:
            of_costate = attempt.error, before, attempt.y1, attempt.slopes[0], attempt.slopes[-1]
            self.way.step(h, *(leaves[1:] for leaves in of_costate))

    def arrived(self, known: Tensor, both: AnyLeaves, start: float, end: float, *, last: bool) -> None:
        """A time is reached at which the state is known.

        Args:
            known: the state.
            both: the same, integrated back, and the costate.
            start, end: that time, and the one before, from which it was.
            last: whether this is t[0].
        """
        y, a = both
        time = torch.full((), end, dtype=self.layout.time, device=self.layout.device)
        original = self.flow.original
        assert original is not None

        def derivatives(at: AnyLeaves, integrated: bool) -> Derivatives:
            # no evaluation of the solve: a counter of the user's does not see it
            with no_trace([original]), lent_buffers(modules_of(original)):
                slope = self.field(time, (*at, a))
            return slope[1:], {i: part for i, part in enumerate(slope.parts[1:]) if part is not None}

        self.way.arrived((known,), (y,), (self.end,), (a,), abs(end - start), derivatives, last=last)

    def tell(self, method: str, weights: Iterable[Tensor]) -> None:
        """Say how far the gradient is off, if it is much.

        Args:
            method: of the backward pass.
            weights: the gradients of parameters.
        """
        if not self.steps:  # a gradient of zero
            return
        value = self.way.certificate(weights).item()
        self.passes.error = value if value == value else math.inf
        self.told.tell(value, "odeint_adjoint", method, self.steps, -1, of="drop-in back")
