"""`odenet solve`, by a backend of a few lines of NumPy."""

from __future__ import annotations

import csv
import json
from contextlib import nullcontext

import announcing
import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from quick import quick

import odenet
from odenet import SOLVERS, Backend, BackendEntry, Solution, Stats, _tree
from odenet._errors import DeviceUnavailableError
from odenet._gradients.record import Way
from odenet._jobs import cli as _cli
from odenet._jobs.solve.command import command
from odenet._jobs.solve.convergence import components
from odenet._solvers.step import add, increment
from odenet._test_problems.named import PROBLEMS
from odenet._test_problems.reference import arrays

calls: list[int] = []


class NumpyBackend(Backend):
    """Solves; it is the core's own step in a plain loop."""

    def solve(self, problem):
        calls.append(problem.grid.steps)
        grid, tableau = problem.grid, problem.solver.tableau
        leaves, build = _tree.flatten(problem.y0)
        y = tuple(np.asarray(leaf) for leaf in leaves)
        kept = [y]
        with np.errstate(all="ignore"):
            for n in range(grid.steps):

                def stage(i, at, n=n):
                    return tuple(_tree.leaves(problem.field(grid.time(n, tableau.c[i]), build(at))))

                y = add(y, increment(tableau, stage, y, grid.h))
                kept.append(y)
        ys = [np.stack([kept[n][k] for n in grid.saved]) for k in range(len(leaves))]
        stats = Stats("toy", problem.solver.name, problem.gradient.name, grid.steps, grid.steps * problem.solver.stages)
        return Solution(np.asarray(grid.times), build(ys), stats)

    def prepare(self, dtype, device):
        if device != "cpu":
            raise DeviceUnavailableError(f"the toy backend sees no device {device!r}", "cpu")
        return nullcontext()

    def to_numpy(self, leaf):
        return np.asarray(leaf)

    def devices(self):
        return ("cpu",)


NumpyBackend.__abstractmethods__ = frozenset()  # the verbs that this job does not use
EXACT = {odenet.Backprop: Way("numpy:nothing")}
TOY = BackendEntry(
    "toy", "numpy", "pip install numpy", f"{__name__}:NumpyBackend", ("numpy",), EXACT, families=("runge-kutta",)
)
PICKY = BackendEntry("picky", "numpy", "", f"{__name__}:NumpyBackend", ("nothing",), EXACT, solvers=("euler",))
ABSENT = BackendEntry(
    "absent",
    "no_such_framework",
    "pip install absent",
    f"{__name__}:NumpyBackend",
    ("nothing",),
    EXACT,
    ("runge-kutta",),
    ("runge-kutta",),
)


@pytest.fixture(autouse=True)
def announced(monkeypatch):
    calls.clear()
    with announcing.announced(monkeypatch, {name.lower(): f"{__name__}:{name}" for name in ("TOY", "PICKY", "ABSENT")}):
        yield


