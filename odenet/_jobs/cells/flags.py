"""The flags of a plan, which `odenet compare` and `odenet check` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from odenet._jobs import flags as _flags
from odenet._jobs.cells.grid import GridPlan
from odenet._nets.spec import BLOCKS, NORMS, STARTS

_PLURAL = {name: f"{name}s" for name in ("backend", "solver", "gradient", "depth")}
Decorator = Callable[[Any], Any]


def grid_flags(plan: GridPlan) -> Decorator:
    """`--backend --solver --gradient --depth --dtype --device --seed`, by default this plan's."""
    flags = (
        _flags.backends(",".join(plan.backends)),
        _flags.solvers(",".join(solver.label for solver in plan.solvers)),
        _flags.gradients(",".join(gradient.label for gradient in plan.gradients)),
        _flags.depths(",".join(map(str, plan.depths))),
        _flags.dtype(plan.dtype),
        _flags.device(),
        _flags.seed(),
    )
    return lambda command: _flags.apply(command, flags)


def network_flags(plan: GridPlan) -> Decorator:
    """`--batch --block --width --norm --activation --start --along`, by default this plan's."""
    flags = (
        number("--batch", "Images in the batch, 1 to 1797.", plan),
        choice("--block", BLOCKS, "Kind of block.", plan),
        number("--width", "Channels (conv) or features.", plan),
        choice("--norm", NORMS, "Normalisation of conv blocks.", plan),
        choice("--activation", ("relu", "tanh"), "Activation; a smooth one shows orders most clearly.", plan),
        choice(
            "--start",
            STARTS,
            "Weights: a smooth function of depth, drawn independently for each layer, or zero.",
            plan,
        ),
        choice(
            "--along",
            ("auto", "piecewise", "linear", "shared"),
            "Weights along depth; auto: piecewise for euler, else linear.",
            plan,
        ),
    )
    return lambda command: _flags.apply(command, flags)


def number(flag: str, text: str, plan: GridPlan) -> Decorator:
    """A whole number of at least 1, by default the plan's."""
    default = getattr(plan, flag.removeprefix("--"))
    return click.option(flag, type=_flags.Whole(1), default=default, show_default=True, help=text)


def choice(flag: str, names: tuple[str, ...], text: str, plan: GridPlan) -> Decorator:
    """One of some names, by default the plan's."""
    default = getattr(plan, flag.removeprefix("--"))
    return click.option(flag, type=click.Choice(names), default=default, show_default=True, help=text)


def plan_of(options: Mapping[str, Any]) -> GridPlan:
    """The plan that these flags ask for; flags are singular (`--solver`), a plan's fields are not."""
    return GridPlan(**{plan_field(name): value for name, value in options.items()})


def plan_field(option: str) -> str:
    """The field of a plan that an option sets."""
    return _PLURAL.get(option, option)
