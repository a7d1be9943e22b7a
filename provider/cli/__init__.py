"""The command `tally-provider`: make a provider's account, lend this machine, look at it.

Exit codes: 0 done, 1 refused by a rule, 2 wrong usage, 3 a part that is needed does not run, 4 a fault of our own.
"""

from __future__ import annotations

from provider.cli.commands import main

__all__ = ["main"]
