"""What jobs leave on disk: damaged files are refused by name, and a folder that goes away costs nothing."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import odenet
from odenet import FileError, WriteError
from odenet._jobs.compare import command as compare
from odenet._jobs.compare.results import Comparison, MeasuredGradient
from odenet._jobs.reproduce import results as reproduced
from odenet._jobs.reproduce.results import Point, ReproductionPoints, Settings
from odenet._jobs.train import checkpoint, job
from odenet._jobs.train.plan import TrainingPlan
from odenet._jobs.work_precision.results import SolvePlan, WorkPrecision
from odenet._solvers.names import solver
from odenet._test_problems.named import problem_named

MACHINE = {"cpu": "a processor", "cores": "2"}


def comparison():
    plan = compare.DEFAULT
    cells = plan.cells()[:4]
    rows = [
        MeasuredGradient(*cell.key[:1], "cpu", "float64", *cell.key[1:], "piecewise", "ok", 2.25 + n, 0.5, 1.5e-7)
        for n, cell in enumerate(cells)
    ]
    return Comparison(plan, MACHINE, tuple(rows), 12.5)


def diagram():
    plan = SolvePlan((problem_named("decay"),), ("torch",), (solver("dopri5"),), (1e-3, 1e-5), repeats=1)
    return WorkPrecision(plan, MACHINE, (), 3.25)


def reproduction():
    points = tuple(Point("torch", 0, "corrected", n, "error", None, None, 0.125 / n) for n in (4, 8, 16))
    return ReproductionPoints("distance", Settings(("torch",)), MACHINE, 1.5, points)


def training():
    row = checkpoint.Epoch(1, 0.1, 2.25, 0.5, 2.125, 0.25, 1e-3, 1024, 0.5, 1.7e9)
    return checkpoint.TrainingRun(TrainingPlan(), {"name": "digits"}, MACHINE, (row,))


KINDS = {
    "compare": (comparison, "results.json", Comparison.read),
    "benchmark": (diagram, "results.json", WorkPrecision.read),
    "reproduce": (reproduction, "points.json", reproduced.read),
    "train": (training, "run.json", checkpoint.read),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_a_disk_changed_is_refused_or_right(kind, tmp_path):
    build, name, read = KINDS[kind]
    build().write(tmp_path)
    whole, path = (tmp_path / name).read_bytes(), tmp_path / name
    right, draw = read(tmp_path), random.Random(kind)
    assert right is not None
    refused = 0
    for trial in range(300):
        place = draw.randrange(len(whole))
        if trial % 3 == 0:  # cut off
            damaged = whole[:place]
        elif trial % 3 == 1:  # one bit
            damaged = whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :]
        else:  # a digit for a digit
            digits = [n for n, byte in enumerate(whole) if chr(byte).isdigit()]
            place = draw.choice(digits)
            damaged = whole[:place] + str((int(chr(whole[place])) + 1) % 10).encode() + whole[place + 1 :]
        path.write_bytes(damaged)
        try:
            again = read(tmp_path)
        except FileError as error:
            refused += name in str(error)
        else:
            assert again == right, damaged
    assert refused > 250


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_the_first_versions_has_no_checksum_and_is_read(kind, tmp_path):
    build, name, read = KINDS[kind]
    build().write(tmp_path)
    right = read(tmp_path)
    plain = json.loads((tmp_path / name).read_text())
    assert isinstance(plain.pop("checksum"), int)
    (tmp_path / name).write_text(json.dumps(plain))
    assert read(tmp_path) == right


def test_results_are_read_and_merged_by_their_checksum(tmp_path):
    comparison().write(tmp_path)
    path = tmp_path / "results.json"
    path.write_text(path.read_text().replace("2.25", "2.26"))
    with pytest.raises(FileError, match=r"results\.json.*checksum"):
        odenet.read_results(tmp_path)
    from odenet._jobs.merge import command

    ended = CliRunner().invoke(command, [str(tmp_path), "-o", str(tmp_path / "whole")])
    assert isinstance(ended.exception, FileError)
    assert "checksum" in str(ended.exception)


SMALL = ["--backend", "fake", "--solver", "euler", "--gradient", "backprop", "--depth", "2,4,8", "--batch", "4"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("odenet._report.figures.write_report", lambda *arguments: [])


def in_the_third_cell(fake, act):
    """Let something happen while the third cell is measured, the first of which is on disk."""
    calls = []

    def before(model):
        calls.append(model)
        if model.spec.depth == 8 and not any(call.spec.depth == 8 for call in calls[:-1]):
            act()

    fake.before = before


def test_of_a_comparison_whose_folder_is_deleted_nothing_is_lost(fake, quick, tmp_path):
    out = tmp_path / "out"
    in_the_third_cell(fake, lambda: shutil.rmtree(out))
    ended = CliRunner().invoke(compare.command, [*SMALL, "--out", str(out)])
    assert ended.exit_code == 0, ended.output
    assert [row.depth for row in odenet.read_results(out).rows] == [2, 4, 8]


@pytest.mark.parametrize("deleted", [False, True])
def test_results_of_another_run_are_not_overwritten(deleted, fake, quick, tmp_path):
    out = tmp_path / "out"

    def replaced():
        if deleted:
            shutil.rmtree(out)
            out.mkdir()
        (out / "results.json").write_text("of another run")

    in_the_third_cell(fake, replaced)
    ended = CliRunner().invoke(compare.command, [*SMALL, "--out", str(out)])
    assert isinstance(ended.exception, WriteError), ended.output
    assert "another run wrote" in str(ended.exception)
    assert [path.name for path in out.iterdir() if path.suffix != ".csv"] == ["results.json"]
    assert (out / "results.json").read_text() == "of another run"


@pytest.mark.parametrize("replaced", [False, True])
def test_training_whose_folder_is_deleted_stops_at_the_next_epoch(replaced, tmp_path, monkeypatch):
    out, epochs, epoch = tmp_path / "out", [], job._epoch

    def watched(trainer, plan, number, *rest):
        epochs.append(number)
        if number == 2:
            shutil.rmtree(out)
            if replaced:
                training().write(out)
        return epoch(trainer, plan, number, *rest)

    monkeypatch.setattr(job, "_epoch", watched)
    images = np.random.default_rng(0).normal(size=(60, 4, 4)), np.arange(60) % 3
    options = {"net": "mlp", "depth": 2, "width": 4, "epochs": 4, "batch": 16, "augment": False, "quiet": True}
    with pytest.raises(WriteError, match="deleted, moved or replaced"):
        odenet.train(images, out=out, **options)
    assert epochs == [1, 2]
    assert out.exists() == replaced
    if replaced:
        assert checkpoint.read(out) == training()
