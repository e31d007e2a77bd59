"""Options from TOML files, names with suggestions, and standard output as a file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import pytest

from odenet._jobs.cli import COMMANDS, main
from odenet._jobs.output import STDOUT, OutputFile
from odenet._jobs.train import job
from odenet._report.terminal import console


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """What a command says, and how it ends, run in this process in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def rows(text):
    """Of a table in CSV."""
    return list(csv.DictReader(io.StringIO(text)))


SOLVE = ("solve", "decay", "--csv", "-")


def test_options_come_from_the_file_and_the_command_line_wins(said, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('depth = [4, 8]\ndtype = "float32"\n[solve]\nsolver = ["euler", "heun"]\n[compare]\nrepeats = 1\n')
    code, out, err = said(*SOLVE, "--config", file, "--dtype", "float64")
    assert code == 0
    assert [(row["solver"], row["steps"], row["dtype"]) for row in rows(out)] == [
        (name, steps, "float64") for name in ("euler", "heun") for steps in ("4", "8")
    ]
    assert "mine.toml, where the command line does not say: --depth --dtype --solver" in err


@pytest.mark.parametrize("header", ["[tool.odenet.solve]", "[tool.odenet]"])
def test_the_nearest_pyproject_is_read_and_said(said, tmp_path, monkeypatch, header):
    (tmp_path / "pyproject.toml").write_text(f'{header}\ndepth = "4..16"\n')
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    code, out, err = said(*SOLVE)
    assert (code, [row["steps"] for row in rows(out)]) == (0, ["4", "8", "16"])
    assert "pyproject.toml, where the command line does not say: --depth" in err


def test_a_table_above_is_for_whom_it_fits_and_the_own_table_wins(said, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('rtol = "1e-3"\nlr = 0.1\ndepth = 8\n[solve]\ndepth = 4\n[benchmark.work-precision]\nrepeats = 1\n')
    code, _, err = said(*SOLVE, "--config", file)  # depth and rtol exclude each other
    assert code == 2
    assert "of other commands: lr" in err
    assert "take --depth, or --rtol" in err
    file.write_text("depth = 8\n[solve]\ndepth = 4\n")
    assert [row["steps"] for row in rows(said(*SOLVE, "--config", file)[1])] == ["4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sovler = 'euler'", "'sovler' in FILE is not an option of any command. .*take solver"),
        ("[solve]\nsovler = 'euler'", "'sovler' in FILE is not an option. .*take solver"),
        ("[solve]\nlr = 0.1", "'lr' in FILE is not an option. "),
        ("[slove]\nsolver = 'euler'", "'slove' in FILE is not a command. .*take solve"),
        ("[solve]\nconfig = 'x'", "'config' in FILE is not an option"),
        ("[solve]\ndepth = true", "depth = True in FILE.*text, a number, or a list"),
        ("[solve]\ndepth = []", "depth = \\[\\] in FILE"),
        ("[solve]\ndepth = [[4]]", "in FILE.*text, a number, or a list"),
        ("[solve]\ndepth = 1979-05-27", "in FILE.*text, a number, or a list"),
        ("[solve]\ndepth = 'four'", "Invalid value for '--depth'"),
        ("[compare]\nfull = 'yes'", "full = 'yes' in FILE.*true or false"),
        ("solve = 3", "'solve' in FILE is not an option"),
        ("[benchmark]\nwork-precision = 3", "benchmark.work-precision in FILE is no table"),
        ("[solve", "FILE cannot be read"),
        (None, "FILE. does not exist"),
    ],
)
def test_what_is_misspelt_or_of_another_kind_is_refused(said, tmp_path, text, message):
    file = tmp_path / "mine.toml"
    if text is not None:
        file.write_text(text)
    command = ("compare",) if "compare" in str(text) else ("benchmark", "work-precision")
    command = command if "compare" in str(text) or "benchmark" in str(text) else SOLVE
    code, out, err = said(*command, "--config", file)
    assert code == 2
    assert re.search(message.replace("FILE", ".*mine.toml"), err.replace("\n", " ")), err
    assert not rows(out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_a_config_file(said, name):
    command = (name, "work-precision") if name == "benchmark" else (name,)
    assert "--config" in said(*command, "--help")[1]


@pytest.mark.parametrize(("given", "meant"), [("compar", "compare"), ("trian", "train"), ("lst", "list")])
def test_a_misspelt_command_gets_a_suggestion(said, given, meant):
    code, _, err = said(given)
    assert code == 2
    assert f"No such command {given!r}. Did you mean {meant}" in err
    assert "There are list, solve" in said("zzz")[2]
    assert "Did you mean work-precision" in said("benchmark", "work-precison")[2]


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_has_three_names(target):
    assert OutputFile().convert(target, None, None) == STDOUT


def test_a_file_on_standard_output_is_alone_there(tmp_path):
    kept = tmp_path / "kept"
    with kept.open("wb") as stream:  # a plain file behind the redirection: it must not be renamed over
        done = subprocess.run(
            [sys.executable, "-m", "odenet", *SOLVE[:2], "--backend", "scipy", "--rtol", "1e-3", "--json", "/dev/fd/1"],
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert os.fstat(stream.fileno()).st_ino == kept.stat().st_ino
    assert json.loads(kept.read_text())["plan"]["problems"] == ["decay"]
    assert "exponential decay" in done.stderr
    assert "wrote" not in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_two_files_do_not_share_standard_output(said):
    code, out, err = said(*SOLVE, "--json", "/dev/stdout")
    assert (code, out) == (2, "")
    assert "standard output takes one file" in err


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("137", 137), ("0", None), ("wide", 200), (None, 200)])
def test_columns_is_honoured_where_there_is_no_terminal(monkeypatch, columns, width):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert console().width == width if width else console().width > 1


def test_training_does_not_resume_where_there_is_no_run(said, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "_trainer", lambda *_: pytest.fail("it began"))
    (tmp_path / "digits-run").mkdir()
    (tmp_path / "digits-run" / "run.json").write_text("{}")
    code, _, err = said("train", "--resume", "--out", tmp_path / "digits-rum")
    assert code == 2
    assert "there is no run in" in err
    assert "digits-run, if that is what you meant; or leave --resume out" in err
    assert not (tmp_path / "digits-rum").exists()
    for command in (("compare",), ("benchmark", "work-precision"), ("reproduce", "reconstruction")):
        code, _, err = said(*command, "--resume", "--out", tmp_path / "nothing")
        assert (code, "nothing to resume" in err) == (2, True), err
