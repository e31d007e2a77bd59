"""The flags that several commands share. Choices are read from the registries, so a new solver is a choice at once.

Over 250 lines: each flag is a few lines, and stands beside the others that a command takes with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from odenet._backend.registry import entry, known
from odenet._errors import InputError, OdenetError, shown
from odenet._gradients.names import gradient, menu
from odenet._jobs.cells.executor import require_known
from odenet._jobs.cells.plan import DTYPES, ShardFlag
from odenet._jobs.cells.run import JobOptions
from odenet._jobs.output import FilePath
from odenet._nets.spec import UNREAD, Block, not_read
from odenet._solvers.names import ALL_SOLVERS, solver, solver_aliases

T = TypeVar("T")
MOST = 2**31 - 1  # of any count: frameworks count in 32 bits


class Whole(click.IntRange):
    """A whole number from a least one on, which 32 bits hold."""

    name = "integer"

    def __init__(self, least: int) -> None:
        super().__init__(min=least, max=MOST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return _within(self, int, "whole number", value, param, ctx)

    def _describe_range(self) -> str:  # of help texts, where the bound of 32 bits says nothing
        return f"x>={self.min}"


class Real(click.FloatRange):
    """A finite number within bounds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return _within(self, float, "finite number", value, param, ctx)

    def _describe_range(self) -> str:  # click writes "x<=None" where there is no bound
        return "" if self.min is None and self.max is None else super()._describe_range()


def _within(bounds: Any, read: Callable[[Any], T], kind: str, value: Any, *place: Any) -> T:
    """A number, with its bounds in the message where it is none or beyond them."""
    try:
        number: Any = read(value)
        fits = math.isfinite(number) and (bounds.min is None or bounds.min <= number)
        if fits and (bounds.max is None or number <= bounds.max):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    ends = (f"at least {bounds.min}", bounds.min), (f"at most {bounds.max}", bounds.max)
    allowed = ", ".join([f"a {kind}", *(text for text, end in ends if end is not None)])
    param, ctx = place
    raise click.BadParameter(f"{shown(value)} cannot be used. Allowed: {allowed}.", ctx, param)


