"""The number type of times: that of the state, unless it cannot tell the times of the solve apart."""

from __future__ import annotations

import dataclasses

import torch

from odenet import GridError
from odenet_torch.field.state import Layout

_COARSE = 1e-4  # of the span of the solve: float32 is as fine as that up to times of a thousand spans


def resolved(layout: Layout, t0: float, t1: float) -> Layout:
    """The layout with a number type of times that resolves the solve.

    The loops carry times as Python floats. The field, and the solution's `ts` and `event_t`, have them in the state's
    real number type. Seconds since 1970 are 128 apart in float32: then they are float64, which a scalar time of a
    field that computes with it does not widen.

    Raises:
        GridError: a device without float64.
    """
    apart = torch.finfo(layout.time).eps * max(abs(t0), abs(t1))
    if t0 == t1 or layout.time is torch.float64 or apart <= _COARSE * abs(t1 - t0):
        return layout
    if layout.device.type == "mps":
        raise GridError(
            f"times from {t0} to {t1}, which are {apart:.2g} apart in float32, on a device without float64",
            "times that float32 resolves",
            "solve in the time since t0",
        )
    return dataclasses.replace(layout, time=torch.float64)
