"""The page on performance has the numbers of the benchmarks' results, and says which."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location(
    "performance", Path(__file__).parents[2] / "benchmarks" / "performance.py"
)
assert spec is not None
assert spec.loader is not None
performance = importlib.util.module_from_spec(spec)
spec.loader.exec_module(performance)
PAGE, ROW, filled, number = performance.PAGE, performance.ROW, performance.filled, performance.number


def test_each_number_of_the_page_is_that_of_the_results():
    text = PAGE.read_text(encoding="utf-8")
    assert len(ROW.findall(text)) >= 40
    assert all(ROW.match(line) for line in text.splitlines() if line.startswith("| ") and "| what |" not in line)
    assert filled(text) == text


def test_a_number_of_no_row_or_of_several_is_an_error():
    with pytest.raises(LookupError, match="0 rows"):
        number("small_steps", "mode=none", "ratio")
    with pytest.raises(LookupError, match="rows of small_steps"):
        number("small_steps", "mode=eager", "ratio")
