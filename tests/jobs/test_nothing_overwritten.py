"""A new run keeps what an earlier one measured, a resumed run drops nothing, and results of wrong types are refused."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

import odenet
from odenet import InputError
from odenet._jobs.compare.command import DEFAULT
from odenet._jobs.compare.results import MeasuredGradient
from odenet._jobs.reproduce.claims import reconstruction
from odenet._jobs.reproduce.command import command, merge
from odenet._jobs.reproduce.reproduction import Settings, reproductions
from odenet._jobs.reproduce.results import FILES, ReproductionPoints, read
from odenet._jobs.train.checkpoint import Outcome
from odenet._jobs.train.plan import TrainingPlan

CHOICES = Settings(("torch",), seeds=3, scale="quick")
QUIET = Console(quiet=True)


@pytest.fixture
def quick(monkeypatch):
    """One reproduction that measures at once; no figure and no verdict of what it measures."""
    (name,) = ("reconstruction",)
    each = replace(
        reproductions()[name],
        cells=lambda choices: choices.cells(("one",), (4, 8)),
        measure=lambda cell, choices: (cell.point(reconstruction.ERROR, 2.0 + cell.seed),),
    )
    monkeypatch.setattr("odenet._jobs.reproduce.command.reproductions", lambda: {name: each})
    monkeypatch.setattr("odenet._jobs.reproduce.report.judge", lambda *arguments: True)
    return each


def earlier(each, folder, choices=CHOICES):
    points = [cell.point(reconstruction.ERROR, 1.0) for cell in each.cells(choices)]
    ReproductionPoints(each.name, choices, {}, 1.0, tuple(points)).write(folder / each.name)
    return tuple(points)


def test_a_new_reproduction_keeps_the_points_of_an_earlier_one(quick, tmp_path):
    earlier(quick, tmp_path)
    was = {name: (tmp_path / quick.name / name).read_text() for name in FILES}
    done = CliRunner().invoke(command, [quick.name, "--quick", "--seeds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "kept the earlier results as" in done.output
    for name, text in was.items():
        assert (tmp_path / quick.name / name.replace(".", ".previous.")).read_text() == text
    new = read(tmp_path / quick.name)
    assert new is not None
    assert {point.value for point in new.points} == {2.0}


def test_one_that_measures_nothing_leaves_the_earlier_one_alone(quick, tmp_path, monkeypatch):
    points = earlier(quick, tmp_path)

    def interrupt(cell, choices):
        raise KeyboardInterrupt

    stopped = replace(quick, measure=interrupt)
    monkeypatch.setattr("odenet._jobs.reproduce.command.reproductions", lambda: {quick.name: stopped})
    done = CliRunner().invoke(command, [quick.name, "--quick", "--out", str(tmp_path)])
    assert done.exit_code == 130
    assert read(tmp_path / quick.name).points == points


@pytest.mark.parametrize("options", [("--seeds", "1"), ("--seeds", "4"), ("--backend", "jax"), ()])
def test_a_resumed_reproduction_drops_nothing(quick, tmp_path, options):
    """Fewer seeds and another backend, too: what was measured stays, and only what is missing is run."""
    points = earlier(quick, tmp_path)
    done = CliRunner().invoke(command, [quick.name, "--quick", "--out", str(tmp_path), "--resume", *options])
    assert done.exit_code == 0, done.output
    whole = read(tmp_path / quick.name)
    assert set(points) <= set(whole.points)
    assert not whole.todo(quick)
    assert {point.value for point in set(whole.points) - set(points)} <= {2.0 + seed for seed in range(8)}
    assert not list(tmp_path.rglob("*.previous.*"))


def test_merged_points_do_not_replace_others(quick, tmp_path):
    points = earlier(quick, tmp_path / "part")
    others = earlier(quick, tmp_path / "whole", replace(CHOICES, seeds=2))
    assert merge([tmp_path / "part"], tmp_path / "whole", QUIET, QUIET) == 0
    assert read(tmp_path / "whole" / quick.name).points == points
    kept = (tmp_path / "whole" / quick.name / "points.previous.csv").read_text()
    assert len(kept.splitlines()) == 1 + len(others)


def comparison():
    (cell, *_) = DEFAULT.cells()
    backend, *names = cell.key
    row = MeasuredGradient(backend, "cpu", "float64", *names, "piecewise", "ok", 2.25)
    return odenet.ComparisonResults(DEFAULT, {"cpu": "a processor"}, (row,), 1.5)


WRONG = (5, "a", None, [1], 1.5, ("a",), object(), float("nan"), True, b"x")


@pytest.mark.parametrize("part", ["results", "plan", "row"])
def test_results_of_wrong_types_are_refused(part):
    """Made by hand, or changed by dataclasses.replace: right, or an InputError, and what was accepted can be shown."""
    whole = comparison()
    of = {"results": whole, "plan": whole.plan, "row": whole.rows[0]}[part]
    refused = 0
    for field in dataclasses.fields(of):
        for value in WRONG:
            try:
                changed = replace(of, **{field.name: value})
            except InputError:
                refused += 1
                continue
            shown = {"results": changed} if part == "results" else {part: changed}
            results = shown.get("results") or replace(
                whole, **({"plan": changed} if part == "plan" else {"rows": (changed,)})
            )
            assert str(results)
            assert results.text()
    assert refused > 5 * len(dataclasses.fields(of)) / 2


def test_results_are_written_where_a_text_says(tmp_path):
    comparison().write(str(tmp_path / "results"))
    assert odenet.read_results(str(tmp_path / "results")).rows == comparison().rows
    with pytest.raises(InputError, match="folder"):
        comparison().write(None)


def test_training_results_of_wrong_types_are_refused(tmp_path):
    right = {
        "plan": TrainingPlan(),
        "rows": (),
        "test": Outcome(1, 0.5, 0.5, 10),
        "network": odenet.NetSpec("mlp"),
        "weights": {},
        "folder": tmp_path,
    }
    assert "50.0 %" in repr(odenet.TrainingResults(**right))
    for name in right:
        for value in (5, "a", None, [1], ("a",), object()):
            with pytest.raises(InputError, match=r"row|" + name):
                odenet.TrainingResults(**{**right, name: value})
