"""The report as one self-contained HTML page: text, tables and figures, nothing from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from odenet.compare.findings import Finding, findings
from odenet.compare.results import Results
from odenet.compare.row import COLUMNS, Row
from odenet.compare.style import INK, colours, name
from odenet.compare.summary import curves
from odenet.compare.table import columns, depths_of, line, title
from odenet.compare.units import error, seconds, size

_CAPTIONS = {
    "gradient_error": "Relative error of the whole gradient over depth, with the fitted order. Ring and cross coincide "
    "where two backends agree.",
    "memory": "Most bytes alive at once for loss and gradient. Backends count in different ways.",
    "time": "Median seconds of loss and gradient; compilation is not in them.",
}


def page(results: Results, figures: Mapping[str, str]) -> str:
    """The page's text. Whatever comes from results is escaped.

    Args:
        results: a finished or an interrupted comparison.
        figures: SVG text by name, see `odenet.compare.figures`.
    """
    plan = results.plan
    measured = sum(row.ok for row in results.rows)
    lead = (
        f"{' and '.join(plan.backends)} · {', '.join(each.name for each in plan.solvers)} · "
        f"{len(plan.gradients)} gradient methods · depths {', '.join(map(str, plan.depths))}"
    )
    how_many = f"{measured} of {len(plan.cells())} cells measured in {seconds(results.seconds)}"
    parts = [
        f"<header><h1>odenet compare</h1><p>{escape(lead)}</p><p>{escape(how_many)}</p></header>",
        _section("How to read this", _list(findings(results))),
        *(_figure(figures[each], caption) for each, caption in _CAPTIONS.items() if each in figures),
        _section("Errors, orders and costs", _summary(results.rows)),
        _section(f"All {len(results.rows)} cells", _cells(results.rows)),
        _section("Plan", _facts({key: _said(value) for key, value in plan.to_json().items()})),
        _section("Machine", _facts(results.machine)),
        _section("What each column means", _facts(COLUMNS)),
    ]
    return _asset("page.html").format(
        style=_asset("page.css"), script=_asset("page.js"), body="\n".join(parts), title="odenet compare"
    )


def _asset(file: str) -> str:
    return resources.files("odenet.compare").joinpath(file).read_text(encoding="utf-8")


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _list(found: Iterable[Finding]) -> str:
    return "<ul>" + "".join(f"<li><b>{escape(each.topic)}</b>: {escape(each.text)}</li>" for each in found) + "</ul>"


def _facts(facts: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items()) + "</dl>"


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _figure(svg: str, caption: str) -> str:
    drawing = svg[svg.index("<svg") :].replace(INK, "currentColor")  # readable on dark paper, too
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _summary(rows: Sequence[Row]) -> str:
    found = curves(rows)
    colour = colours(curve.gradient for curve in found)
    parts = []
    for solver in dict.fromkeys(curve.solver for curve in found):
        mine = [curve for curve in found if curve.solver == solver]
        depths, ends = depths_of(mine)
        body = []
        for curve in mine:
            first, *others = line(curve, depths, ends)
            dot = f'<span class="dot" style="background:{colour[curve.gradient].replace(INK, "currentColor")}"></span>'
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
            body.append(f'<tr><td title="{escape(name(curve.gradient))}">{dot}{escape(first)}</td>{cells}</tr>')
        head = "".join(_heading(heading) for heading in columns(depths, ends))
        parts.append(
            f'<h3>{escape(title(mine))}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )
    return "".join(parts) or "<p>No cell was measured.</p>"


def _heading(heading: str) -> str:
    kind = ' class="number"' if heading.startswith(">") else ""
    return f"<th{kind}>{escape(heading.removeprefix('>'))}</th>"


def _cells(rows: Sequence[Row]) -> str:
    """All rows; `data-v` carries the number that a column is sorted by."""
    same = {column for column in ("device", "dtype") if len({getattr(row, column) for row in rows}) == 1}
    shown = [column for column in COLUMNS if column not in same and not column.endswith(("_expected", "_method"))]
    head = "".join(
        f'<th aria-sort="none"><button type="button" title="{escape(COLUMNS[column])}">{escape(_label(column))}'
        "</button></th>"
        for column in shown
    )
    body = "".join(
        f"<tr{'' if row.ok else ' class=bad'}>{''.join(_cell(column, getattr(row, column)) for column in shown)}</tr>"
        for row in rows
    )
    return (
        '<p><label>Show rows with <input id="filter" type="search" placeholder="heun jax N=64 …"></label> '
        '<span id="shown"></span></p><div class="wide"><table id="cells"><thead><tr>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _label(column: str) -> str:
    return column.replace("_seconds", " time").replace("_bytes", " memory").replace("_", " ")


def _cell(column: str, value: object) -> str:
    if value is None:
        return '<td data-v="">–</td>'
    if isinstance(value, bool):
        return f'<td data-v="{int(value)}">{"yes" if value else "no"}</td>'
    if isinstance(value, (int, float)):
        if column == "loss":
            text = f"{value:.6g}"
        elif column.endswith("_seconds"):
            text = seconds(value)
        elif column.endswith("_bytes"):
            text = size(value)
        else:
            text = str(value) if isinstance(value, int) else error(value)
        known = f' data-t="N={value}"' if column == "depth" else ""
        return f'<td class="number" data-v="{escape(repr(value))}"{known}>{escape(text)}</td>'
    return f'<td data-v="{escape(str(value))}">{escape(str(value))}</td>'
