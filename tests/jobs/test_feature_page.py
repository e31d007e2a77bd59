"""The page that compares odenet with other libraries: every row has a command, which runs and ends well."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from odenet._jobs.cli import command_named

PAGE = (Path(__file__).parents[2] / "docs" / "compared-with-others.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| | ")]
COMMANDS = {row.split("|")[1].strip(): re.findall(r"`(odenet [^`]+)`", row) for row in ROWS}


def test_every_row_has_one_command():
    assert len(COMMANDS) == len(ROWS) > 12
    assert all(len(found) == 1 for found in COMMANDS.values()), COMMANDS


def test_the_versions_are_those_installed():
    for name, version in re.findall(r"(torchdiffeq|diffrax) (\d[\d.]*\d)", PAGE):
        assert importlib.metadata.version(name) == version


@pytest.mark.slow
@pytest.mark.parametrize("row", COMMANDS)
def test_what_shows_a_row_runs(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    name, *rest = shlex.split(COMMANDS[row][0])[1:]
    done = CliRunner().invoke(command_named(name), rest)
    assert done.exit_code == 0, done.output
    assert done.output.strip()


@pytest.mark.parametrize("row", ["arrays", "explicit Runge-Kutta methods", "continuous adjoint"])
def test_some_of_them_run_in_every_test(row, tmp_path, monkeypatch):
    test_what_shows_a_row_runs(row, tmp_path, monkeypatch)
