"""Every python block of the documentation runs, prints what the page says it prints, and every command parses.

The blocks of a page run in order, in a namespace of their own. A block with a title is a file of that name, which the
blocks after it may import; a titled `pyproject.toml` is installed as far as its entry points go.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import sys
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from announcing import forget
from click.testing import CliRunner

from odenet._gradients.names import GRADIENTS
from odenet._jobs.cli import COMMANDS, command_named

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
RELATIVE = 0.1  # how far a printed number may be from the page's: the last digit of two
ABSOLUTE = 1e-12
# each takes as long as many short pages, and shows what tests of its own hold to: memory that is constant, adaptive
# solves, `auto`, the conversion of models, and the doctor
LONG = (
    "docs/thousand-layers.md",
    "docs/tutorial.md",
    "docs/how-to/solve-to-a-tolerance.md",
    "docs/how-to/let-it-choose.md",
    "docs/how-to/convert-a-model.md",
    "docs/how-to/diagnose-gradients.md",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str | None
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks, in order."""
    whole = SNIPPET.sub(_included, page.read_text(encoding="utf-8"))
    found = []
    for match in FENCE.finditer(whole):
        title = re.search(r'title="([^"]+)"', match[3])
        text = re.sub(rf"^{match[1]}", "", match[4], flags=re.MULTILINE)
        line = whole.count("\n", 0, match.start()) + 2  # of its first line
        found.append(Block(match[2], title[1] if title else None, text, line))
    return found


def _included(match: re.Match[str]) -> str:
    """A file that the site shows in the place of its name, and that runs where it is shown."""
    return (ROOT / match[1]).read_text(encoding="utf-8").rstrip("\n")


def named(pages: list[Path], waiting: tuple[str, ...] = ()) -> list[object]:
    """As parameters whose ids are the paths; those that wait for `make test-slow` are marked so."""
    names = {page: str(page.relative_to(ROOT)) for page in pages}
    return [pytest.param(page, id=n, marks=pytest.mark.slow if n in waiting else ()) for page, n in names.items()]


def languages(page: Path) -> set[str]:
    """Of a page's blocks."""
    return {block.language for block in blocks(page)}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to run in, first on the import path; afterwards nothing of what a page did is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    forget()
    importlib.invalidate_caches()


def _write(folder: Path, block: Block) -> None:
    path = folder / (block.title or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if path.name == "pyproject.toml":
        _announce(path)
    importlib.invalidate_caches()


def _announce(pyproject: Path) -> None:
    """What an installer writes about a distribution's entry points."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    info = pyproject.parent / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    forget()


def _same(printed: str, page: str) -> bool:
    """Word by word; numbers with a point or an exponent within a tolerance."""
    one, other = printed.split(), page.split()
    return len(one) == len(other) and all(map(_same_word, one, other))


def _same_word(one: str, other: str) -> bool:
    if other.isdecimal():
        return one == other
    try:
        return float(one) == pytest.approx(float(other), rel=RELATIVE, abs=ABSOLUTE)
    except ValueError:
        return one == other


@pytest.mark.parametrize("page", named([page for page in PAGES if "python" in languages(page)], LONG))
def test_python_blocks_run_and_print_what_the_page_says(page, workplace, monkeypatch):
    if not page.name.startswith("add-a-"):  # what tests/foreign brings is on these pages alone
        monkeypatch.setattr(GRADIENTS, "_others", {})
    found = blocks(page)
    text = "\n".join(block.text for block in found)
    for framework in ("torch", "jax"):
        if re.search(rf"\b{framework}\b", text) and not importlib.util.find_spec(framework):
            pytest.skip(f"{framework} is not installed")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # torch.compile looks functions up in their modules
    namespace = vars(module)
    printed = io.StringIO()
    for block in found:
        where = f"{page.relative_to(ROOT)}:{block.line}"
        if block.title is not None:
            _write(workplace, block)
        elif block.language == "python":
            printed = io.StringIO()
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        elif block.language == "text":
            assert _same(printed.getvalue(), block.text), f"{where}: it printed\n{printed.getvalue()}"


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The `odenet` commands of a page's console and shell blocks, as (where, arguments)."""
    found = []
    for block in blocks(page):
        if block.language not in ("console", "sh", "bash"):
            continue
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["odenet"]:
                found.append((f"{page.relative_to(ROOT)}: {line}", words[1:]))
    return found


EVERY_COMMAND = [pytest.param(words, id=where) for page in PAGES for where, words in commands(page)]


@pytest.mark.parametrize("words", EVERY_COMMAND)
def test_commands_parse(words):
    name, *rest = words
    if name.startswith("-"):
        assert words in (["--version"], ["--help"], ["-h"])
        return
    command = command_named(name)
    with contextlib.suppress(click.exceptions.Exit), contextlib.redirect_stdout(io.StringIO()):  # --help ends here
        if isinstance(command, click.Group):
            name, *rest = rest
            command = command.commands[name]
        command.make_context(name, rest)


def test_cheap_commands_run():
    command = command_named("list")
    cheap = {param.values[0][1] for param in EVERY_COMMAND if param.values[0][0] == "list" and param.values[0][1:]}
    assert cheap >= {"solvers", "gradients", "problems"}
    for what in cheap - {"backends"}:  # which loads frameworks
        done = CliRunner().invoke(command, [what])
        assert done.exit_code == 0, (what, done.output)


def test_every_command_is_documented():
    text = (ROOT / "docs" / "how-to" / "command-line.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"odenet {name}" in text, f"odenet {name} is missing on the page about the command line"


def test_every_option_named_on_the_command_line_page_exists():
    text = (ROOT / "docs" / "how-to" / "command-line.md").read_text(encoding="utf-8")
    known = {"--version", "--help"}
    for command in map(command_named, COMMANDS):
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for each in (command, *inner):
            known |= {option for parameter in each.params for option in parameter.opts}
    named_there = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert named_there <= known, sorted(named_there - known)


def test_local_links_of_the_readme_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target and not target.startswith("docs/images/"):
            assert os.path.exists(ROOT / target), target
