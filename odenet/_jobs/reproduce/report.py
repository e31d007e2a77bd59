"""What reproductions leave behind for people: a figure each, the verdicts, and one HTML page of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from odenet._files import write_atomically, write_text
from odenet._jobs.reproduce.reproduction import Point, Reproduction
from odenet._jobs.reproduce.results import ReproductionPoints
from odenet._jobs.reproduce.verdict import Verdict
from odenet._report.figures import canvas, rc, render
from odenet._report.html import REPORT, document, facts, figure, header, section
from odenet._report.terminal import Table, table
from odenet._report.units import seconds

VERDICTS = "verdicts.json"
_HEADINGS = ("verdict", "claim", "expected", "observed")


@dataclass(frozen=True)
class Finished:
    """A reproduction whose cells are all done; what it says is found, and drawn, once.

    Args:
        reproduction: what was reproduced.
        results: its points.
    """

    reproduction: Reproduction
    results: ReproductionPoints

    @cached_property
    def verdicts(self) -> dict[str, tuple[Verdict, ...]]:
        """Of each backend on its own."""
        return {backend: self.reproduction.verdicts(self.points(backend)) for backend in self.results.choices.backends}

    def points(self, backend: str) -> list[Point]:
        """The numbers that one backend found."""
        return [point for point in self.results.points if point.backend == backend]

    @property
    def passed(self) -> bool:
        """Whether all of them hold."""
        return all(each.passed for found in self.verdicts.values() for each in found)

    @cached_property
    def figure(self) -> Figure:
        """Of the first backend: others coincide with it up to rounding, as the verdicts show."""
        with matplotlib.rc_context(rc()):
            drawn = canvas(*self.reproduction.size)
            self.reproduction.draw(self.points(self.results.choices.backends[0]), drawn)
        return drawn

    @cached_property
    def section(self) -> str:
        """Its part of the page."""
        svg = render(self.figure, "svg").decode()
        claim, method = escape(self.reproduction.claim), escape(self.reproduction.method)
        parts = (
            f"<p><b>The paper.</b> {claim}</p><p><b>Here.</b> {method}</p>",
            figure(svg, f"Medians with quartiles: {_size(self.results)}."),
            *(f"<h3>{escape(backend)}</h3>{_rows(found)}" for backend, found in self.verdicts.items()),
        )
        return section(self.reproduction.name, "".join(parts))


def write_one(done: Finished, folder: Path) -> list[Path]:
    """The figure as NAME.png and the verdicts as verdicts.json.

    Returns:
        the paths written, the figure first.

    Raises:
        FileError: the folder cannot be written to.
    """
    png = render(done.figure, "png", 110)
    plain = {
        "claim": done.reproduction.claim,
        "method": done.reproduction.method,
        "seconds": done.results.seconds,
        "verdicts": [
            {"backend": backend, "claim": v.claim, "expected": v.expected, "observed": v.observed, "passed": v.passed}
            for backend, found in done.verdicts.items()
            for v in found
        ],
    }
    return [
        write_atomically(folder / f"{done.reproduction.name}.png", lambda file: file.write(png)),
        write_text(folder / VERDICTS, json.dumps(plain, indent=1, ensure_ascii=False) + "\n"),
    ]


def write_page(done: Sequence[Finished], machine: Mapping[str, str], folder: Path) -> Path:
    """One self-contained page with the claims, figures and verdicts.

    Raises:
        FileError: the folder cannot be written to.
    """
    found = [v for each in done for verdicts in each.verdicts.values() for v in verdicts]
    lead = "Sander, Ablin and Peyre, NeurIPS 2022 (arXiv 2205.14612)"
    how_many = f"{sum(v.passed for v in found)} of {len(found)} verdicts hold"
    parts = [header("odenet reproduce", (lead, how_many)), *(each.section for each in done)]
    parts.append(section("Machine", facts(machine)))
    return write_text(folder / REPORT, document("odenet reproduce", parts))


def _rows(found: Sequence[Verdict]) -> str:
    head = "".join(f"<th>{each}</th>" for each in _HEADINGS)
    body = "".join(
        f"<tr{'' if each.passed else ' class=bad'}>{''.join(f'<td>{escape(text)}</td>' for text in _cells(each))}</tr>"
        for each in found
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def verdict_table(done: Finished) -> Table:
    """The verdicts for a terminal."""
    rows = [(*_cells(each), backend) for backend, found in done.verdicts.items() for each in found]
    return table(f"{done.reproduction.name} ({_size(done.results)})", (*_HEADINGS, "backend"), rows)


def _size(results: ReproductionPoints) -> str:
    """What was run, in a few words."""
    chosen = results.choices
    many = f"{results.seeds} seed{'s' if results.seeds != 1 else ''}"
    return f"{many}, scale {chosen.scale}, {chosen.device}, {seconds(results.seconds)}"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    return ("holds" if verdict.passed else "FAILS", verdict.claim, verdict.expected, verdict.observed)
