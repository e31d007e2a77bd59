"""How large an error of the way back is: of the state, its adjoint, and the gradients of parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odenet import InputError
from odenet_torch._state import Leaves
from odenet_torch._tolerance import Tolerance
from odenet_torch.drop_in.flow import Flow, Norm, mixed, rms, spread, tolerance

Each = "float | Tensor"


class Reach(Tolerance):
    """Tolerances of the state, its adjoint and the quadratures; the norm of torchdiffeq's adjoint, or the user's.

    Args:
        flow: the problem.
        rtol, atol: numbers; one for each of a tuple's entries; or for time, state, adjoint and each of the parameters.
        norm: None for all of these, "seminorm" without the parameters, or a function of a tuple of all.
        state: norm of a state.
        count: of parameters.

    Raises:
        InputError: tolerances or a norm that cannot be used.
    """
