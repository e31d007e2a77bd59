"""Figures as files, all in one style."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from odenet._report.style import RC


def rc() -> Any:
    """The settings of every figure."""
    return RC  # matplotlib's type for this is a private literal


def render(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """A figure as "png" or "svg"."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(rc()):
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata, facecolor="white" if kind == "png" else "none")
    return file.getvalue()
