"""Options of a command from a TOML file: `--config FILE`, or `[tool.odenet]` of the nearest pyproject.toml.

    depth = "4..64"                # of the command that is run
    [compare]                      # of this command; [tool.odenet.compare] in a pyproject.toml
    solver = ["euler", "heun"]
    [benchmark.work-precision]
    max-steps = 5000

What stands on the command line wins over the file, a command's own table over what stands above the tables.
"""

from __future__ import annotations

import difflib
import importlib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from odenet._errors import InputError, shown
from odenet._jobs.output import FilePath

PYPROJECT = "pyproject.toml"
_LARGEST = 2**20  # bytes of a file


def with_config(command: click.Command, path: tuple[str, ...], commands: Mapping[str, str]) -> click.Command:
    """Give a command, and those below it, the option `--config`.

    Args:
        command: one that `path` leads to.
        path: the names of the command, as a user types them.
        commands: by name, the modules of all commands at the top.
    """
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            with_config(below, (*path, name), commands)
        return command
    if any(param.name == "config" for param in command.params):
        return command

    def read(context: click.Context, param: click.Parameter, value: Path | None) -> None:
        file = value if value is not None else _nearest()
        if file is None:
            return
        options = _options(command, path, file, commands, explicit=value is not None)
        if options:
            context.default_map = {**(context.default_map or {}), **options}
            flags = sorted(max(p.opts, key=len) for p in command.params if p.name in options)
            click.echo(f"from {file}, where the command line does not say: {' '.join(flags)}", err=True)

    command.params.append(
        click.Option(
            ["--config"],
            type=FilePath(exists=True, dir_okay=False),
            is_eager=True,
            expose_value=False,
            callback=read,
            help="TOML file of options by name. Without it, [tool.odenet] of the nearest pyproject.toml.",
        )
    )
    return command


def _nearest() -> Path | None:
    """The pyproject.toml of this folder or the nearest above it."""
    here = Path.cwd()
    return next((folder / PYPROJECT for folder in (here, *here.parents) if (folder / PYPROJECT).is_file()), None)


def _options(
    command: click.Command, path: tuple[str, ...], file: Path, commands: Mapping[str, str], explicit: bool
) -> dict[str, Any]:
    """What the file sets of the command's parameters, by their names in Python."""
    whole = _read(file)
    if file.name == PYPROJECT:
        tool = whole.get("tool", {})
        whole = tool.get("odenet", {}) if isinstance(tool, dict) else {}
        if explicit and not whole:
            raise InputError(f"{file} has no table [tool.odenet]", "[tool.odenet.COMMAND] with options by name")
    if not isinstance(whole, dict):
        raise InputError(f"[tool.odenet] in {file} is no table", "[tool.odenet.COMMAND] with options by name")
    tables = {name: value for name, value in whole.items() if isinstance(value, dict)}
    _known(tables, commands, "a command", file)
    above = {name: value for name, value in whole.items() if name not in tables}
    strange = {name for name in above if _spelling(name) not in _flags(command)}
    if strange:  # of all commands: what is of another one is no misspelling
        every = {flag for module in commands.values() for flag in _flags(importlib.import_module(module).command)}
        _known(map(_spelling, strange), sorted(every), "an option of any command", file)
        click.echo(f"in {file}, of other commands: {' '.join(sorted(strange))}", err=True)
    values = _values(command, {name: value for name, value in above.items() if name not in strange}, file)
    level: Any = tables
    for depth, name in enumerate(path):
        level = level.get(name, {})
        if not isinstance(level, dict):
            raise InputError(f"{'.'.join(path[: depth + 1])} in {file} is no table", "a table of options")
    return values | _values(command, level, file)


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file():
            raise ValueError("it is no plain file" if file.exists() else "it does not exist")
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error})", "a TOML file of options", "see `--help`") from error


def _values(command: click.Command, table: Mapping[str, Any], file: Path) -> dict[str, Any]:
    options = _flags(command)
    _known(map(_spelling, table), options, "an option", file)
    return {
        str(options[_spelling(name)].name): _value(options[_spelling(name)], name, value, file)
        for name, value in table.items()
    }


def _flags(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by name; of a group, those of all commands in it."""
    if isinstance(command, click.Group):
        return {name: option for below in command.commands.values() for name, option in _flags(below).items()}
    return {
        _spelling(flag): param
        for param in command.params
        if isinstance(param, click.Option) and param.expose_value and param.name
        for flag in param.opts
        if flag.startswith("--")
    }


def _value(option: click.Option, name: str, value: Any, file: Path) -> Any:
    """The value as the command line would have it: text, which the option's own type reads."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{name} = {shown(value)} in {file}", "true or false")
        return value
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(
        isinstance(entry, str | int | float) and not isinstance(entry, bool) for entry in entries
    ):
        raise InputError(f"{name} = {shown(value)} in {file}", "text, a number, or a list of these")
    texts = [entry if isinstance(entry, str) else repr(entry) for entry in entries]
    return tuple(texts) if option.multiple else ",".join(texts)


def _known(names: Iterable[str], allowed: Iterable[str], kind: str, file: Path) -> None:
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
            remedy = f"take {' or '.join(near)}, if that is what you meant" if near else ""
            raise InputError(f"{name!r} in {file} is not {kind}", ", ".join(allowed), remedy)


def _spelling(flag: str) -> str:
    return flag.removeprefix("--").replace("_", "-")
