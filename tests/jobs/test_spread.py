"""Work that is divided, among workers and among machines: all of it is done, once."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from unit_work import Numbers, here, squares

import odenet
from odenet import InputError, OdenetError
from odenet._jobs import merge as merging
from odenet._jobs.cells.executor import pool
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.cells.plan import Shard
from odenet._jobs.cells.results import CellResults
from odenet._jobs.cells.run import JobOptions
from odenet._jobs.cells.spread import Spread
from odenet._jobs.compare import command as comparing
from odenet._jobs.compare.results import Comparison, MeasuredGradient
from odenet._jobs.reproduce.command import reproduce
from odenet._jobs.reproduce.reproduction import Settings, reproductions
from odenet._jobs.reproduce.results import read
from odenet._jobs.train.job import train
from odenet._jobs.train.plan import TrainingPlan
from odenet._jobs.train.seeds import TrainedSeeds, train_seeds
from odenet._jobs.work_precision.results import SolvePlan, WorkPrecision
from odenet._report.machine import cores
from odenet._solvers.names import solver
from odenet._test_problems.named import problem_named

QUIET = Console(quiet=True)
job = functools.partial(JobOptions, screen=QUIET, messages=QUIET)


def spread(executor, folder, count=8, **plan):
    """Squares of the first numbers, the machines they were found on, and what was given up."""
    numbers, lost = Numbers(str(folder), **plan), []
    workers = pool(executor)
    try:
        made = Spread(workers, squares, numbers, here, lambda unit, error: lost.append(unit))
        return list(made.results(numbers.units(range(count)))), made.machines, lost
    finally:
        workers.close()


# --- executors


def whole(found, count=8, without=()):
    return sorted(found) == [(number, number**2) for number in range(count) if number not in without]


def test_processes_share_the_cores(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    workers = pool("processes:2")
    try:
        assert workers.submit(torch.get_num_threads).result() == max(1, (cores() or 1) // 2)
    finally:
        workers.close()


def test_processes_do_again_what_a_lost_worker_had(tmp_path):
    found, machines, lost = spread("processes:2", tmp_path, once=(1, 4), always=(6,), together=2)
    assert whole(found, without=(6, 7))  # of a unit that kills every worker nothing is known
    assert lost == [(6, 7)]
    assert machines == [{"cpu": "an abacus"}]


def test_an_error_of_ours_ends_the_work_at_once(tmp_path):
    with pytest.raises(InputError, match="3 is refused"):
        spread("processes:1", tmp_path, refused=(3,))


def test_any_executor_of_the_standard_library_is_taken(tmp_path):
    with ThreadPoolExecutor(3) as executor:
        assert whole(spread(executor, tmp_path)[0])
    broken = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with pytest.raises(OdenetError, match="the executor lost a worker and is broken"):
        spread(broken, tmp_path, always=(0,))
    broken.shutdown(wait=False)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("proceses", "no executor called 'proceses'.*processes"),
        ("processes:0", "'0' workers of processes"),
        ("processes:many", "'many' workers of processes"),
        (3, "an executor of type int"),
        ("submitit:slurm,gpu", "submitit"),
    ],
)
def test_other_executors_are_refused(choice, message):
    with pytest.raises(InputError, match=message):
        pool(choice)


@pytest.mark.parametrize("name", ["dask", "ray", "submitit"])
def test_a_library_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(name, name), None)
    with pytest.raises(InputError, match=rf"pip install {name}"):
        pool(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dask:2", "ray:2", "submitit:local,workers=2"])
def test_clusters_of_other_libraries_lose_nothing(tmp_path, monkeypatch, name):
    """Needs the library: `pip install 'dask[distributed]' ray submitit`."""
    kind = name.partition(":")[0]
    if importlib.util.find_spec({"dask": "distributed"}.get(kind, kind)) is None:
        pytest.skip(f"{kind} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the workers of a cluster have a path of their own
    found, _, lost = spread(name, tmp_path, once=(1,), together=2)
    assert whole(found)
    assert not lost


# --- shards


PLANS = {
    "compare": GridPlan(depths=(4, 8, 16)),
    "work-precision": SolvePlan(
        (problem_named("decay"), problem_named("kepler")),
        ("torch", "jax"),
        (solver("bosh3"), solver("dopri5")),
        (1e-3, 1e-4),
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_every_cell_is_in_one_shard_and_units_stay_together(plan, count):
    kind: type[CellResults[Any, Any]] = Comparison if isinstance(plan, GridPlan) else WorkPrecision
    parts = [kind(plan, {}, shard=Shard(number, count)).cells() for number in range(1, count + 1)]
    assert Counter(cell.key for part in parts for cell in part) == Counter(cell.key for cell in plan.cells())
    units = [{cell.key for cell in unit} for unit in plan.units(plan.cells())]
    for part in parts:
        keys = {cell.key for cell in part}
        assert all(unit <= keys or not unit & keys for unit in units)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= max(map(len, units))


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2", "1/99999999999"])
def test_other_shards_are_refused(text):
    with pytest.raises(InputError, match="shard"):
        Shard.read(text)


# --- merge


PLAN = GridPlan(backends=("torch",), depths=(4, 8), gradients=PLANS["compare"].gradients[:2])


def part(number, count=2, plan=PLAN, **changes):
    """What a shard leaves, without measuring."""
    results = Comparison(plan, {"cpu": f"machine {number}", "odenet": "1"}, shard=Shard(number, count))
    for cell in results.cells():
        values = {"gradient_error": 0.1 * cell.depth, "along": "linear", "dtype": "float64", "status": "ok"} | changes
        backend, name, gradient, depth = cell.key
        results = results.add(MeasuredGradient(backend, solver=name, gradient=gradient, depth=depth, **values), 1.0)
    return results


def merge(folder, *names, out="whole"):
    """`odenet merge`, and how it ends."""
    return CliRunner().invoke(
        merging.command, [*(str(folder / name) for name in names), "-o", str(folder / out)], catch_exceptions=True
    )


@pytest.fixture
def parts(tmp_path, monkeypatch):
    def write(results, folder):  # the figures take seconds
        (folder / "report.html").write_text(f"{len(results.rows)} rows")
        return [folder / "report.html"]

    monkeypatch.setattr(comparing, "JOB", dataclasses.replace(comparing.JOB, write=write))
    for number in (1, 2):
        part(number).write(tmp_path / f"part{number}")
    return tmp_path


def test_parts_become_a_whole(parts):
    done = merge(parts, "part1", "part2")
    assert done.exit_code == 0, done.output
    found = odenet.read_results(parts / "whole")
    assert [row.key for row in found.rows] == [cell.key for cell in PLAN.cells()]
    assert found.shard is None
    assert found.machine == {"cpu": "machine 1 | machine 2", "odenet": "1"}
    assert found.seconds == len(PLAN.cells())
    assert (parts / "whole" / "report.html").read_text() == f"{len(found.rows)} rows"
    again = merge(parts, "whole", "part1", out="again")  # a row that is there twice counts once
    assert again.exit_code == 0
    assert odenet.read_results(parts / "again").rows == found.rows
    assert merge(parts, "part2", "part1", out="other").exit_code == 0
    assert odenet.read_results(parts / "other").rows == found.rows


def test_a_part_that_is_left_out_is_said_and_can_be_resumed(parts):
    done = merge(parts, "part1")
    assert done.exit_code == 1
    assert f"{len(part(2).rows)} cells are left" in done.stderr
    whole = odenet.read_results(parts / "whole")
    assert {cell.key for cell in whole.todo()} == {row.key for row in part(2).rows}
    assert whole.resumed(PLAN, {"cpu": "machine 1", "odenet": "1"}).todo() == whole.todo()


def test_two_measurements_of_a_cell_are_refused(parts):
    part(1, gradient_error=0.7).write(parts / "part3")
    error = merge(parts, "part1", "part2", "part3").exception
    assert isinstance(error, InputError)
    assert "part1 and, with other numbers, in" in str(error)
    assert not (parts / "whole").exists()


def test_a_measurement_counts_more_than_a_failure(parts):
    part(1, status="out of memory").write(parts / "failed")
    for names in (("failed", "part1", "part2"), ("part1", "part2", "failed")):
        assert merge(parts, *names).exit_code == 0
        assert all(row.ok for row in odenet.read_results(parts / "whole").rows)
    assert merge(parts, "failed", "part2").exit_code == 1
    assert (parts / "whole" / "results.previous.json").exists()


def test_parts_that_do_not_belong_together_are_refused(parts):
    part(1, plan=replace(PLAN, seed=1)).write(parts / "other")
    assert "seed was" in str(merge(parts, "part1", "other").exception)
    (parts / "empty").mkdir()
    assert "has no results.json" in str(merge(parts, "part1", "empty").exception)
    for text in ("{", "[]", '{"format": "mine"}'):
        (parts / "empty" / "results.json").write_text(text)
        assert isinstance(merge(parts, "part1", "empty").exception, odenet.FileError)


def test_a_shard_is_resumed_as_that_shard(parts):
    first = part(1)
    with pytest.raises(InputError, match="shard 1/2, and this is shard 2/2"):
        first.resumed(PLAN, first.machine, Shard(2, 2))
    with pytest.raises(InputError, match="shard 1/2, and this is the whole"):
        first.resumed(PLAN, first.machine)
    with pytest.raises(InputError, match="a plan that grew"):
        first.resumed(replace(PLAN, depths=(4, 8, 16)), first.machine, Shard(1, 2))
    assert first.resumed(PLAN, first.machine, Shard(1, 2)).todo() == ()


# --- jobs


def test_compare_by_an_executor_finds_the_same():
    options = {"solvers": "euler", "depths": (2, 3), "gradients": "backprop", "repeats": 1}
    alone = odenet.compare(backends="torch", **options)
    with ThreadPoolExecutor(1) as executor:
        found = odenet.compare(backends="torch", **options, executor=executor)
    assert [row.key for row in found.rows] == [row.key for row in alone.rows]
    assert [row.gradient_error for row in found.rows] == [row.gradient_error for row in alone.rows]
    assert not found.left()


def test_a_reproduction_in_parts_is_the_whole_one(tmp_path, monkeypatch):
    every = dict(reproductions())
    tried = []

    def measure(cell, choices):
        tried.append(cell)
        return (cell.point("distance", cell.seed + 1 / cell.depth), cell.point("bound", 3.0))

    reproduction = replace(every["distance"], measure=measure, verdicts=lambda points: ())
    for module in ("command", "report"):
        place = f"odenet._jobs.reproduce.{module}.reproductions"
        monkeypatch.setattr(place, lambda: {**every, "distance": reproduction})
    choices = Settings(("torch",), seeds=2, scale="quick")
    cells = reproduction.cells(choices)
    for number in (1, 2):
        out = tmp_path / f"part{number}"
        assert reproduce((reproduction,), choices, job(out, shard=Shard(number, 2))) == 0
        assert not (out / "distance" / "verdicts.json").exists()  # half of the points say nothing
    assert sorted(tried, key=str) == sorted(cells, key=str)
    done = merge(tmp_path, "part1")
    assert (done.exit_code, "cells are left" in done.stderr) == (1, True)
    assert merge(tmp_path, "part1", "part2").exit_code == 0
    with ThreadPoolExecutor(2) as executor:
        assert reproduce((reproduction,), choices, job(tmp_path / "all", executor=executor)) == 0
    found = read(tmp_path / "whole" / "distance")
    assert found.points == read(tmp_path / "all" / "distance").points
    assert [point.cell for point in found.points[::2]] == list(cells)
    plain = json.loads((tmp_path / "part2" / "distance" / "points.json").read_text())
    plain["points"][0]["value"] = 9.0
    del plain["checksum"]  # which would say that it was changed
    (tmp_path / "part3" / "distance").mkdir(parents=True)
    (tmp_path / "part3" / "distance" / "points.json").write_text(json.dumps(plain))
    assert "with other numbers" in str(merge(tmp_path, "part1", "part2", "part3").exception)


TRAINING = TrainingPlan(net="mlp", depth=2, width=4, epochs=1, batch=32, limit_train=72)


@pytest.fixture
def no_curve(monkeypatch):
    """Without the figure of a run, which takes longer than the run."""
    monkeypatch.setattr("odenet._jobs.train.curve.write_curve", lambda run, out: [out / "curve.png"])


def test_training_over_seeds_in_parts_is_the_whole_one(tmp_path, no_curve):
    train_seeds(TRAINING, range(3), job(tmp_path / "all"))
    for number in (1, 2):
        train_seeds(TRAINING, range(3), job(tmp_path / f"part{number}", shard=Shard(number, 2)))
    assert merge(tmp_path, "part1", "part2").exit_code == 0
    once, merged = (TrainedSeeds.read(tmp_path / name) for name in ("all", "whole"))
    assert [replace(row, seconds=None) for row in merged.rows] == [replace(row, seconds=None) for row in once.rows]
    assert [row.seed for row in merged.rows] == [0, 1, 2]
    for seed in range(3):
        weights = [odenet.load_weights(tmp_path / name / f"seed-{seed}" / "weights.npz") for name in ("all", "whole")]
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    with pytest.raises(odenet.FileError, match="holds runs of the seeds 0, 1, 2 already"):
        train_seeds(TRAINING, range(3), job(tmp_path / "whole"))
    before = (tmp_path / "whole" / "results.csv").read_text()
    assert train_seeds(TRAINING, range(3), job(tmp_path / "whole", resume=True)) == 0
    assert (tmp_path / "whole" / "results.csv").read_text() == before


def test_runs_that_were_begun_are_gone_on_with(tmp_path, no_curve):
    first = replace(TRAINING, seed=1)
    out = tmp_path / "runs"
    train(first, out / "seed-1", False, QUIET)  # as a job that was killed before its first row leaves it
    with pytest.raises(odenet.FileError, match="seeds 1 already"):
        train_seeds(TRAINING, range(2), job(out))
    before = (out / "seed-1" / "run.json").read_bytes()
    assert train_seeds(TRAINING, range(2), job(out, resume=True)) == 0
    assert (out / "seed-1" / "run.json").read_bytes() == before
    with pytest.raises(odenet.FileError, match="nothing to resume"):
        train_seeds(TRAINING, range(2), job(tmp_path / "rums", resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("moment", [3.0, 6.0, 9.0])
def test_a_killed_worker_of_the_command_loses_nothing(tmp_path, moment):
    """`odenet compare --executor processes:2`, one of whose workers is killed from outside."""
    command = [sys.executable, "-m", "odenet", "compare", "--backend", "torch", "--solver", "euler", "--depth", "2..16"]
    command += ["--repeats", "1", "--executor", "processes:2", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        time.sleep(moment)
        listed = subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid=,args="], capture_output=True, text=True)
        workers = [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]
        for worker in workers[:1]:
            os.kill(worker, signal.SIGKILL)
        output, _ = job.communicate()
    assert job.returncode == 0, output
    found = odenet.read_results(tmp_path)
    assert not found.left()
    assert len({row.key for row in found.rows}) == len(found.rows) == 16
