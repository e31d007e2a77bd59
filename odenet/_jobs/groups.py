"""What commands have in common: `-h`, and below a command a suggestion where a name is misspelt."""

from __future__ import annotations

import difflib
from typing import Any

import click

WITH_SHORT_HELP = {"help_option_names": ["-h", "--help"]}
"""Of each command its own: click keeps the help option of its first call, which may be one without the parent."""


class SuggestingGroup(click.Group):
    """A group that names the nearest commands, with every version of click."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that the first word names."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], names, n=3, cutoff=0.6)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(names)}."
            raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)
        return super().resolve_command(ctx, args)
