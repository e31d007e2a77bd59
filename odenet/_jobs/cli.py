"""The command line: `odenet list | solve | compare | ...`. A job is imported when it is asked."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from typing import Any

COMMANDS = {
    "list": "odenet._jobs.list",
    "solve": "odenet._jobs.solve.command",
    "compare": "odenet._jobs.compare.command",
    "check": "odenet._jobs.check.command",
    "train": "odenet._jobs.train.command",
    "reproduce": "odenet._jobs.reproduce.command",
    "benchmark": "odenet._jobs.benchmark",
    "merge": "odenet._jobs.merge",
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `odenet` command."""
    try:
        import click
        import rich  # noqa: F401
    except ImportError:
        sys.exit("odenet: the command line needs click and rich. What to do: pip install 'odenet[cli]'")
    from odenet._errors import GradientError, OdenetError, SolveError, WriteError, shown
    from odenet._jobs.groups import WITH_SHORT_HELP, SuggestingGroup

    def _short(text: str) -> str:
        """A message that repeats what was typed, but not thousands of characters."""
        return re.sub(r"\S{300,}", lambda word: shown(word[0])[1:], text)

    class Jobs(SuggestingGroup):
        """Commands that are imported when they are named."""

        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in COMMANDS:
                return None
            return command_named(cmd_name)

        def invoke(self, ctx: click.Context) -> object:
            try:
                return super().invoke(ctx)
            except click.UsageError as error:
                raise click.UsageError(_short(error.format_message()), error.ctx) from error
            except OdenetError as error:
                failed = isinstance(error, (WriteError, SolveError, GradientError))  # in the course of the work
                kind = click.ClickException if failed else click.UsageError  # status 1, or 2
                raise kind(_short(str(error))) from error
            except MemoryError as error:
                raise click.ClickException(
                    f"there is not enough memory for that ({error}). What to do: take smaller sizes."
                ) from error

    @click.command(cls=Jobs, context_settings=WITH_SHORT_HELP)
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

    if sys.stdout is None:
        sys.exit("odenet: standard output is closed. What to do: send it to a file, or to /dev/null")
    ended = _end_as_interrupted()
    try:
        odenet.main(args=arguments, prog_name="odenet", standalone_mode=True)
    except SystemExit as error:
        status = error.code
    except OSError as error:  # of the output itself: those of files are FileErrors
        _silence()
        sys.exit(f"odenet: the output cannot be written ({error.strerror or error}). What to do: free space there")
    else:
        status = 0
    try:
        sys.stdout.flush()
    except OSError as error:
        _silence()
        sys.exit(f"odenet: the output cannot be written ({error.strerror or error}). What to do: free space there")
    if ended:
        print(f"odenet: ended by {ended[0].name}", file=sys.stderr)
        status = 128 + ended[0]
    sys.exit(status)


def command_named(name: str) -> Any:
    """One of `COMMANDS`, a command of click, with the option `--config` that all have."""
    from odenet._jobs.config import with_config

    return with_config(importlib.import_module(COMMANDS[name]).command, (name,), COMMANDS)


def _end_as_interrupted() -> list[signal.Signals]:
    """Let SIGTERM and SIGHUP end a job as Ctrl-C does: it says what is kept and how to go on.

    Returns:
        a list that the signal will be in. One that is ignored (nohup) stays so.
    """
    ended: list[signal.Signals] = []

    def end(number: int, frame: object) -> None:
        ended.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():  # signals are the main thread's alone
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end)
    return ended


def _silence() -> None:
    """Nothing more goes to an output that cannot be written: Python would try once more as it ends."""
    with open(os.devnull, "w") as nothing, contextlib.suppress(OSError, ValueError):
        os.dup2(nothing.fileno(), sys.stdout.fileno())
