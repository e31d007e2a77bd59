"""Work-precision diagrams, by backends of SciPy's RK45."""

from __future__ import annotations

import csv
import json
import math
from contextlib import nullcontext

import announcing
import numpy as np
import pytest
from click.testing import CliRunner

import odenet
from odenet import Backend, BackendEntry, FileError, InputError, Result, Solution, Stats, _tree, solver
from odenet._gradients.record import Way
from odenet._jobs import cli as _cli
from odenet._jobs.benchmark import command
from odenet._jobs.flags import tolerance_list
from odenet._jobs.solve.command import command as solve_command
from odenet._jobs.work_precision import figure
from odenet._jobs.work_precision.measure import measure
from odenet._jobs.work_precision.results import COLUMNS, AdaptiveSolve, SolvePlan, WorkPrecision
from odenet._test_problems.named import PROBLEMS
from odenet._test_problems.reference import arrays, mixed_error

calls: list[tuple[str, float]] = []
trouble: dict[int, BaseException] = {}  # what to raise at which call
OUTCOMES = list(Result)


class ScipyBackend(Backend):
    """Solves; the rtol of each call is noted."""

    name = "toy"

    def solve(self, problem):
        from scipy.integrate import solve_ivp

        calls.append((self.name, problem.grid.control.rtol))
        if len(calls) in trouble:
            raise trouble[len(calls)]
        leaves, build = _tree.flatten(problem.y0)
        shapes = [np.asarray(leaf).shape for leaf in leaves]
        cuts = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
        weights = () if problem.weights is None else (problem.weights.tree,)

        def tree(flat):
            parts = np.split(flat, cuts)
            return build([part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])

        def field(t, flat):
            return np.concatenate([np.ravel(k) for k in _tree.leaves(problem.field(t, tree(flat), *weights))])

        start = np.concatenate([np.ravel(leaf) for leaf in leaves])
        control = problem.grid.control
        found = solve_ivp(field, (problem.grid.t0, problem.grid.t1), start, rtol=control.rtol, atol=control.atol)
        evaluations = found.nfev if problem.solver.name != "tsit5" else None
        stats = Stats(self.name, problem.solver.name, "backprop", len(found.t) - 1, evaluations)
        outcome = Result.MAX_STEPS if len(found.t) > control.max_steps else Result.SUCCESS
        ys = _tree.map(lambda leaf: np.asarray(leaf)[None], tree(found.y[:, -1]))
        return Solution(np.asarray([problem.grid.t1]), ys, stats, OUTCOMES.index(outcome))

    def prepare(self, dtype, device):
        return nullcontext()

    def to_numpy(self, leaf):
        return np.asarray(leaf)

    def devices(self):
        return ("cpu",)


class Other(ScipyBackend):
    """The same by another name."""

    name = "other"


ScipyBackend.__abstractmethods__ = Other.__abstractmethods__ = frozenset()  # the verbs that this job does not use
EXACT = {odenet.Backprop: Way("numpy:nothing", "numpy:nothing")}
TOY = BackendEntry(
    "toy",
    "numpy",
    "pip install numpy",
    f"{__name__}:ScipyBackend",
    ("numpy",),
    EXACT,
    families=("runge-kutta", "reversible"),
    adaptive_families=("runge-kutta",),
)
OTHER = BackendEntry("other", "numpy", "", f"{__name__}:Other", ("nothing",), EXACT, adaptive=("dopri5",))
ABSENT = BackendEntry(
    "absent",
    "no_such_framework",
    "pip install absent",
    f"{__name__}:ScipyBackend",
    ("nothing",),
    EXACT,
    ("runge-kutta",),
    ("runge-kutta",),
)


@pytest.fixture(autouse=True)
def announced(monkeypatch):
    calls.clear()
    trouble.clear()
    with announcing.announced(monkeypatch, {name.lower(): f"{__name__}:{name}" for name in ("TOY", "OTHER", "ABSENT")}):
        yield


def plan(problems=("oscillator",), backends=("toy",), solvers=("dopri5",), tolerances=(1e-3, 1e-6), **options):
    return SolvePlan(
        tuple(PROBLEMS[name] for name in problems), backends, tuple(map(solver, solvers)), tolerances, **options
    )


def rows(made):
    return list(measure(made, made.cells()))


def benchmark(out, *arguments, code=0):
    result = CliRunner().invoke(
        command, ["work-precision", "--out", str(out), *arguments], catch_exceptions=False, standalone_mode=True
    )
    assert result.exit_code == code, result.output
    return result


QUICK = ("--problem", "decay", "--backend", "toy,other", "--rtol", "1e-3..1e-5", "--repeats", "1", "--solver", "dopri5")


def test_a_row_says_how_far_off_the_end_is_and_what_it_took():
    loose, tight = rows(plan())
    assert (loose.status, loose.result, loose.rtol, loose.atol) == ("ok", "success", 1e-3, 1e-3)
    assert tight.error < 1e-4 < loose.error < 1
    assert tight.f_evaluations > loose.f_evaluations > 20
    assert tight.accepted > loose.accepted
    assert loose.solve_seconds > 0 < loose.first_seconds
    assert set(COLUMNS) == set(vars(loose))


