"""The number type of times: that of the state, unless it cannot tell the times of the solve apart."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from odenet import DtypeError, GridError, OdenetError
from odenet.kit import number
from odenet_torch.field.state import Layout

_COARSE = 1e-4  # of the span of the solve: float32 is as fine as that up to times of a thousand spans


def coarse(kind: torch.dtype, t0: float, t1: float) -> bool:
    """Whether a number type is too coarse for the times between these."""
    return t0 != t1 and torch.finfo(kind).eps * max(abs(t0), abs(t1)) > _COARSE * abs(t1 - t0)


def resolved(layout: Layout, t0: Any, t1: Any) -> Layout:
    """The layout with a number type of times that resolves the solve from t0 to t1.

    The loops carry times as Python floats. The field, and the solution's `ts` and `event_t`, have them in the state's
    real number type. Seconds since 1970 are 128 apart in float32: then they are float64, which a scalar time of a
    field that computes with it does not widen.

    Raises:
        GridError: a device without float64.
    """
    t0, t1 = number("t0", t0) or 0.0, number("t1", t1) or 0.0
    if layout.time is torch.float64 or not coarse(layout.time, t0, t1):
        return layout
    if layout.device.type == "mps":
        apart = torch.finfo(layout.time).eps * max(abs(t0), abs(t1))
        raise GridError(
            f"times from {t0} to {t1}, which are {apart:.2g} apart in float32, on a device without float64",
            "times that float32 resolves",
            "solve in the time since t0",
        )
    return dataclasses.replace(layout, time=torch.float64)


def widened(layout: Layout) -> bool:
    """Whether times are float64 for their own sake, and the state is not."""
    kinds = [kind.to_real() for kind in layout.carried]
    return layout.time is torch.float64 and torch.float64 not in kinds


@contextlib.contextmanager
def explained(time: float) -> Iterator[None]:
    """A field that cannot be called with float64 times is told why it was.

    Raises:
        GridError: in the place of what the field raised.
    """
    try:
        yield
    except (DtypeError, RuntimeError) as error:
        if isinstance(error, OdenetError) and not isinstance(error, DtypeError):
            raise
        raise GridError(
            f"times near {time}, which float32 cannot tell apart, so that they are float64; the state is not, and the "
            f"field cannot be called with them ({error})",
            "times that the number type of the state resolves",
            "solve in the time since t0, or take y0 in float64",
        ) from error
