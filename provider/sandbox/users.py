"""Which kernel users the jobs of a daemon run as, where it is root: a block of numbers that no other daemon of this
machine holds.

Two jobs of one user could reach each other wherever a namespace leaks (threats.md A20). A block is held by a lock on a
file until the process ends, however it ends. Not here: becoming the user (`launch.py`).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from chain.base.errors import Unavailable

__all__ = ["BLOCK", "FIRST_UID", "claim_users"]

FIRST_UID: Final = 61_000
"""Above ordinary users, below the nobody user and the ranges handed to containers."""
BLOCK: Final = 64
"""Slots of one daemon."""
_BLOCKS: Final = 60


def claim_users(folder: Path) -> int:
    """The first number of a block that is ours until this process ends; asked again, the same. `folder` is shared by
    all daemons.

    Raises `Unavailable` where all blocks are taken.
    """
    for block in range(_BLOCKS):
        descriptor = os.open(folder / f".users-{block}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            continue
        return FIRST_UID + block * BLOCK  # the descriptor stays open on purpose: closing it would give up the lock
    raise Unavailable(f"{_BLOCKS} daemons run jobs on this machine already", rule="sandbox.users")