def solved(*arguments):
    result = CliRunner().invoke(command, [*arguments, "--backend", "toy"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def refused(capsys, *arguments):
    """The message with which the whole command line refuses, and that nothing was solved before."""
    with pytest.raises(SystemExit) as stopped:
        _cli.main(["solve", *arguments])
    assert stopped.value.code in (1, 2)
    assert calls == []
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def test_the_table_has_a_row_for_each_run():
    text = solved("decay", "--solver", "heun,rk4", "--depth", "8..32").stdout
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("toy")]
    assert [(row[1], row[3], row[4]) for row in rows] == [
        (name, str(steps), str(steps * SOLVERS[name].stages)) for name in ("heun", "rk4") for steps in (8, 16, 32)
    ]
    assert all(row[-1] == "success" for row in rows)


def test_depths_are_the_problem_s_own_unless_asked_for():
    solved("decay")
    assert tuple(calls) == PROBLEMS["decay"].depths


def test_depths_may_be_repeated_in_any_order():
    solved("decay", "--depth", "32,8", "--depth", "8..16")
    assert calls == [8, 16, 32]


@pytest.mark.parametrize("solver", ["euler", "heun", "ssprk3", "rk4", "dopri5"])
def test_the_fitted_order_is_the_solver_s(solver, tmp_path):
    solved("oscillator", "--solver", solver, "--depth", "64..256", "--json", str(tmp_path / "found.json"))
    (found,) = json.loads((tmp_path / "found.json").read_text())["orders"]
    assert found["fitted_order"] == pytest.approx(SOLVERS[solver].order, abs=0.2)


def test_results_on_disk_agree_with_one_another(tmp_path):
    paths = tmp_path / "new" / "runs.csv", tmp_path / "runs.json"
    solved("rigid-body", "--depth", "64,128", "--csv", str(paths[0]), "--json", str(paths[1]))
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = json.loads(paths[1].read_text())
    assert [{key: str(value) for key, value in row.items()} for row in whole["runs"]] == rows
    assert [int(row["f_evaluations"]) for row in rows] == [256, 512]
    assert whole["reference"] == "closed form"


@pytest.mark.parametrize(("dtype", "least", "most"), [("float32", 1e-9, 1e-5), ("float64", 1e-18, 1e-12)])
def test_the_number_type_is_the_one_asked_for(dtype, least, most, tmp_path):
    solved("rotation", "--solver", "dopri8", "--depth", "64", "--dtype", dtype, "--json", str(tmp_path / "r.json"))
    (run,) = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert run["dtype"] == dtype
    assert least < run["relative_error"] < most


NUMPY_WARNS = pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")  # the frameworks do not


@NUMPY_WARNS
def test_a_run_that_is_not_finite_is_reported_and_drawn_around(tmp_path):
    paths = tmp_path / "runs.json", tmp_path / "runs.png"
    text = solved(
        "duffing", "--solver", "euler", "--depth", "32,64", "--json", str(paths[0]), "--plot", str(paths[1])
    ).stdout
    assert "not finite" in text
    first, second = json.loads(paths[0].read_text())["runs"]
    assert (first["relative_error"], first["result"]) == (None, "not finite")
    assert (second["relative_error"] > 1, second["result"]) == (True, "success")
    assert paths[1].stat().st_size > 0


@NUMPY_WARNS
def test_a_figure_without_a_single_good_run_is_still_a_figure(tmp_path):
    solved("duffing", "--solver", "euler", "--depth", "32", "--plot", str(tmp_path / "a.svg"))
    assert "<svg" in (tmp_path / "a.svg").read_text()


DRAWN = ["chain", "lotka-volterra", "rotation", "logistic"]


@pytest.mark.parametrize("name", quick(DRAWN, ["lotka-volterra", "rotation"]))
def test_trees_arrays_and_complex_states_are_drawn(name, tmp_path):
    solved(name, "--solver", "heun,rk4", "--depth", "32,64", "--plot", str(tmp_path / "f.png"))
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert calls == [32, 64, 32, 64, 64]  # the finest once more, with every step kept


def test_components_are_named_after_their_place():
    def over_time(name):
        return components(_tree.map(lambda leaf: leaf[None], arrays(PROBLEMS[name].y0)))

    assert list(over_time("decay")) == ["y"]
    assert list(over_time("logistic")) == ["y[0]", "y[1]", "y[2]"]
    assert list(over_time("kepler")) == ["y[0]", "y[1]", "y[2]", "y[3]"]
    assert list(over_time("lotka-volterra")) == ["predators", "prey"]
    assert list(over_time("rotation")) == ["Re y", "Im y"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["keplr"], "take kepler"),
        ([], "Missing argument 'PROBLEM'"),
        (["decay", "--backend", "tou"], "take toy"),
        (["decay", "--backend", "absent"], "pip install absent"),
        (["decay", "--backend", "toy,picky", "--solver", "euler,rk4"], "picky does not offer solver rk4"),
        (["decay", "--solver", "rk5"], "take rk"),
        (["decay", "--depth", "0"], "at least 1"),
        (["decay", "--depth", "64..16"], "ranges go up"),
        (["decay", "--depth", "many"], "doubling range"),
        (["decay", "--dtype", "float16"], "float64"),
        (["decay", "--backend", "toy", "--device", "cuda:9"], "no device 'cuda:9'"),
        (["decay", "--colour"], "No such option"),
        (["decay", "--backend", "toy", "--plot", "figure.xyz"], ".png"),
        (["decay", "--backend", "toy", "--plot", "figure"], "has no suffix"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_choice_is_refused_before_anything_is_solved(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)


@pytest.mark.parametrize("flag", ["--plot", "--csv", "--json"])
def test_output_that_cannot_be_written_is_refused_before_anything_is_solved(flag, capsys, tmp_path):
    (tmp_path / "taken").write_text("a file where a folder is needed")
    path = str(tmp_path / "taken" / "out.png")
    assert f"{path} cannot be written" in refused(capsys, "decay", "--backend", "toy", flag, path)
    assert "is a directory" in refused(capsys, "decay", "--backend", "toy", flag, str(tmp_path))


def test_the_table_alone_is_on_standard_output(tmp_path):
    result = solved("decay", "--depth", "8", "--csv", str(tmp_path / "a.csv"))
    assert "wrote" not in result.stdout
    assert f"wrote {tmp_path / 'a.csv'}" in result.stderr


def test_problems_are_completed_in_the_shell():
    found = ShellComplete(command, {}, "solve", "_X").get_completions([], "ke")
    assert [(item.value, item.help) for item in found] == [("kepler", PROBLEMS["kepler"].summary)]


def test_help_shows_examples_line_by_line():
    text = CliRunner().invoke(command, ["--help"]).stdout
    assert "Examples:\n" in text
    assert "  odenet solve lotka-volterra\n" in text