class Names(click.ParamType):
    """Names separated by commas, each read by `read`; `all` stands for every one.

    Args:
        kind: what is named.
        choices: every name; of numbers, some examples.
        read: the thing of a name.
        all_of_them: whether `all` has a meaning.
    """

    def __init__(
        self, kind: str, choices: Callable[[], Sequence[str]], read: Callable[[str], Any], all_of_them: bool = True
    ) -> None:
        self.name = kind
        self.choices = choices
        self.read = read
        self.all_of_them = all_of_them

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """The things named, in order, without repeats."""
        if not isinstance(value, str):
            return tuple(value)
        texts = [text.strip() for text in value.split(",") if text.strip()]
        if not texts:
            self.fail(f"no {self.name} was named. Allowed: {', '.join(self.choices())}.", param, ctx)
        every = self.choices() if self.all_of_them and "all" in texts else ()
        try:  # names beside `all` are read, too: a misspelt one is a mistake wherever it stands
            named = tuple(dict.fromkeys(self.read(text) for text in texts if not every or text != "all"))
            return tuple(dict.fromkeys(self.read(text) for text in every)) or named
        except OdenetError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that go on from what was typed after the last comma."""
        done, comma, start = incomplete.rpartition(",")
        return [CompletionItem(f"{done}{comma}{name}") for name in self.choices() if name.startswith(start)]


def whole_numbers(text: str) -> tuple[int, ...]:
    """`4,8,16` or a doubling range `4..64` as whole numbers of at least 1; a range holds both its ends."""
    try:
        first, dots, last = text.partition("..")
        if not dots:
            numbers = [int(text)]
        else:
            numbers = [int(first)]
            while numbers[0] > 0 and numbers[-1] * 2 <= int(last):
                numbers.append(numbers[-1] * 2)
            if numbers[0] > 0 and numbers[-1] < int(last):
                numbers.append(int(last))
    except ValueError:
        raise InputError(f"{shown(text)} is no depth", "whole numbers, or a doubling range such as 4..64") from None
    if min(numbers) < 1 or (dots and int(last) < numbers[0]) or max(numbers) > MOST:
        raise InputError(f"{shown(text)} as depths", f"whole numbers, at least 1, at most {MOST}; ranges go up")
    return tuple(numbers)


class Depths(Names):
    """Depths separated by commas; `4..100` doubles, up to its end."""

    def __init__(self) -> None:
        super().__init__("depth", lambda: ("4", "8", "16", "32", "64", "4..64"), whole_numbers, False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Sorted, without repeats."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(sorted({number for group in super().convert(value, param, ctx) for number in group}))


def tolerance_list(text: str) -> tuple[float, ...]:
    """`1e-3,1e-6` or a range of decades `1e-3..1e-9` as tolerances between 0 and 1."""
    try:
        ends = [float(part) for part in text.split("..")]
    except ValueError:
        raise InputError(f"{shown(text)} is no tolerance", "numbers, or decades downwards such as 1e-3..1e-9") from None
    if not all(0 < end < 1 for end in ends) or len(ends) > 2 or ends[-1] > ends[0]:
        raise InputError(f"{shown(text)} as tolerances", "numbers between 0 and 1, ranges that go down as 1e-3..1e-9")
    numbers = ends[:1]
    while numbers[-1] / 9.99 > ends[-1]:
        numbers.append(float(f"{numbers[-1] / 10:.6g}"))
    return tuple(numbers)


class Tolerances(Names):
    """Tolerances separated by commas; `1e-3..1e-9` goes down by decades."""

    def __init__(self) -> None:
        super().__init__("tolerance", lambda: ("1e-3", "1e-6", "1e-9", "1e-3..1e-9"), tolerance_list, False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """From loose to tight, without repeats."""
        if not isinstance(value, str):
            return tuple(value)
        numbers = {number for group in super().convert(value, param, ctx) for number in group}
        return tuple(sorted(numbers, reverse=True))


def _joined(ctx: click.Context, param: click.Parameter, values: tuple[tuple[Any, ...], ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(value for group in values for value in group))


def _several(flag: str, kind: Names, default: str | None, text: str) -> Callable[[Any], Any]:
    defaults = {"default": (default,), "show_default": True} if default is not None else {}
    return click.option(flag, type=kind, multiple=True, callback=_joined, help=text, **defaults)


def _problem_names() -> Sequence[str]:
    from odenet._test_problems.named import PROBLEMS  # not every command that has flags has problems

    return tuple(PROBLEMS)


def _problem(text: str) -> Any:
    from odenet._test_problems.named import problem_named

    return problem_named(text)


BACKENDS = Names("backend", lambda: tuple(known()), lambda text: entry(text).name)
SOLVERS = Names("solver", lambda: (*ALL_SOLVERS, *solver_aliases()), solver)
GRADIENT_NAMES = Names("gradient", menu, gradient)


def backends(default: str) -> Callable[[Any], Any]:
    """`--backend`, to names of known backends."""
    return _several("--backend", BACKENDS, default, f"Backends, repeatable or with commas: {', '.join(known())}.")


def solvers(default: str) -> Callable[[Any], Any]:
    """`--solver`, to solver records."""
    return _several("--solver", SOLVERS, default, "Solvers of `odenet list solvers`, with commas, or all.")


def gradients(default: str) -> Callable[[Any], Any]:
    """`--gradient`, to `Gradient` records."""
    text = f"Gradient methods, with options behind colons: {', '.join(GRADIENT_NAMES.choices())}, or all."
    return _several("--gradient", GRADIENT_NAMES, default, text)


def require_read(context: click.Context, block: Block) -> None:
    """Raises InputError for an option that was given beside a kind of block that does not read it."""
    for name in UNREAD[block]:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise not_read(name, context.params[name], block)


def depths(default: str) -> Callable[[Any], Any]:
    """`--depth`, to whole numbers."""
    return _several("--depth", Depths(), default, "Depths (steps): numbers with commas, or a doubling range 4..64.")


def tolerances(default: str | None = None) -> Callable[[Any], Any]:
    """`--rtol`, to numbers from loose to tight."""
    return _several(
        "--rtol", Tolerances(), default, "Relative tolerances of a step: numbers with commas, or decades 1e-3..1e-9."
    )


def atol() -> Callable[[Any], Any]:
    """`--atol`, one number for all of `--rtol`."""
    return click.option(
        "--atol",
        type=Real(0.0, 1.0),
        show_default="as rtol",
        help="Absolute tolerance of a step, one number.",
    )


def problems(default: str) -> Callable[[Any], Any]:
    """`--problem`, to test problems."""
    kind = Names("problem", _problem_names, _problem)
    return _several("--problem", kind, default, "Test problems of `odenet list problems`, with commas, or all.")


def dtype(default: str) -> Callable[[Any], Any]:
    """The option `--dtype`."""
    kinds = click.Choice(DTYPES)
    return click.option("--dtype", type=kinds, default=default, show_default=True, help="Number type of the state.")


def device() -> Callable[[Any], Any]:
    """The option `--device`."""
    return click.option(
        "--device", default="cpu", show_default=True, help="Device, as `odenet list backends` names it."
    )


def job(
    out: str,
    out_text: str = "Folder of the results. An earlier run's results.* are kept there as results.previous.*.",
    resume_text: str = "Continue from the results in --out: only missing and failed cells are run.",
) -> Callable[[Any], Any]:
    """`--out`, `--resume`, `--shard` and `--executor`, which the command gets as one `JobOptions` called `job`.

    Args:
        out: the folder by default.
        out_text, resume_text: what the help says of these two.
    """
    shard_text = "Run only part I of N, as in 1/4; odenet merge joins the parts. Give each part its own --out."
    executor_text = (
        "Where cells are run, in the place of this process: processes:4, dask[:ADDRESS], ray[:ADDRESS], "
        "submitit:slurm,NAME=VALUE,..."
    )
    flags = (
        click.option("--out", type=FilePath(file_okay=False), default=Path(out), show_default=True, help=out_text),
        click.option("--resume", is_flag=True, help=resume_text),
        click.option("--shard", type=ShardFlag(), help=shard_text),
        click.option("--executor", callback=_known_executor, help=executor_text),
    )

    def decorate(command: Callable[..., Any]) -> Any:
        @functools.wraps(command)
        def called(*arguments: Any, out: Path, resume: bool, shard: Any, executor: str | None, **options: Any) -> Any:
            return command(*arguments, job=JobOptions(out, resume, shard, executor), **options)

        return apply(called, flags)

    return decorate


def apply(command: Any, flags: Sequence[Callable[[Any], Any]]) -> Any:
    """A command with these flags, in the order in which its help lists them."""
    for flag in reversed(flags):  # click lists options in the order of decorators, the last applied first
        command = flag(command)
    return command


def _known_executor(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        require_known(value or "processes")
    except OdenetError as error:
        raise click.BadParameter(str(error), context, param) from error
    return value


def seed() -> Callable[[Any], Any]:
    """The option `--seed`."""
    return click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of weights and data.")