def test_weights_trees_and_an_absolute_tolerance_of_its_own_are_passed_on():
    for name in ("detest-c1", "detest-c5", "lotka-volterra"):
        (row,) = rows(plan((name,), tolerances=(1e-6,), atol=1e-9))
        assert row.error < 1e-3
        assert (row.rtol, row.atol) == (1e-6, 1e-9)


def test_what_cannot_be_run_is_a_row_that_says_why():
    made = plan(backends=("toy", "other", "absent"), solvers=("dopri5", "bosh3", "rk4"), tolerances=(1e-3,))
    found = {(row.backend, row.solver): row for row in rows(made)}
    assert found["other", "dopri5"].ok
    assert found["other", "bosh3"].status == "not offered by other"
    assert "pip install absent" in found["absent", "dopri5"].status
    assert "estimates no error" in found["toy", "rk4"].status
    assert [key for key, row in found.items() if not row.skipped] == [
        ("toy", "dopri5"),
        ("other", "dopri5"),
        ("toy", "bosh3"),
    ]


def test_evaluations_that_are_not_counted_are_left_out(tmp_path):
    benchmark(tmp_path, *QUICK[:2], "--backend", "toy", "--solver", "tsit5", "--rtol", "1e-3,1e-4")
    first, _ = WorkPrecision.read(tmp_path).rows
    assert first.ok
    assert first.f_evaluations is None
    assert (tmp_path / "work_precision.png").exists()


def test_a_framework_s_own_error_is_recorded_and_the_rest_is_run():
    trouble[1] = RuntimeError("out of memory")
    bad, good = rows(plan())
    assert bad.failed
    assert bad.status == "RuntimeError: out of memory"
    assert good.ok


def test_a_solve_that_was_given_up_has_no_error_to_draw():
    (row,) = rows(plan(tolerances=(1e-6,), max_steps=5))
    assert (row.status, row.result, row.error) == ("ok", "max steps", None)
    assert not row.ok
    assert not row.failed


def test_backends_are_timed_in_turn():
    rows(plan(backends=("toy", "other"), tolerances=(1e-3,), repeats=3))
    names = [name for name, _ in calls]
    assert names[:4] == ["toy", "other"] * 2
    assert names == ["toy", "other"] * (len(names) // 2)


def test_without_repeats_each_cell_is_called_once():
    (row,) = rows(plan(tolerances=(1e-3,), repeats=0))
    assert len(calls) == 1
    assert row.solve_seconds is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tolerances": ()}, "without tolerances"),
        ({"tolerances": (2.0,)}, "between 0 and 1"),
        ({"dtype": "int"}, "int"),
    ],
    ids=["none", "large", "dtype"],
)
def test_a_plan_checks_itself(options, words):
    with pytest.raises(InputError, match=words):
        plan(**options)


def test_a_plan_and_its_results_survive_the_disk(tmp_path):
    made = plan(("oscillator", "detest-a1"), ("toy", "absent"), ("dopri5", "tsit5"), atol=1e-7)
    results = WorkPrecision(made, {"cpu": "x"})
    for row in rows(made)[:3]:
        results = results.add(row)
    results.write(tmp_path)
    again = WorkPrecision.read(tmp_path)
    assert again == results
    assert len(again.left()) == len(made.cells()) - 3
    with (tmp_path / "results.csv").open() as file:
        assert [row["rtol"] for row in csv.DictReader(file)] == [str(row.rtol) for row in results.rows]


