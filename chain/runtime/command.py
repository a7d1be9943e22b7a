"""How a command of ours turns its errors into a line and an exit code (`tally` has its own, with codes for jobs)."""

from __future__ import annotations

from typing import Any

import click

from chain.base.errors import Refused, TallyError, Unavailable

EXIT_CODES = """\b
Exit codes: 0 done, 1 refused by a rule, 2 wrong usage, 3 a part that is needed
does not run, 4 a fault of our own."""
"""The end of each command's help."""


class CommandGroup(click.Group):
    """A group whose commands end with a line on standard error and 1, 3 or 4 for an error of ours, by blame."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TallyError as error:
            click.echo(f"{ctx.find_root().info_name}: {error}", err=True)
            ctx.exit(1 if isinstance(error, Refused) else 3 if isinstance(error, Unavailable) else 4)
