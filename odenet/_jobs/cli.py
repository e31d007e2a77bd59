"""The command line: `odenet list | solve | compare | ...`. A job is imported when it is asked."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "list": "odenet._jobs.list.command",
    "solve": "odenet._jobs.solve.command",
    "compare": "odenet._jobs.compare.command",
    "check": "odenet._jobs.check.command",
    "train": "odenet._jobs.train.command",
    "reproduce": "odenet._jobs.reproduce.command",
    "benchmark": "odenet._jobs.benchmark.command",
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `odenet` command."""
    try:
        import click
        import rich  # noqa: F401
    except ImportError:
        sys.exit("odenet: the command line needs click and rich. What to do: pip install 'odenet[cli]'")
    from odenet._errors import OdenetError

    class Jobs(click.Group):
        """Commands that are imported when they are named."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            return importlib.import_module(COMMANDS[cmd_name]).command

        def invoke(self, ctx: click.Context) -> object:
            try:
                return super().invoke(ctx)
            except OdenetError as error:
                raise click.ClickException(str(error)) from error

    @click.command(cls=Jobs, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name="odenet", prog_name="odenet")
    def odenet() -> None:
        """Residual networks as ODE solvers: choose solver, gradient method and backend by name.

        \b
        Examples:
          odenet list solvers
          odenet solve lotka-volterra --solver rk4 --depth 16..256 --plot orbit.png
          odenet compare --backend torch,jax --solver euler,heun --depth 4..64
          odenet check --depth 64 --gradient all
          odenet train --solver heun --gradient discrete-adjoint --epochs 20
          odenet reproduce all --quick
          odenet benchmark work-precision --problem kepler --solver dopri5,tsit5

        \b
        Shell completion (bash): eval "$(_ODENET_COMPLETE=bash_source odenet)"
        """

    odenet.main(args=arguments, prog_name="odenet")
