"""What reproductions leave behind for people: a figure each, the verdicts, and one HTML page of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from odenet._files import write_atomically, write_text
from odenet._tables import table
from odenet.compare.figures import rc, render
from odenet.compare.html import document, facts, figure, header, section
from odenet.compare.report import REPORT
from odenet.compare.units import seconds
from odenet.paper.reproduction import Reproduction
from odenet.paper.results import Results
from odenet.paper.verdict import Verdict

VERDICTS = "verdicts.json"
_HEADINGS = ("verdict", "claim", "expected", "observed")


def judge(reproduction: Reproduction, results: Results) -> dict[str, tuple[Verdict, ...]]:
    """The verdicts, each backend on its own."""
    return {
        backend: reproduction.verdicts([each for each in results.points if each.backend == backend])
        for backend in results.choices.backends
    }


def drawing(reproduction: Reproduction, results: Results) -> Figure:
    """The figure, of the first backend: others coincide with it up to rounding, as the verdicts show."""
    mine = [each for each in results.points if each.backend == results.choices.backends[0]]
    with matplotlib.rc_context(rc()):
        made = Figure(figsize=reproduction.size, layout="constrained")
        FigureCanvasAgg(made)
        reproduction.draw(mine, made)
    return made


def write_one(reproduction: Reproduction, results: Results, folder: Path) -> list[Path]:
    """The figure as NAME.png and the verdicts as verdicts.json.

    Returns:
        the paths written, the figure first.

    Raises:
        FileError: the folder cannot be written to.
    """
    png = render(drawing(reproduction, results), "png", 110)
    plain = {
        "claim": reproduction.claim,
        "method": reproduction.method,
        "seconds": results.seconds,
        "verdicts": [
            {"backend": backend, "claim": v.claim, "expected": v.expected, "observed": v.observed, "passed": v.passed}
            for backend, found in judge(reproduction, results).items()
            for v in found
        ],
    }
    return [
        write_atomically(folder / f"{reproduction.name}.png", lambda file: file.write(png)),
        write_text(folder / VERDICTS, json.dumps(plain, indent=1, ensure_ascii=False) + "\n"),
    ]


def write_page(done: Sequence[tuple[Reproduction, Results]], machine: Mapping[str, str], folder: Path) -> Path:
    """One self-contained page with the claims, figures and verdicts.

    Raises:
        FileError: the folder cannot be written to.
    """
    found = [v for each in done for verdicts in judge(*each).values() for v in verdicts]
    lead = "Sander, Ablin and Peyre, NeurIPS 2022 (arXiv 2205.14612)"
    how_many = f"{sum(v.passed for v in found)} of {len(found)} verdicts hold"
    parts = [header("odenet reproduce", (lead, how_many))]
    parts += [section(reproduction.name, _body(reproduction, results)) for reproduction, results in done]
    parts.append(section("Machine", facts(machine)))
    return write_text(folder / REPORT, document("odenet reproduce", parts))


def _body(reproduction: Reproduction, results: Results) -> str:
    svg = render(drawing(reproduction, results), "svg").decode()
    return "".join(
        (
            f"<p><b>The paper.</b> {escape(reproduction.claim)}</p><p><b>Here.</b> {escape(reproduction.method)}</p>",
            figure(svg, f"Medians with quartiles: {_size(results)}."),
            *(f"<h3>{escape(backend)}</h3>{_rows(found)}" for backend, found in judge(reproduction, results).items()),
        )
    )


def _rows(found: Sequence[Verdict]) -> str:
    head = "".join(f"<th>{each}</th>" for each in _HEADINGS)
    body = "".join(
        f"<tr{'' if each.passed else ' class=bad'}>{''.join(f'<td>{escape(text)}</td>' for text in _cells(each))}</tr>"
        for each in found
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def verdict_table(reproduction: Reproduction, results: Results) -> Table:
    """The verdicts for a terminal."""
    rows = [(*_cells(each), backend) for backend, found in judge(reproduction, results).items() for each in found]
    return table(f"{reproduction.name} ({_size(results)})", (*_HEADINGS, "backend"), rows)


def _size(results: Results) -> str:
    """What was run, in a few words."""
    chosen = results.choices
    many = f"{results.seeds} seed{'s' if results.seeds != 1 else ''}"
    return f"{many}, scale {chosen.scale}, {chosen.device}, {seconds(results.seconds)}"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    return ("holds" if verdict.passed else "FAILS", verdict.claim, verdict.expected, verdict.observed)
