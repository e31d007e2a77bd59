"""Tables never lose a digit, however narrow the screen."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from odenet._report.terminal import table


def shown(drawing, width: int) -> str:
    screen = Console(file=io.StringIO(), width=width, highlight=False)
    screen.print(drawing)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [40, 52, 60, 79, 80, 81, 100, 132, 200])
def test_no_cell_of_numbers_is_broken_or_cut(width):
    choose = random.Random(width)
    for _ in range(40):
        count = choose.randint(1, 9)
        heads = ["gradient", *choose.choices([">f there", ">peak memory N=4 → 64", ">1 - cos", "note"], k=count)]
        cells = [[f"{choose.random() * 10 ** choose.randint(-9, 12):.{choose.randint(0, 12)}g}" for _ in range(count)]]
        rows = [["discrete-adjoint:correct=no", *numbers] for numbers in cells]
        text = shown(table("errors", heads, rows), width)
        for number in cells[0]:
            assert number in text.split()
        assert max(map(len, text.splitlines())) <= width


def test_texts_fold_before_rows_are_stacked():
    drawing = table(
        "t", ["name", ">x", "note"], [["a", "1.25", "a long note of many words that has to fold somewhere"]]
    )
    assert drawing.fits(40)
    assert not drawing.fits(8)
    assert "note:" not in shown(drawing, 40)
    assert "note:" in shown(drawing, 10)
