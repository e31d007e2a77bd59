"""A part of a job's cells, so that several machines share them without a word between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from odenet._errors import InputError, shown

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, counted from 1. Every unit of work is in exactly one part.

    Args:
        number, count: 1 <= number <= count.

    Raises:
        InputError: other numbers.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"shard {self.number}/{self.count}", "I/N with I from 1 to N", "take 1/N, 2/N, ..., N/N")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def part(self, units: Sequence[Unit]) -> tuple[Unit, ...]:
        """Every `count`-th unit: what costs much stands together in most plans, and is spread so."""
        return tuple(units[self.number - 1 :: self.count])

    @classmethod
    def read(cls, text: str) -> Shard:
        """The shard that a text such as `2/4` names."""
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text) if isinstance(text, str) else None
        if match is None:
            raise InputError(f"{shown(text)} as a shard", "I/N with I from 1 to N, such as 2/4")
        return cls(int(match[1]), int(match[2]))


class ShardFlag(click.ParamType):
    """`I/N` on the command line."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shard:
        """The option's value as a shard."""
        try:
            return value if isinstance(value, Shard) else Shard.read(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
