"""How a command of ours turns its errors into a line and an exit code (`tally` has its own, with codes for jobs)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from chain.base.errors import Refused, TallyError, Unavailable
from chain.base.keys import Signer, show_key
from chain.runtime.keystore import create_key, load_key

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


def make_account(path: Path, passphrase: str | None) -> Signer:
    """A new key for `init`. Raises `Refused` (`key.exists`) where there is one already, and says whose it is if it
    opens.
    """
    if not path.exists():
        return create_key(path, passphrase)
    account = ""
    with contextlib.suppress(TallyError):
        account = f"; its account is {show_key(load_key(path, passphrase).key)}"
    raise Refused(f"{path} exists; keys are never overwritten{account}", rule="key.exists")
