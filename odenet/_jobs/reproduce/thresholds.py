"""The numbers that verdicts allow: one committed file, so that a change of one is seen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

FILE = "thresholds.toml"


@cache
def _file() -> Mapping[str, Mapping[str, float]]:
    return tomllib.loads(files(__package__ or __name__.rpartition(".")[0]).joinpath(FILE).read_text("utf-8"))


def thresholds(name: str) -> dict[str, float]:
    """The thresholds of a reproduction by their names in the file, those of all reproductions among them.

    Args:
        name: of the reproduction.
    """
    every = _file()
    return {**every["all"], **every.get(name, {})}


def changed(recorded: Mapping[str, Any] | None, name: str) -> tuple[str, ...]:
    """What to say of thresholds that are other ones now than those in force when a reproduction ran.

    Args:
        recorded: those of the run; None where the results do not tell.
        name: of the reproduction.
    """
    if recorded is None:
        return ("the thresholds in force when this ran were not recorded",)
    now = thresholds(name)
    return tuple(
        f"threshold changed after the run: {key} was {_said(recorded, key)}, is {_said(now, key)}"
        for key in dict.fromkeys((*recorded, *now))
        if recorded.get(key) != now.get(key)
    )


def _said(some: Mapping[str, Any], key: str) -> str:
    return f"{some[key]:g}" if key in some else "not there"
