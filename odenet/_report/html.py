"""Pieces of a self-contained HTML page, nothing from outside; whatever comes from results is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from odenet._report.style import INK
from odenet._report.units import error, seconds, size

REPORT = "report.html"


def document(title: str, parts: Iterable[str]) -> str:
    """The whole page of these parts."""
    body = "\n".join(parts)
    return _asset("page.html").format(
        style=_asset("page.css"), script=_asset("page.js"), body=body, title=escape(title)
    )


def header(title: str, lines: Iterable[str]) -> str:
    """The title of the page, and lines below it."""
    return f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in lines)}</header>"


def section(heading: str, body: str) -> str:
    """A section of the page with its heading."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def facts(known: Mapping[str, str]) -> str:
    """Names and what is known of them."""
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in known.items()) + "</dl>"


def details(
    rows: Sequence[Any], columns: Mapping[str, str], example: str, plan: Mapping[str, Any], machine: Mapping[str, str]
) -> list[str]:
    """What stands at the end of every report: all rows, the plan, the machine, and what the columns mean.

    Args:
        rows, columns, example: as in `cells`.
        plan: the options of the job, plain data.
        machine: as `odenet._report.machine.machine` tells it.
    """
    return [
        section(f"All {len(rows)} cells", cells(rows, columns, example)),
        section("Plan", facts({name: option(value) for name, value in plan.items()})),
        section("Machine", facts(machine)),
        section("What each column means", facts(columns)),
    ]


def option(value: object) -> str:
    """The value of an option as a reader reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def figure(svg: str, caption: str) -> str:
    """A drawing, as SVG text, with a caption."""
    drawing = svg[svg.index("<svg") :].replace(INK, "currentColor")  # readable on dark paper, too
    width = re.search(r'<svg [^>]*?width="([\d.]+)pt"', drawing)
    if width is not None:
        drawing = drawing.replace("<svg ", f'<svg style="--natural: {width[1]}pt" ', 1)
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def cells(rows: Sequence[Any], columns: Mapping[str, str], example: str) -> str:
    """All rows; `data-v` carries the number that a column is sorted by.

    Args:
        rows: frozen rows with a property `ok`.
        columns: names of fields and what they mean.
        example: of words to filter rows by.
    """
    same = {column for column in ("device", "dtype") if len({getattr(row, column) for row in rows}) == 1}
    shown = [column for column in columns if column not in same and not column.endswith(("_expected", "_method"))]
    head = "".join(
        f'<th aria-sort="none"><button type="button" title="{escape(columns[column])}">{escape(_label(column))}'
        "</button></th>"
        for column in shown
    )
    body = "".join(
        f"<tr{'' if row.ok else ' class=bad'}>{''.join(_cell(column, getattr(row, column)) for column in shown)}</tr>"
        for row in rows
    )
    return (
        f'<p><label>Show rows with <input id="filter" type="search" placeholder="{escape(example)}"></label> '
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


def _asset(file: str) -> str:
    return resources.files("odenet._report").joinpath(file).read_text(encoding="utf-8")
