"""The plans of all jobs over cells: checked, kept as JSON, grown when a run is resumed, and divided into shards."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import click

from odenet._backend import registry as _registry
from odenet._check import instance
from odenet._errors import BackendUnavailableError, DeviceUnavailableError, InputError, shown
from odenet._jobs.cells.resume import START_ANEW, changes, reading
from odenet._names import choice

DTYPES = ("float32", "float64")


class KeyedCell(Protocol):
    """What is measured in one go; its `str` is what people are told."""

    @property
    def key(self) -> Hashable:
        """The cell as names, which is how a row on disk is recognised."""
        ...


class CellPlan(ABC):
    """All options of a job over cells. Each job has its own, a frozen dataclass."""

    grid: ClassVar[tuple[str, ...]]
    """The fields that span the cells: these may grow when a run is resumed, the others may not change."""
    records: ClassVar[Mapping[str, tuple[str, Callable[[str], Any]]]]
    """The fields of the grid that hold records: the attribute that names one on disk, and what reads the name."""
    backends: tuple[str, ...]
    dtype: Literal["float32", "float64"]
    device: str

    @abstractmethod
    def cells(self) -> tuple[KeyedCell, ...]:
        """Every cell, in the order in which they are run."""

    def units(self, cells: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Cells in groups that are best measured together: what a shard and a worker have is whole groups."""
        return [(cell,) for cell in cells]

    @abstractmethod
    def in_order(self) -> Self:
        """This plan with its numbers sorted, as those that a user gives are."""

    def check(self, job: str) -> None:
        """Raises InputError for a grid without cells or of other types, an unknown number type or backend."""
        for name in self.grid:
            entries = getattr(self, name)
            instance(name, entries, tuple, f"a tuple of {name}")
            if not entries:
                raise InputError(f"{job} without {name}", f"at least one of {name}")
            attribute, _ = self.records.get(name, ("__class__", None))
            for record in entries:
                if not hasattr(record, attribute):
                    raise InputError(f"{shown(record)} in the {name} of {job}", "records, not their names")
        choice("number type", self.dtype, DTYPES)
        instance("device", self.device, str, "the name of one, as `odenet list backends` has it")
        for name in self.backends:
            _registry.entry(name)

    def require_a_backend(self) -> None:
        """Raises BackendUnavailableError if none of the backends is installed."""
        entries = [_registry.entry(name) for name in self.backends]
        if not any(entry.available for entry in entries):
            raise BackendUnavailableError(
                f"none of the backends {', '.join(self.backends)} is available",
                "at least one that is installed",
                " or ".join(entry.install for entry in entries),
            )

    def require_a_device(self) -> None:
        """Raises DeviceUnavailableError if none of the backends sees the device: asked before anything is written."""
        if self.device == "cpu":
            return  # without an import: that of the second backend waits until the first is timed
        seen: dict[str, tuple[str, ...]] = {}
        for name in self.backends:
            if _registry.entry(name).available:
                seen[name] = _registry.backend(name).devices()
                if self.device in seen[name]:
                    return
        every = "; ".join(f"{name}: {', '.join(devices)}" for name, devices in seen.items())
        raise DeviceUnavailableError(
            f"{' and '.join(seen)} see no device {shown(self.device)}", every, "see `odenet list backends`"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data: names instead of records."""
        plain = vars(self) | {name: list(getattr(self, name)) for name in self.grid}
        for name, (attribute, _) in self.records.items():
            plain[name] = [getattr(record, attribute) for record in plain[name]]
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The plan that `to_json` wrote.

        Raises:
            FileError: data that is no plan of this version of odenet.
        """
        with reading("the plan in these results", "a plan that odenet wrote"):
            options = {field.name: plain[field.name] for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
            options |= {name: tuple(plain[name]) for name in cls.grid}
            for name, (_, record) in cls.records.items():
                options[name] = tuple(map(record, options[name]))
            return cls(**options)

    def changed_from(self, old: Any) -> list[str]:
        """Why results of that plan of the same job are none of this one, in words."""
        return changes(vars(old), {name: value for name, value in vars(self).items() if name not in self.grid})

    def continued_from(self, old: Self) -> Self:
        """This plan with the grid of an earlier one added, for a run that goes on where the earlier one stopped.

        Raises:
            InputError: options beside the grid differ, so that the numbers cannot stand in one table.
        """
        changed = self.changed_from(old)
        if changed:
            *most, last = self.grid
            raise InputError(
                f"the results to resume were measured with other settings: {'; '.join(changed)}",
                f"the same settings; {' and '.join((', '.join(most), last)) if most else last} may be added",
                f"give the earlier settings, {START_ANEW}",
            )
        grown = {name: tuple(dict.fromkeys((*getattr(self, name), *getattr(old, name)))) for name in self.grid}
        return type(self)(**vars(self) | grown).in_order()


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
        try:
            return value if isinstance(value, Shard) else Shard.read(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
