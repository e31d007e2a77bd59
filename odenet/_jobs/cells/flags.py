"""The flags of a plan, which `odenet compare` and `odenet check` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import click

from odenet._jobs import flags as _flags
from odenet._jobs.cells.grid import Plan
from odenet._nets.spec import BLOCKS

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Plan)}
_PLURAL = {name: f"{name}s" for name in ("backend", "solver", "gradient", "depth")}
Decorator = Callable[[Any], Any]


def grid_flags(
    depth: str, backend: str = "torch,jax", solver: str = "euler,heun,rk4", gradient: str | None = None
) -> Decorator:
    """`--backend --solver --gradient --depth --dtype --device --seed` with these defaults."""
    labels = gradient or ",".join(each.label for each in _DEFAULTS["gradients"])
    flags = (
        _flags.backends(backend),
        _flags.solvers(solver),
        _flags.gradients(labels),
        _flags.depths(depth),
        _flags.dtype(_DEFAULTS["dtype"]),
        _flags.device(),
        _flags.seed(),
    )
    return lambda command: _apply(command, flags)


def network_flags(command: Any) -> Any:
    """`--batch --block --width --norm --activation --start --along`."""
    flags = (
        number("--batch", "Images in the batch, 1 to 1797."),
        choice("--block", BLOCKS, "Kind of block."),
        number("--width", "Channels (conv) or features."),
        choice("--norm", ("group", "none"), "Normalisation of conv blocks."),
        choice("--activation", ("relu", "tanh"), "Activation; a smooth one shows the order of a method most clearly."),
        choice("--start", ("smooth", "independent", "zero"), "Weights: a smooth function of depth, or layer by layer."),
        choice("--along", ("auto", "piecewise", "linear", "shared"), "Weights along depth; auto: by solver."),
    )
    return _apply(command, flags)


def number(flag: str, text: str) -> Decorator:
    """A whole number of at least 1, by default the plan's."""
    default = _DEFAULTS[flag.removeprefix("--")]
    return click.option(flag, type=_flags.Whole(1), default=default, show_default=True, help=text)


def choice(flag: str, names: tuple[str, ...], text: str) -> Decorator:
    """One of some names, by default the plan's."""
    default = _DEFAULTS[flag.removeprefix("--")]
    return click.option(flag, type=click.Choice(names), default=default, show_default=True, help=text)


def plan_of(options: Mapping[str, Any]) -> Plan:
    """The plan that these flags ask for; flags are singular (`--solver`), a plan's fields are not."""
    return Plan(**{_PLURAL.get(name, name): value for name, value in options.items()})


def _apply(command: Any, flags: tuple[Decorator, ...]) -> Any:
    for flag in reversed(flags):  # click lists options in the order of decorators, the last applied first
        command = flag(command)
    return command
