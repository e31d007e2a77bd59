"""Figures as files, all in one style."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odenet._files import write_atomically, write_text
from odenet._report.html import REPORT
from odenet._report.style import RC


def canvas(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, which needs no screen and leaves room for its labels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, kind: str, dpi: int = 160) -> bytes:
    """A figure as "png" or "svg"."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context(RC):
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata, facecolor="white" if kind == "png" else "none")
    return file.getvalue()


def write_figures(figures: Mapping[str, Figure], folder: Path, dpi: int = 160) -> tuple[list[Path], dict[str, str]]:
    """Write NAME.png and NAME.svg of each figure, atomically.

    Returns:
        the paths written, and the SVG text of each figure by name.

    Raises:
        FileError: the folder cannot be written to.
    """
    paths, drawings = [], {}
    for name, figure in figures.items():
        svg = render(figure, "svg")
        drawings[name] = svg.decode()
        for kind, content in (("png", render(figure, "png", dpi)), ("svg", svg)):
            paths.append(write_atomically(folder / f"{name}.{kind}", lambda file, content=content: file.write(content)))
    return paths, drawings


def write_report(
    figures: Mapping[str, Figure], page: Callable[[Mapping[str, str]], str], folder: Path, dpi: int = 160
) -> list[Path]:
    """Write the figures, and `report.html` with them in it.

    Args:
        figures: by name.
        page: makes the page's HTML of the SVG text of each figure.
        folder, dpi: of the files.

    Returns:
        the paths written, the page first.

    Raises:
        FileError: the folder cannot be written to.
    """
    paths, drawings = write_figures(figures, folder, dpi)
    return [write_text(folder / REPORT, page(drawings)), *paths]
