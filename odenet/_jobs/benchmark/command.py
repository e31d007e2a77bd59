"""`odenet benchmark`: measurements of solves that need no network and no data."""

from __future__ import annotations

import click

from odenet._jobs.benchmark.work_precision import command as work_precision


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Measure solves of test problems.

    \b
    Examples:
      odenet benchmark work-precision
      odenet benchmark work-precision --problem kepler --backend torch,jax,torchdiffeq,diffrax --solver dopri5,tsit5
    """


command.add_command(work_precision)
