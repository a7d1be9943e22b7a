"""What a host can enforce, as plain data. Found by `probe.py`, used by `plan.py`; the daemon bids only where `level` is
not None.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from broker.protocol.jobs import Level
from provider.sandbox.cgroups import CgroupTree

__all__ = ["HostAbilities"]


class HostAbilities(msgspec.Struct, frozen=True):
    """`reasons` says in words what is missing and what to install or switch on; empty where nothing is."""

    level: Level | None
    arch: str
    bwrap: str
    bwrap_version: tuple[int, ...] = ()
    proc: bool = True
    uid_base: int | None = None
    """First kernel user of the slots where the daemon is root, else None."""
    cgroup: CgroupTree | None = None
    reasons: tuple[str, ...] = ()
    kind: Literal["bubblewrap"] = "bubblewrap"
