"""`odenet.compare` in Python: the rows of the command, on any spec and batch; results that show themselves."""

from __future__ import annotations

import dataclasses
import html.parser

import numpy as np
import pandas
import pytest

import odenet
from odenet._jobs.compare.results import COLUMNS

SPEC = odenet.NetSpec("linear", width=4, inputs=(5,), classes=3)
BATCH = np.linspace(-1, 1, 35).reshape(7, 5), np.arange(7) % 3


@pytest.fixture
def results(fake):
    return odenet.compare(SPEC, BATCH, backends="fake", solvers="heun", depths=[2, 4, 8], repeats=1)


def test_rows_are_those_of_the_grid_on_this_network_and_batch(results):
    assert [row.key for row in results.rows] == [cell.key for cell in results.plan.cells()]
    assert {row.depth for row in results.rows} == {2, 4, 8}
    assert all(row.ok for row in results.rows)
    assert results.plan.batch == 7
    assert results.plan.spec(odenet.solver("heun"), 4) == dataclasses.replace(SPEC, depth=4, along="linear")
    assert results.seconds > 0


def test_results_show_themselves(results):
    assert "discrete-adjoint" in str(results)
    assert results.verdict.startswith("fake, heun, N=8: ")
    assert results.verdict in str(results).replace("\n", " ")
    html.parser.HTMLParser().feed(results._repr_html_())
    assert "<table>" in results._repr_html_()
    assert results.plot("memory").axes
    with pytest.raises(odenet.UnknownNameError, match="figure"):
        results.plot("nothing")


def test_results_are_read_again_as_they_were_written(results, tmp_path):
    results.write(tmp_path)
    again = odenet.read_results(tmp_path)
    assert again == results
    assert again.plan.network == SPEC
    with pytest.raises(odenet.FileError, match=r"no results\.json"):
        odenet.read_results(tmp_path / "elsewhere")


def test_a_frame_has_the_columns_of_the_table(results):
    frame = results.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(results.rows)


@pytest.mark.parametrize(
    "bad",
    [
        {"network": object()},
        {"network": SPEC},
        {"batch": 3},
        {"network": SPEC, "batch": (np.ones((7, 4)), np.zeros(7, int))},
        {"network": SPEC, "batch": (np.ones((7, 5)), np.full(7, 3))},
        {"network": SPEC, "batch": (np.ones((7, 5)), np.ones(7))},
        {"network": SPEC, "batch": (np.ones((0, 5)), np.ones(0, int))},
        {"start": "rough"},
        {"depths": 0},
        {"depths": "deep"},
        {"solvers": ()},
        {"gradients": "nothing"},
        {"backends": "nothing"},
        {"repeats": 0},
    ],
    ids=lambda bad: "-".join(bad),
)
def test_bad_input_is_an_error_of_ours(fake, bad):
    with pytest.raises(odenet.OdenetError):
        odenet.compare(**{"backends": "fake", **bad})
