"""Every option of every command with values that make no sense: an error in words and status 2, or it is done.

Over the parameters that click knows, so that a new option is swept at once.
"""

from __future__ import annotations

import itertools
import math
import os
import re

import click
import pytest
from work_of_commands import WORK

from odenet import FileError
from odenet._jobs.cli import COMMANDS, command_named, main
from odenet._jobs.train.checkpoint import Outcome, TrainingRun, read
from odenet._jobs.train.plan import TrainingPlan

BASE = {  # the least work of each command
    ("list",): "solvers",
    ("solve",): "decay --backend torch --solver euler --depth 2",
    ("compare",): "--backend torch --solver euler --gradient backprop --depth 2 --batch 4 --repeats 1 --out o",
    ("check",): "--backend torch --solver euler --gradient backprop --depth 2 --batch 4 --width 4",
    ("train",): "--backend torch --depth 2 --width 4 --epochs 1 --limit-train 8 --batch 4 --net mlp --out o",
    ("reproduce",): "reconstruction --scale quick --resume --out o",
    ("benchmark", "work-precision"): "--problem decay --backend torch --solver bosh3 --rtol 1e-3 --repeats 1 --out o",
    ("merge",): "folder -o o",
}
NUMBERS = ["0", "-1", "1.5", "1e400", "nan", "-inf", "9" * 30, "1" * 6000, "0x10", "4..", "4..2", "1..2..3"]
NAMES = ["", " ", ",", "word", "ünïcode", "None", "true", "%s", "[red]", "a\nb", "all,typo", "typo,all", "a:b", "os:no"]
PATHS = ["folder", "plain.txt", "plain.txt/x", "no/such", "loop", "dangling", "bad.npz", "/dev/full", "x" * 300, "\0"]
OTHERS = ["--epochs", "2/1", "0/3", "processes:0", "dask:nowhere"]
HELP = (
    "Allowed|What to do|one of|does not exist|is a (file|directory)|[Nn]o such|Missing|take |divide|lists |paths with"
)


def calls():
    """Each option of each command with each value, the other options as in `BASE`."""
    for path, words in BASE.items():
        command = command_named(path[0])
        for name in path[1:]:
            command = command.commands[name]
        base = words.split()
        for param in command.params:
            if isinstance(param, click.Argument):
                others = base[base.index("-o") if "-o" in base else 1 :]
                yield from ([*path, *others, value] for value in (*NUMBERS, *NAMES, *PATHS, *OTHERS))
                continue
            flag = max(param.opts, key=len)
            if param.is_flag:
                yield from ([*path, *base, one, *more] for one in (flag, *param.secondary_opts) for more in ([], [one]))
                continue
            for value in (*NUMBERS, *NAMES, *PATHS, *OTHERS):
                yield [*path, *base, flag, value]


@pytest.fixture
def strange_place(tmp_path, monkeypatch):
    """A folder with things of the wrong kind in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.txt").write_text("hello")
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


def ran(capsys, arguments):
    """Its exit status, and all that it said."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code or 0, "".join(capsys.readouterr())


def judged(code, said, arguments):
    """What is wrong with the end of a call, as a text; empty where it is as it should be."""
    if code == 2:
        whole = len(said) < 4000 and "Error: " in said
        return "" if whole and re.search(HELP, said.partition("Error: ")[2]) else f"no help: {said[-300:]}"
    if isinstance(code, str):
        return "" if re.match("odenet: .*What to do: ", code) else code
    return "" if code in (0, 1) else f"status {code}"


@pytest.fixture
def swept(capsys, strange_place):
    """Run all calls, and name those that end as none should."""

    def sweep(arguments_of_calls):
        count, wrong = 0, []
        for arguments in arguments_of_calls:
            count += 1
            try:
                code, said = ran(capsys, arguments)
                trouble = judged(code, said, arguments)
            except Exception as error:
                capsys.readouterr()
                trouble = f"{type(error).__name__}: {error}"
            if trouble:
                wrong.append(f"{' '.join(arguments)[-120:]!r}: {trouble[:300]}")
        assert not wrong, "\n".join(wrong)
        return count

    return sweep


@pytest.mark.parametrize("part", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_every_option_refuses_what_makes_no_sense_in_words(part, swept, monkeypatch):
    """Every third value of each option, beginning with another one at the next, or all."""
    for module, names in WORK.items():
        for name in names:
            done = () if name == "checks" else 0
            monkeypatch.setattr(f"{module}.{name}", lambda *_, done=done, **__: done)
    assert swept(itertools.islice(calls(), 0, None, part)) > 4000 // part


@pytest.mark.slow
def test_what_is_accepted_is_done_or_fails_in_words(swept):
    long = ("reproduce", "benchmark")  # `all` is minutes of theirs
    assert swept(words for words in calls() if words[0] not in long and "typo,all" not in words) > 2000


@pytest.mark.parametrize("name", COMMANDS)
def test_a_misspelt_name_beside_all_is_no_less_misspelt(name, capsys, strange_place):
    if name in ("list", "merge"):
        pytest.skip("takes no names")
    words = {"solve": ["decay"], "benchmark": ["work-precision"], "reproduce": ["all"]}.get(name, [])
    flag = ["typo"] if name == "reproduce" else ["--solver", "all,typo"]
    code, said = ran(capsys, [name, *words, *flag])
    assert code == 2
    assert "called 'typo'" in said
    assert sorted(path.name for path in strange_place.iterdir()) == [
        "bad.npz",
        "dangling",
        "folder",
        "loop",
        "plain.txt",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "compare --backend torch --device cuda:99",
        "benchmark work-precision --backend torch,scipy --device cuda:99",
        "check --backend torch --device cuda:99",
        "reproduce --quick",
        "check --no-plan --memory 16M",
        "compare --out plain.txt",
        "compare --full --batch 0",
        "merge folder no/such -o x",
        "train --shard 1/2",
        "solve decay --rtol 1e-3 --depth 4",
        "solve decay --json - --csv -",
    ],
)
def test_nothing_is_written_where_nothing_can_be_done(words, capsys, strange_place):
    before = sorted(os.listdir(strange_place))
    code, said = ran(capsys, words.split())
    assert code == 2, said
    assert "Error: " in said
    assert sorted(os.listdir(strange_place)) == before


@pytest.mark.parametrize("images", [8, 300])  # one step, after which no loss is computed; or several
def test_training_that_diverges_ends_in_words(images, capsys, strange_place):
    words = "train --backend torch --depth 2 --width 4 --net mlp --batch 4 --epochs 1 --out o --lr 1e26"
    code, said = ran(capsys, [*words.split(), "--limit-train", str(images)])
    assert code == 1
    assert re.search(r"Error: the loss .*is nan.* epoch 1.*smaller --lr", said), said


def test_a_test_loss_that_is_not_finite_is_kept_as_it_is(tmp_path):
    run = TrainingRun(TrainingPlan(), {}, {}, test=Outcome(1, math.nan, 0.5, 4))
    run.write(tmp_path)
    assert math.isnan(read(tmp_path).test.loss)


def test_a_digit_of_a_run_that_a_disk_changed_is_not_gone_on_from(tmp_path):
    TrainingRun(TrainingPlan(), {}, {}, test=Outcome(1, 0.123, 0.5, 4)).write(tmp_path)
    text = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text.replace("0.123", "0.133"))
    with pytest.raises(FileError, match="checksum"):
        read(tmp_path)
