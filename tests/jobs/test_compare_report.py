import csv
import dataclasses
import html.parser
import io
import json
import re
import time
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from odenet import FileError, GradientError, InputError, OdenetError, gradient, solver
from odenet._jobs.cells.grid import GridPlan
from odenet._jobs.compare import command as job
from odenet._jobs.compare.figures import figures
from odenet._jobs.compare.findings import findings, verdict
from odenet._jobs.compare.measure import measure
from odenet._jobs.compare.page import page, tables
from odenet._jobs.compare.results import Comparison, MeasuredGradient, curves
from odenet._jobs.flags import whole_numbers
from odenet._report.figures import render
from odenet._report.fit import fit
from odenet._report.rows import to_json

SMALL = ["--backend", "fake", "--solver", "euler", "--depth", "2,4,8", "--batch", "4", "--width", "4"]
CELLS = 12


@pytest.fixture
def quick(monkeypatch):
    """No figures, which take seconds."""
    monkeypatch.setattr("odenet._report.figures.write_report", lambda *arguments: [])


@cache
def results(**changes):
    """A finished run; needs the fake backends."""
    base = {"backends": ("fake", "other"), "solvers": (solver("euler"), solver("heun")), "batch": 4, "width": 4}
    made = Comparison(GridPlan(**base | {"depths": (4, 8, 16)} | changes), {"cpu": "a <fast> one", "cores": "2"})
    for row in measure(made.plan, made.plan.cells()):
        made = made.add(row)
    return made


def run(folder, *more):
    return CliRunner().invoke(job.command, [*SMALL, "--out", str(folder), *more])


@pytest.mark.parametrize("order", [0.5, 1, 2, 4.25])
def test_a_fit_recovers_the_order(order):
    depths = [4, 8, 16, 32]
    found = fit(depths, [0.3 * n**-order for n in depths], 1e-14)
    assert found is not None
    assert found.order == pytest.approx(order)
    assert found.constant == pytest.approx(0.3)
    assert found.straightness == pytest.approx(1)


def test_a_fit_leaves_rounding_out_and_marks_what_is_no_line():
    depths = [4, 8, 16, 32, 64]
    found = fit(depths, [n**-2.0 if n < 64 else 1e-15 for n in depths], 1e-14)
    assert found is not None
    assert found.depths == (4, 8, 16, 32)
    assert str(found) == "2.00"
    assert str(fit(depths, [1e-2, 9e-3, 8e-3, 7e-3, 1e-8], 1e-14)).startswith("~")
    assert fit(depths, [1e-15] * 5, 1e-14) is None
    assert fit(depths[:2], [1e-2, 1e-3], 1e-14) is None
    assert fit(depths, [1e-2, np.nan, np.inf, 1e-3, 0], 1e-14) is None


def test_the_summary_of_a_run_has_the_orders_that_went_in(fake):
    for curve in curves(results().rows):
        if curve.gradient == "backprop":
            assert curve.exact
            assert curve.memory_growth == 4
        else:
            expected = {"discrete-adjoint": 2}.get(curve.gradient, 1)
            assert curve.fit is not None
            assert curve.fit.order == pytest.approx(expected, abs=1e-3)
            assert curve.memory_growth == 1


def test_the_findings_say_what_was_measured(fake):
    text = "\n".join(map(str, findings(results())))
    assert "exact backprop in float64 by fake" in text
    assert "backprop is exact up to rounding" in text
    assert "discrete-adjoint: gradient error: euler order 2.00 (3.1e-02 at N=4, 2.0e-03 at N=16)" in text
    assert "backprop ×4.00" in text
    assert "outputs of other in float64 differ from the reference backend's by at most 1.0e-09" in text
    assert "all 48 measured cells" in text
    assert "Interrupted" not in text


def test_the_findings_of_an_interrupted_and_failed_run(fake):
    made = results(backends=("fake", "poor"))
    cut = Comparison(made.plan, made.machine, made.rows[:3])
    assert "45 of 48 cells have not been run" in str(findings(cut)[-1])
    assert "not offered by poor" in "\n".join(map(str, findings(made)))
    assert "no cell" in str(findings(Comparison(made.plan, {}))[0])


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_its_terminal(fake, width):
    screen = Console(width=width, record=True, file=io.StringIO())
    for made in tables(results().rows, screen):
        screen.print(made)
    text = screen.export_text()
    assert "2.00" in text
    assert "exact" in text
    assert "discrete-adjoint:correct=no" in text
    assert "…" not in text


def test_figures_are_made_of_any_part_of_a_run(fake):
    made = results()
    assert set(figures(made.rows)) == {"gradient_error", "memory", "time", "overview"}
    assert figures(made.rows[:0]) == {}
    alone = figures(made.rows[:1])
    assert render(alone["overview"], "png").startswith(b"\x89PNG")
    exact = figures([row for row in made.rows if row.gradient == "backprop"])
    assert render(exact["gradient_error"], "svg").count(b"<svg") == 1


