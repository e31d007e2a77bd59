"""The report of reproductions: a figure for each, the verdicts, and one HTML page of all."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from rich.console import Console

from odenet._files import write_atomically, write_text
from odenet._jobs.cells.run import GO_ON
from odenet._jobs.reproduce.controls import changed, thresholds
from odenet._jobs.reproduce.reproduction import Point, Reproduction, reproductions
from odenet._jobs.reproduce.results import ReproductionPoints
from odenet._jobs.reproduce.verdict import Verdict
from odenet._report.figures import canvas, render
from odenet._report.html import REPORT, document, facts, figure, header, section
from odenet._report.style import RC
from odenet._report.terminal import Table, table
from odenet._report.units import seconds

VERDICTS, TABLE = "verdicts.json", "verdicts.md"
_BAD = ("FAILS", "BLIND")
_NONE = "none could be made"
_OTHERS = {
    "FAILS": "FAIL",
    "BLIND": "BLIND: the test passes data that it must refuse",
    "undecided": "undecided: the numbers scatter too much to tell; more --seeds would",
}
_HEADINGS = ("verdict", "claim", "expected", "observed", "controls")


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
        """The verdicts of each backend, which are judged separately."""
        return {backend: self.reproduction.verdicts(self.points(backend)) for backend in self.results.choices.backends}

    def points(self, backend: str) -> list[Point]:
        """The numbers that one backend found."""
        return [point for point in self.results.points if point.backend == backend]

    @property
    def every(self) -> list[Verdict]:
        """The verdicts of all backends."""
        return [verdict for verdicts in self.verdicts.values() for verdict in verdicts]

    @property
    def failed(self) -> bool:
        """Whether one of them fails, or is blind; one that too few seeds leave undecided does not fail."""
        return any(verdict.state in _BAD for verdict in self.every)

    @cached_property
    def changes(self) -> tuple[str, ...]:
        """A line for each threshold that was changed after the run."""
        return changed(self.results.thresholds, self.reproduction.name)

    @cached_property
    def figure(self) -> Figure:
        """The figure of the first backend; the others agree with it up to rounding, as the verdicts show."""
        with matplotlib.rc_context(RC):
            drawn = canvas(*self.reproduction.size)
            self.reproduction.draw(self.points(self.results.choices.backends[0]), drawn)
        return drawn

    @cached_property
    def section(self) -> str:
        """The claim's part of the report, as HTML."""
        svg = render(self.figure, "svg").decode()
        claim, method = escape(self.reproduction.claim), escape(self.reproduction.method)
        parts = (
            f"<p><b>The paper.</b> {claim} <b>{escape(tally(self.every))}.</b></p>",
            figure(svg, f"Medians with quartiles: {_size(self.results)}."),
            f"<p><b>Here.</b> {method}</p>",
            *(f"<p><b>{escape(change)}</b></p>" for change in self.changes),
            *(f"<h3>{escape(backend)}</h3>{_rows(verdicts)}" for backend, verdicts in self.verdicts.items()),
        )
        return section(self.reproduction.name, "".join(parts))


