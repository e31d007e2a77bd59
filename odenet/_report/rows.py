"""Rows of results: frozen dataclasses whose fields are the columns, as JSON and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from odenet._errors import FileError, InputError, shown

Kind = TypeVar("Kind")


def column(meaning: str, default: Any = None) -> Any:
    """A field with what it means."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def columns(kind: Any) -> dict[str, str]:
    """Each column of a row type and what it means."""
    return {field.name: field.metadata["meaning"] for field in dataclasses.fields(kind)}


_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


def check_columns(row: Any) -> None:
    """Raises InputError for a column whose value is not of the type that the class of the row declares."""
    for name, declared, kinds, optional in _types(type(row)):
        value = getattr(row, name)
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        if not fits and not (optional and value is None):
            what = f"{name}={shown(value)}, a {type(value).__name__}, in a row of results"
            raise InputError(what, declared.replace("|", "or"))


@functools.cache
def _types(kind: Any) -> list[tuple[str, str, tuple[type, ...], bool]]:
    """Of each column: its name, its type as it is written and as classes, and whether it may be None."""
    written = [(field.name, str(field.type)) for field in dataclasses.fields(kind)]
    return [(name, text, _KINDS[text.partition(" ")[0]], text.endswith("| None")) for name, text in written]


def to_json(row: Any) -> dict[str, Any]:
    """Plain data; infinity and NaN, which JSON has not, as the strings "inf", "-inf" and "nan"."""
    return plain(dataclasses.asdict(row))


def dataframe(rows: Iterable[Any], names: list[str] | None = None) -> Any:
    """Rows as a pandas DataFrame, with these columns or all.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise InputError("to_dataframe() without pandas", "an installed pandas", "pip install pandas") from error
    columns: Any = names  # pandas' own type of it is narrower than a list of texts
    return pandas.DataFrame([to_json(row) for row in rows], columns=columns)


def from_json(kind: type[Kind], data: Mapping[str, Any]) -> Kind:
    """The row that `to_json` wrote.

    Raises:
        FileError: other columns than this version writes.
        InputError: a value that is not of the type of its column.
    """
    known = columns(kind)
    if set(data) != set(known):
        raise FileError(f"a row with the columns {', '.join(sorted(data))}", f"the columns {', '.join(known)}")
    values = dict(data)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if str(field.type).startswith("float") and isinstance(values[field.name], str):
            values[field.name] = float(values[field.name])
    row = kind(**values)
    check_columns(row)
    return row


def as_csv(kind: Any, rows: Iterable[Any]) -> str:
    """A table with a heading; nothing stands for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns(kind)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in to_json(row).items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, behind an apostrophe, which it does not show."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) and value != "-inf"
    return f"'{value}" if formula else value


def plain(value: Any) -> Any:
    """Plain data without infinity and NaN, which JSON has not: they become the strings "inf", "-inf" and "nan"."""
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