class _Tags(html.parser.HTMLParser):
    """Names of all tags, and every address that something would be loaded from."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.rows = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href", "data")]


def test_the_page_escapes_what_it_is_given_and_loads_nothing(fake):
    made = results()
    evil = MeasuredGradient(
        **to_json(made.rows[0]) | {"status": "<script>alert(1)</script>", "backend": '"><img src=x onerror=1>'}
    )
    text = page(Comparison(made.plan, {"cpu": "<b>&"}, (*made.rows, evil)), {})
    found = _Tags(text)
    assert "img" not in found.tags
    assert found.tags.count("script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;b&gt;&amp;" in text
    assert found.sources == []
    assert not re.search(r"@import|url\(|https?://", text)


def test_the_page_has_the_figures_and_every_row(fake, tmp_path):
    made = results(depths=(4, 8), solvers=(solver("euler"),))
    paths = job.write(made, tmp_path)
    assert {path.name for path in paths} == {
        "report.html",
        *(f"{name}.{kind}" for name in ("gradient_error", "memory", "time", "overview") for kind in ("png", "svg")),
    }
    text = (tmp_path / "report.html").read_text()
    found = _Tags(text)
    assert found.tags.count("svg") == 3
    assert all(source.startswith("#") for source in found.sources)
    assert text.split('id="cells"')[1].split("</table>")[0].count("<tr") == 1 + len(made.rows)


def test_the_job_writes_a_row_a_cell(fake, quick, tmp_path):
    done = run(tmp_path)
    assert done.exit_code == 0, done.output
    plain = json.loads((tmp_path / "results.json").read_text())
    assert plain["complete"]
    assert plain["plan"]["reference"] == {"euler": "fake"}
    assert plain["machine"]["python"]
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(plain["rows"]) == CELLS
    assert {row["gradient"] for row in rows} >= {"backprop", "discrete-adjoint:correct=no"}
    assert rows[0]["gradient_error"] == "0.0"
    assert "order" in done.stdout
    assert f"[{CELLS}/{CELLS}]" in done.stderr


def test_the_results_on_disk_are_whole_at_any_moment(fake, quick, tmp_path):
    seen = []

    def look(model):
        kept = Comparison.read(tmp_path)
        seen.append(len(kept.rows) if kept else 0)
        assert not list(tmp_path.glob(".*"))  # no half-written file

    fake.before = look
    assert run(tmp_path).exit_code == 0
    assert seen == list(range(CELLS))


def test_ctrl_c_keeps_what_is_done_and_resume_goes_on(fake, quick, tmp_path):
    def stop(model):
        if len(fake.measured) == 5:
            raise KeyboardInterrupt

    fake.before = stop
    stopped = run(tmp_path)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert "7 cells are left" in stopped.stderr
    kept = Comparison.read(tmp_path)
    assert kept is not None
    assert [row.key[1:] for row in kept.rows] == fake.measured

    before, fake.before = list(fake.measured), lambda model: None
    done = run(tmp_path, "--resume")
    assert done.exit_code == 0, done.output
    assert fake.measured[5:] == [cell.key[1:] for cell in kept.plan.cells()[5:]]
    assert fake.measured[:5] == before
    whole = Comparison.read(tmp_path)
    assert whole is not None
    assert not whole.left()
    assert whole.rows[:5] == kept.rows


def test_ctrl_c_writes_the_report_of_what_is_done(fake, tmp_path):
    def stop(model):
        if len(fake.measured) == 5:
            raise KeyboardInterrupt

    fake.before = stop
    assert run(tmp_path).exit_code == 130
    assert "7 of 12 cells have not been run" in (tmp_path / "report.html").read_text()


def test_resume_may_add_to_the_grid(fake, quick, tmp_path):
    run(tmp_path)
    assert run(tmp_path, "--resume", "--gradient", "discrete-adjoint:iterations=2").exit_code == 0
    assert fake.measured[CELLS:] == [("euler", "discrete-adjoint:iterations=2", n) for n in (2, 4, 8)]
    kept = Comparison.read(tmp_path)
    assert kept is not None
    assert len(kept.rows) == CELLS + 3


def test_resume_tries_failed_cells_again(fake, quick, tmp_path):
    def fail(model):
        if model.gradient.name == "continuous-adjoint":
            raise GradientError("cannot be given")

    fake.before = fail
    failed = run(tmp_path)
    assert failed.exit_code == 1
    assert "cannot be given" in failed.stdout
    fake.before = lambda model: None
    assert run(tmp_path, "--resume").exit_code == 0
    assert len(fake.measured) == CELLS


def test_resume_refuses_other_settings_and_other_machines(fake, quick, tmp_path):
    run(tmp_path)
    assert "seed was 0 and is 1" in str(_error(tmp_path, "--resume", "--seed", "1", kind=InputError))
    text = (tmp_path / "results.json").read_text()
    plain = json.loads(text)
    plain["machine"]["cpu"] = "an abacus"
    del plain["checksum"]  # which would say that it was changed
    (tmp_path / "results.json").write_text(json.dumps(plain))
    assert "cpu was an abacus" in str(_error(tmp_path, "--resume", kind=InputError))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": "somebody else\'s"}',
        '{"format": "odenet compare 1"}',
        '{"format": "odenet compare 1", "rows',
    ],
)
def test_resume_refuses_what_it_did_not_write(fake, quick, tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    assert "results.json" in str(_error(tmp_path, "--resume", kind=FileError))
    assert (tmp_path / "results.json").read_text() == text


def test_resume_without_results_is_refused_and_the_nearest_folder_is_named(fake, quick, tmp_path):
    run(tmp_path / "new")
    error = _error(tmp_path / "nwe", "--resume", kind=FileError)
    assert "nothing to resume" in str(error)
    assert str(tmp_path / "new") in error.remedy
    assert not (tmp_path / "nwe").exists()


def test_a_new_run_sets_the_earlier_one_aside(fake, quick, tmp_path):
    run(tmp_path)
    first = (tmp_path / "results.json").read_text()

    def stop(model):
        raise KeyboardInterrupt

    fake.before = stop
    assert run(tmp_path).exit_code == 130  # before its first cell is done a new run has replaced nothing
    assert (tmp_path / "results.json").read_text() == first
    fake.before = lambda model: None
    run(tmp_path, "--seed", "5")
    assert (tmp_path / "results.previous.json").read_text() == first
    assert (tmp_path / "results.previous.csv").exists()


def test_an_output_that_cannot_be_written_is_found_before_the_work(fake, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert run(tmp_path / "file").exit_code == 2  # it is no folder
    (tmp_path / "link").symlink_to("nowhere")
    assert "link cannot be written" in str(_error(tmp_path / "link", kind=FileError))
    assert fake.measured == []


def test_a_backend_that_is_not_installed_is_named(fake, quick, tmp_path):
    assert "pip install absent" in str(_error(tmp_path, "--backend", "absent", only=True, kind=OdenetError))
    done = run(tmp_path, "--backend", "absent")
    assert done.exit_code == 0
    assert "pip install absent" in done.stdout


def test_help_has_examples(fake):
    text = CliRunner().invoke(job.command, ["--help"]).output
    for word in ("--resume", "--along", "--repeats", "Examples:", "results/compare"):
        assert word in text


def _error(folder, *more, kind, only=False):
    """The error that the command ends with; `odenet` itself prints it."""
    arguments = [*(SMALL[2:] if only else SMALL), "--out", str(folder), *more]
    found = CliRunner().invoke(job.command, arguments).exception
    assert isinstance(found, kind)
    return found


def test_labels_in_results_are_flags(fake):
    assert all(gradient(row.gradient).label == row.gradient for row in results(depths=(4,)).rows)


def test_the_verdict_names_the_most_exact_of_the_methods_that_save_memory(fake):
    done = results()
    cost = {"backprop": (1000, 0.0), "discrete-adjoint": (210, 1e-5), "continuous-adjoint": (200, 5e-3)}
    rows = tuple(
        dataclasses.replace(
            row, peak_bytes=cost[row.gradient][0], gradient_error=cost[row.gradient][1], step_seconds=1.0
        )
        for row in (dataclasses.replace(row, step_seconds=1.0) for row in done.rows)
        if row.gradient in cost
    )
    text = verdict(dataclasses.replace(done, rows=rows))
    assert "fake, euler, N=16: take discrete-adjoint; gradient error 1.0e-05, memory ×0.21 and time ×1.00" in text
    wrong = tuple(dataclasses.replace(row, gradient_error=0.5) if row.gradient != "backprop" else row for row in rows)
    assert "take backprop" in verdict(dataclasses.replace(done, rows=wrong))
    assert "backprop was not measured" in verdict(dataclasses.replace(done, rows=rows[1:2]))


def test_the_report_opens_with_the_verdict_and_then_the_figures(fake):
    text = page(results(), {"gradient_error": "<svg>drawing</svg>"})
    assert text.index("N=16: take ") < text.index("drawing") < text.index("How to read this")


def test_seconds_are_those_of_the_clock(fake, quick, tmp_path):
    start = time.perf_counter()
    assert run(tmp_path, "--repeats", "1").exit_code == 0
    taken = time.perf_counter() - start
    done = Comparison.read(tmp_path)
    assert done is not None
    assert 0 < done.seconds <= taken


def test_full_is_the_larger_grid_but_for_what_is_given(fake, quick, monkeypatch, tmp_path):
    plans = []
    monkeypatch.setattr(job, "complete", lambda kind, plan, options: plans.append(plan) or 0)
    for options in ([], ["--full"], ["--full", "--block", "linear", "--depth", "3"]):
        assert CliRunner().invoke(job.command, ["--backend", "fake", *options, "--out", str(tmp_path)]).exit_code == 0
    default, full = (dataclasses.replace(plan, backends=("fake",)) for plan in (job.DEFAULT, job.FULL))
    assert plans == [default, full, dataclasses.replace(full, block="linear", depths=(3,))]


@pytest.mark.parametrize(
    ("text", "depths"),
    [("64..1000", (64, 128, 256, 512, 1000)), ("4..16", (4, 8, 16)), ("5..5", (5,)), ("3..4", (3, 4))],
)
def test_a_range_of_depths_holds_both_its_ends(text, depths):
    assert whole_numbers(text) == depths