def test_results_of_another_format_are_refused(tmp_path):
    assert WorkPrecision.read(tmp_path) is None
    (tmp_path / "results.json").write_text('{"format": "odenet compare 1"}')
    with pytest.raises(FileError, match="not in the format"):
        WorkPrecision.read(tmp_path)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take a second each."""
    monkeypatch.setattr(figure, "diagram", lambda rows: None)


def test_the_command_writes_table_figure_page_and_results(tmp_path):
    result = benchmark(tmp_path, *QUICK)
    assert len([line for line in result.stdout.splitlines() if "dopri5 (5)" in line]) == 6
    assert "[6/6]" in result.stderr
    names = {"results.csv", "results.json", "report.html", "work_precision.png", "work_precision.svg"}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "work_precision.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page
    assert "decay" in page
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["complete"]
    assert [row["backend"] for row in plain["rows"]] == ["toy", "other"] * 3


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_run_keeps_what_is_done_and_is_resumed(tmp_path):
    trouble[8] = KeyboardInterrupt()  # in the second group: the first has two first calls, a warm-up and a repeat
    result = benchmark(tmp_path, *QUICK, code=130)
    assert "go on with" in result.stderr
    done = len(json.loads((tmp_path / "results.json").read_text())["rows"])
    assert 0 < done < 6
    assert (tmp_path / "report.html").exists()
    calls.clear()
    trouble.clear()
    benchmark(tmp_path, *QUICK, "--resume")
    assert {rtol for _, rtol in calls} <= {1e-4, 1e-5}
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 6


@pytest.mark.usefixtures("undrawn")
def test_a_resumed_run_may_grow_but_not_change(tmp_path):
    benchmark(tmp_path, *QUICK)
    calls.clear()
    benchmark(tmp_path, *QUICK, "--solver", "bosh3", "--resume")
    assert {name for name, _ in calls} == {"toy"}  # other has no bosh3
    with pytest.raises(InputError, match="max_steps was 20000 and is 7"):
        benchmark(tmp_path, *QUICK, "--resume", "--max-steps", "7")
    with pytest.raises(InputError, match="another machine"):
        WorkPrecision.read(tmp_path).resumed(WorkPrecision.read(tmp_path).plan, {"cpu": "another"})


@pytest.mark.usefixtures("undrawn")
def test_a_new_run_keeps_the_earlier_results(tmp_path):
    benchmark(tmp_path, *QUICK)
    benchmark(tmp_path, *QUICK)
    assert (tmp_path / "results.previous.json").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_failed_cell_is_the_exit_status_and_is_tried_again(tmp_path):
    trouble[1] = RuntimeError("no")
    benchmark(tmp_path, *QUICK, code=1)
    trouble.clear()
    benchmark(tmp_path, *QUICK, "--resume")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--problem", "keplr"], "take kepler"),
        (["--backend", "tay"], "take toy"),
        (["--solver", "dopri6"], "take dopri"),
        (["--rtol", "1e-9..1e-3"], "ranges that go down"),
        (["--rtol", "small"], "no tolerance"),
        (["--backend", "absent"], "pip install absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_name_is_refused_before_anything_is_solved(arguments, words, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        _cli.main(["benchmark", "work-precision", "--out", str(tmp_path), *QUICK[:2], *arguments])
    assert stopped.value.code in (1, 2)
    assert calls == []
    assert words in " ".join(capsys.readouterr().err.split())


def test_tolerances_are_numbers_or_decades():
    assert tolerance_list("1e-3..1e-9") == tuple(float(f"1e-{k}") for k in range(3, 10))
    assert tolerance_list("2e-2..1e-4") == (2e-2, 2e-3, 2e-4)
    assert tolerance_list("1e-6") == tolerance_list("1e-6..1e-6") == (1e-6,)
    for bad in ("0", "1", "-1e-3", "nan", "1e-3..0", "1e-3..-1", "1e-3..x", "1..2..3"):
        with pytest.raises(InputError):
            tolerance_list(bad)


def test_the_mixed_error_is_absolute_for_what_is_small_and_relative_for_what_is_large():
    truth = {"a": np.asarray([0.0, 1e6]), "b": np.asarray(1.0)}
    assert mixed_error({"a": np.asarray([1e-3, 1e6]), "b": np.asarray(1.0)}, truth) == pytest.approx(1e-3)
    assert mixed_error({"a": np.asarray([0.0, 1.001e6]), "b": np.asarray(1.0)}, truth) == pytest.approx(1e-3, rel=1e-3)
    assert math.isnan(mixed_error({"a": np.asarray([0.0, np.inf]), "b": np.asarray(1.0)}, truth))


def test_solve_to_tolerances(tmp_path):
    files = {kind: tmp_path / f"a.{kind}" for kind in ("csv", "json", "png")}
    flags = ["--csv", str(files["csv"]), "--json", str(files["json"]), "--plot", str(files["png"])]
    result = CliRunner().invoke(
        solve_command,
        ["kepler", "--backend", "toy", "--rtol", "1e-3,1e-6", "--atol", "1e-8", *flags],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert [line.split()[:4] for line in result.stdout.splitlines() if line.strip().startswith("toy")] == [
        ["toy", "dopri5", "(5)", text] for text in ("0.001", "1e-06")
    ]
    assert [call[1] for call in calls] == [1e-3, 1e-6]
    assert json.loads(files["json"].read_text())["plan"]["atol"] == 1e-8
    assert len(files["csv"].read_text().splitlines()) == 3
    assert files["png"].stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rtol", "1e-3", "--depth", "8"], "--depth, or --rtol"),
        (["--atol", "1e-3"], "--depth, or --rtol"),
        (["--rtol", "1e-3", "--solver", "rk4"], "estimates no error"),
        (["--rtol", "1e-3", "--backend", "other", "--solver", "tsit5"], "does not offer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_solve_refuses_what_does_not_go_together(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        _cli.main(["solve", "decay", "--backend", "toy", *arguments])
    assert stopped.value.code in (1, 2)
    assert calls == []
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_row_is_as_its_columns_say():
    assert arrays(None) is None
    assert AdaptiveSolve().skipped is False
    assert all(COLUMNS.values())
