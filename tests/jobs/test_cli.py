"""The command line as a shell sees it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import odenet
from odenet import SOLVERS
from odenet._jobs.cli import COMMANDS, main
from odenet._test_problems.named import PROBLEMS


def odenet_command(*arguments, **environment):
    """`python -m odenet`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "odenet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def said(capsys):
    """What a command says, and how it ends, run in this process."""

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return run


def completed(words):
    """What the shell offers after these words (the last one unfinished), in a bash that has the completion script."""
    found = odenet_command(_ODENET_COMPLETE="bash_complete", COMP_WORDS=" ".join(words), COMP_CWORD=str(len(words) - 1))
    assert found.returncode == 0, found.stderr
    return [line.partition(",")[2] for line in found.stdout.splitlines()]


def test_the_version_is_that_of_the_package():
    found = odenet_command("--version")
    assert (found.returncode, found.stdout.strip()) == (0, f"odenet, version {odenet.__version__}")


def test_help_lists_every_command(said):
    code, out, _ = said("--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in COMMANDS)
    assert "odenet compare --backend torch,jax" in out


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_examples(said, name, flag):
    code, out, _ = said(name, flag)
    assert code == 0
    assert f"Usage: odenet {name}" in out
    assert "Example" in out


def test_no_command_at_all_shows_the_help(said):
    code, out, err = said()
    assert code == 2
    assert "Usage: odenet" in out + err


def test_an_unknown_command_and_an_unknown_flag_are_usage_errors(said):
    code, _, err = said("solv")
    assert code == 2
    assert "No such command 'solv'" in err
    code, _, err = said("list", "--colour")
    assert code == 2
    assert "No such option" in err


def test_an_error_of_the_library_is_one_line_and_not_a_traceback(said):
    code, out, err = said("solve", "decay", "--device", "quantum", "--backend", "torch")
    assert code == 2
    assert "Error: torch sees no device 'quantum'" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "words",
    [
        ("solve", "decay", "--depth", "4..2"),
        ("solve", "decay", "--depth", "1..1e9"),
        ("solve", "decay", "--depth", "1" * 5000),
        ("solve", "decay", "--solver", ","),
        ("solve", "decay", "--backend", "nothing"),
        ("solve", "no-such-problem"),
        ("check", "--memory", "-1"),
        ("check", "--memory", "0"),
        ("check", "--memory", "nan"),
        ("check", "--gradient", "backprob"),
        ("train", "--validation", "nan"),
        ("train", "--weight-decay", "-1"),
        ("train", "--weight-decay", "inf"),
        ("train", "--epochs", "1e3"),
        ("compare", "--depth", ""),
        ("compare", "--gradient", ","),
        ("reproduce", "nothing"),
        ("list", "nothing"),
        ("benchmark", "work-precision", "--solver", "%s"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
def test_what_cannot_be_asked_is_a_usage_error_in_our_words(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(*words)
    assert code == 2, err
    assert "Error: " in err
    assert "Traceback" not in out + err
    assert not any(tmp_path.iterdir())  # nothing was begun


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell):
    found = odenet_command(_ODENET_COMPLETE=f"{shell}_source")
    assert found.returncode == 0, found.stderr
    assert f"_ODENET_COMPLETE={shell}_complete" in found.stdout


def test_commands_problems_and_choices_are_completed():
    assert completed(["odenet", ""]) == list(COMMANDS)
    assert completed(["odenet", "solve", "lot"]) == [name for name in PROBLEMS if name.startswith("lot")]
    found = completed(["odenet", "solve", "--solver", "euler,r"])
    assert {name.removeprefix("euler,") for name in found} >= {name for name in SOLVERS if name.startswith("r")}


def test_the_command_line_without_click_says_what_to_install():
    code = "import sys; sys.modules['click'] = None\nfrom odenet._jobs.cli import main\nmain(['list'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "pip install 'odenet[cli]'" in found.stderr
    assert "Traceback" not in found.stderr


def test_help_imports_no_job_and_no_framework():
    code = (
        "import sys\nfrom odenet._jobs.cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'jax', 'numpy', 'matplotlib', 'odenet._jobs.solve.command'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.splitlines()[-1] == "[]"