def write_one(done: Finished, folder: Path) -> list[Path]:
    """The figure as NAME.png and the verdicts as verdicts.json and verdicts.md.

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
        "thresholds": thresholds(done.reproduction.name),
        "changes": done.changes,
        "verdicts": [
            {"backend": backend, "state": v.state, **dataclasses.asdict(v)}
            for backend, verdicts in done.verdicts.items()
            for v in verdicts
        ],
    }
    return [
        write_atomically(folder / f"{done.reproduction.name}.png", lambda file: file.write(png)),
        write_text(folder / TABLE, markdown(done)),
        write_text(folder / VERDICTS, json.dumps(plain, indent=1, ensure_ascii=False) + "\n"),
    ]


def write_page(done: Sequence[Finished], machine: Mapping[str, str], folder: Path) -> Path:
    """One self-contained page with the claims, figures and verdicts.

    Raises:
        FileError: the folder cannot be written to.
    """
    lead = "Sander, Ablin and Peyre, NeurIPS 2022 (arXiv 2205.14612)"
    how_many = tally([v for reproduced in done for v in reproduced.every])
    verdict = f"<p><strong>{escape(how_many)}.</strong></p>"
    parts = [header("odenet reproduce", (lead,)), verdict, *(reproduced.section for reproduced in done)]
    parts.append(section("Machine", facts(machine)))
    return write_text(folder / REPORT, document("odenet reproduce", parts))


def judge(done: Sequence[ReproductionPoints], out: Path, screen: Console, messages: Console) -> bool:
    """Draw the last of these, and hold the paper's claims against it; the page has all.

    Returns:
        whether every verdict holds. Of a shard, or where cells are left, nothing can be said, and it says so.
    """
    every = reproductions()
    last = done[-1]
    left = len(last.todo(every[last.name]))
    if left:
        messages.print(f"{last.name}: {left} cells are left; {GO_ON}", markup=False)
        return False
    if last.shard is not None:
        messages.print(
            f"{last.name}: shard {last.shard} is done; odenet merge joins the parts and judges", markup=False
        )
        return True
    finished = [Finished(every[results.name], results) for results in done if not results.todo(every[results.name])]
    screen.print(verdict_table(finished[-1]))
    for change in finished[-1].changes:
        screen.print(change, markup=False)
    paths = write_one(finished[-1], out / last.name)
    page = write_page(finished, last.machine, out)  # after each, so that a long run can be read as it goes
    messages.print(f"wrote {paths[0]}, {page}", markup=False)
    if len(finished) > 1:
        screen.print(tally([verdict for results in finished for verdict in results.every]), markup=False)
    return not finished[-1].failed


def _rows(verdicts: Sequence[Verdict]) -> str:
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    rows = (
        ("bad" if v.state in _BAD else "", (*_cells(v), "; ".join(map(str, v.controls)) or _NONE)) for v in verdicts
    )
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f'<td data-h="{heading}">{escape(text)}</td>' for heading, text in zip(_HEADINGS, texts, strict=True))
        + "</tr>"
        for kind, texts in rows
    )
    return f'<div class="prose stacked"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def markdown(done: Finished) -> str:
    """The verdicts as a Markdown table, with what was run under it."""
    several = len(done.verdicts) > 1
    heads = ("claim", "allowed", "seen", "controls", "verdict", *(("backend",) if several else ()))
    rows = [heads, ("---",) * len(heads)]
    for backend, verdicts in done.verdicts.items():
        for v in verdicts:
            state = v.state if v.state == "holds" else f"**{v.state}**"
            rows.append((v.claim, v.expected, v.observed, _controls(v), state, *((backend,) if several else ())))
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    return "\n".join((*lines, "", f"{_size(done.results)}.", *done.changes)) + "\n"


def verdict_table(done: Finished) -> Table:
    """The verdicts for a terminal."""
    rows = [
        (*_cells(verdict), _controls(verdict), backend)
        for backend, verdicts in done.verdicts.items()
        for verdict in verdicts
    ]
    return table(f"{done.reproduction.name} ({_size(done.results)})", (*_HEADINGS, "backend"), rows)


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many verdicts hold, and what became of the others."""
    states = Counter(verdict.state for verdict in verdicts)
    others = [f"{states[name]} {outcome}" for name, outcome in _OTHERS.items() if states[name]]
    return "; ".join([f"{states['holds']} of {len(verdicts)} verdicts hold", *others])


def _size(results: ReproductionPoints) -> str:
    """What was run, in a few words."""
    chosen = results.choices
    many = f"{results.seeds} seed{'s' if results.seeds != 1 else ''}"
    return f"{many}, scale {chosen.scale}, {chosen.device}, {seconds(results.seconds)}"


def _cells(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.state, verdict.claim, verdict.expected, verdict.observed)


def _controls(verdict: Verdict) -> str:
    """In a few words; all of them where one is wrong."""
    wrong = [str(control) for control in verdict.controls if not control.right]
    return "; ".join(wrong) or (f"{len(verdict.controls)} right" if verdict.controls else _NONE)
