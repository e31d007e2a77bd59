"""A verdict, the numbers that it allows, and the controls that are judged beside it by the same test."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

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


Data = TypeVar("Data")
State = Literal["holds", "FAILS", "undecided", "BLIND"]


@dataclass(frozen=True)
class Control:
    """The same test on data of which the answer is known.

    Args:
        data: what they are.
        must_pass: the known answer.
        passed: what the test said.
    """

    data: str
    must_pass: bool
    passed: bool

    @property
    def right(self) -> bool:
        """Whether the test said what is known."""
        return self.passed == self.must_pass

    def __str__(self) -> str:
        outcome = "passes" if self.passed else "is refused"
        return f"{self.data}: {outcome}{'' if self.right else ', and should not be' if self.must_pass else ', wrongly'}"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:
        claim: the claim, as a sentence without a full stop.
        expected: the numbers that it allows.
        observed: the numbers that were seen.
        passed: whether these are among those, and the test refuses what it must refuse.
        controls: the same test on data that it must refuse, and on data that it must not.
        scattered: whether the means over seeds would pass if they were known without an interval, and do not.
    """

    claim: str
    expected: str
    observed: str
    passed: bool
    controls: tuple[Control, ...] = ()
    scattered: bool = False

    @property
    def state(self) -> State:
        """In a word: BLIND where a bad control passes; undecided where scatter alone keeps the test from passing.

        That is where a good control does not pass, or where the means, without their scatter, do: a test that would not
        know the claim if it were true has not refuted it.
        """
        if any(control.passed and not control.must_pass for control in self.controls):
            return "BLIND"
        if self.passed:
            return "holds"
        return "undecided" if self.scattered or not all(control.right for control in self.controls) else "FAILS"


Said = tuple[bool, str]


def judged(
    claim: str,
    expected: str,
    test: Callable[[Data], Said],
    data: Data,
    *,
    bad: Mapping[str, Data | None],
    good: Mapping[str, Data | None],
    centre: Data | None = None,
) -> Verdict:
    """A verdict with its controls.

    Args:
        claim, expected: see `Verdict`.
        test: says whether data pass, and what they are.
        data: that were seen.
        bad, good: data that must not pass and that must, by what they are; None where none can be made.
        centre: the means over seeds in the place of each; None where nothing scatters.
    """
    passed, observed = test(data)
    controls = tuple(
        Control(description, must_pass, test(counterpart)[0])
        for must_pass, counterparts in ((False, bad), (True, good))
        for description, counterpart in counterparts.items()
        if counterpart is not None
    )
    blind = any(control.passed > control.must_pass for control in controls)
    scattered = not passed and centre is not None and test(centre)[0]
    return Verdict(claim, expected, observed, passed and not blind, controls, scattered)
