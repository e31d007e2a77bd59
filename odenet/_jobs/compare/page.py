"""How a comparison is shown: tables on the terminal, and the report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from rich.console import Console

from odenet._jobs.compare.findings import Finding, findings, verdict
from odenet._jobs.compare.results import COLUMNS, Comparison, Curve, MeasuredGradient, curves
from odenet._report.html import details, document, figure, header, section
from odenet._report.style import INK, colours, name
from odenet._report.terminal import Table, table
from odenet._report.units import error, seconds, size


def tables(rows: Iterable[MeasuredGradient], screen: Console) -> list[Table]:
    """One table a solver: gradient methods by backends, their error at each depth, and what the ends of the grid cost.

    Args:
        rows: of the comparison.
        screen: whose width it is for; on a narrow one there are fewer depths, then the largest depth alone.
    """
    series = curves(rows)
    return [
        _table([curve for curve in series if curve.solver == solver], screen)
        for solver in dict.fromkeys(curve.solver for curve in series)
    ]


def columns(depths: Sequence[int], ends: Sequence[int]) -> list[str]:
    """The headings; ">" aligns to the right.

    Args:
        depths: whose error has a column.
        ends: the one or two depths whose cost is shown.
    """
    where = "N=" + " → ".join(map(str, ends))
    errors = (f">error N={depth}" for depth in depths)
    return ["gradient", "backend", *errors, ">order", f">peak memory {where}", f">time {where}", ">compile"]


def line(curve: Curve, depths: Sequence[int], ends: Sequence[int]) -> list[str]:
    """The cells of one curve under `columns`."""
    errors = [error(curve.rows[depth].gradient_error if depth in curve.rows else None) for depth in depths]
    costs = [curve.rows.get(depth) for depth in ends]
    compiled = [row.compile_seconds for row in curve.rows.values() if row.compile_seconds]
    return [
        curve.gradient,
        curve.backend,
        *errors,
        curve.order,
        " → ".join(size(row.peak_bytes if row else None) for row in costs),
        " → ".join(seconds(row.step_seconds if row else None) for row in costs),
        seconds(sum(compiled) / len(compiled)) if compiled else "–",
    ]


def depths_of(series: Sequence[Curve]) -> tuple[list[int], list[int]]:
    """Every depth measured, and the first and the last of them."""
    depths = sorted({depth for curve in series for depth in curve.rows})
    return depths, list(dict.fromkeys((depths[0], depths[-1])))


def title(series: Sequence[Curve]) -> str:
    """What a solver's table shows."""
    kinds = ", ".join(dict.fromkeys(curve.first.along for curve in series))
    return f"{series[0].solver} (weights along depth: {kinds}) — gradient error against exact backprop in float64"


def _table(series: Sequence[Curve], screen: Console) -> Table:
    depths, ends = depths_of(series)
    for shown, cost in ((depths, ends), (ends, ends), (ends, ends[-1:])):
        candidate = table(title(series), columns(shown, cost), [line(curve, shown, cost) for curve in series])
        if candidate.fits(screen.width):
            return candidate
    short = [[*cells[:-3], *cells[-2:-1]] for cells in (line(curve, ends, ends[-1:]) for curve in series)]
    heads = columns(ends, ends[-1:])
    return table(title(series), [*heads[:-3], *heads[-2:-1]], short)


_CAPTIONS = {
    "gradient_error": "Relative error of the whole gradient over depth, with the fitted order. Ring and cross coincide "
    "where two backends agree.",
    "memory": "Most bytes alive at once for loss and gradient. Backends count in different ways.",
    "time": "Median seconds of loss and gradient; compilation is not in them.",
}


def page(results: Comparison, figures: Mapping[str, str]) -> str:
    """The page's text. Whatever comes from results is escaped.

    Args:
        results: a finished or an interrupted comparison.
        figures: SVG text by name, see `odenet._jobs.compare.figures`.
    """
    plan = results.plan
    measured = sum(row.ok for row in results.rows)
    lead = (
        f"{' and '.join(plan.backends)} · {', '.join(solver.name for solver in plan.solvers)} · "
        f"{len(plan.gradients)} gradient methods · depths {', '.join(map(str, plan.depths))}"
    )
    how_many = f"{measured} of {len(plan.cells())} cells measured in {seconds(results.seconds)}"
    parts = [
        header("odenet compare", (lead, how_many)),
        f"<p><strong>{escape(verdict(results))}</strong></p>",
        *(
            figure(figures[figure_name], caption)
            for figure_name, caption in _CAPTIONS.items()
            if figure_name in figures
        ),
        section("How to read this", _list(findings(results))),
        section("Errors, orders and costs", _summary(results.rows)),
        *details(results.rows, COLUMNS, "heun jax N=64 …", plan.to_json(), results.machine),
    ]
    return document("odenet compare", parts)


def notebook(results: Comparison) -> str:
    """The verdict and the table of errors, orders and costs, as a notebook shows them."""
    return f"<p><strong>{escape(verdict(results))}</strong></p>{_summary(results.rows)}"


def _list(paragraphs: Iterable[Finding]) -> str:
    items = (f"<li><b>{escape(finding.topic)}</b>: {escape(finding.text)}</li>" for finding in paragraphs)
    return f"<ul>{''.join(items)}</ul>"


def _summary(rows: Sequence[MeasuredGradient]) -> str:
    series = curves(rows)
    colour = colours(curve.gradient for curve in series)
    parts = []
    for solver in dict.fromkeys(curve.solver for curve in series):
        mine = [curve for curve in series if curve.solver == solver]
        depths, ends = depths_of(mine)
        headings = columns(depths, ends)
        body = []
        for curve in mine:
            first, *others = line(curve, depths, ends)
            dot = f'<span class="dot" style="background:{colour[curve.gradient].replace(INK, "currentColor")}"></span>'
            cells = "".join(
                f'<td data-h="{_plain(heading)}">{escape(cell)}</td>'
                for heading, cell in zip(headings[1:], others, strict=True)
            )
            known = f'title="{escape(name(curve.gradient))}" data-h="{_plain(headings[0])}"'
            body.append(f"<tr><td {known}>{dot}{escape(first)}</td>{cells}</tr>")
        head = "".join(map(_heading, headings))
        parts.append(
            f'<h3>{escape(title(mine))}</h3><div class="wide stacked"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    return "".join(parts) or "<p>No cell was measured.</p>"


def _heading(heading: str) -> str:
    kind = ' class="number"' if heading.startswith(">") else ""
    return f"<th{kind}>{_plain(heading)}</th>"


def _plain(heading: str) -> str:
    return escape(heading.removeprefix(">"))
