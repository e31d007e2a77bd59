"""Every command that the README and the pages show is accepted by the command line of today, options and all."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from work_of_commands import WORK

from odenet import save_weights
from odenet._jobs.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL_WORK = {**WORK, "odenet._jobs.merge": ("merge",)}
COMMANDS = sorted(
    {
        line.split(" #")[0].strip().removeprefix("$ ")
        for page in PAGES
        for line in re.findall(r"^\$ odenet [^\n]*", page.read_text(encoding="utf-8"), re.M)
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_docs_is_accepted(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("DIR", "ROOT", "IMAGENET", "part1", "part2"):
        (tmp_path / name).mkdir()
    save_weights(tmp_path / "trained.npz", {"w": np.zeros(1)})
    for module, names in ALL_WORK.items():
        for name in names:
            done = () if name == "checks" else 0
            monkeypatch.setattr(f"{module}.{name}", lambda *_, done=done, **__: done)
    words = [word.replace("trained.safetensors", "trained.npz") for word in shlex.split(command)[1:]]
    if "cuda" in words:
        words[words.index("cuda")] = "cpu"  # where there is none it is refused, and rightly
    with pytest.raises(SystemExit) as end:
        main(words)
    said = "".join(capsys.readouterr())
    assert not end.value.code, said


def test_there_are_commands():
    assert len(COMMANDS) > 60
