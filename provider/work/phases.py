"""Where the work for a lease may stand, and how long it waits for what."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """Where the work stands."""

    NEW = "new"
    FETCHING = "fetching"
    QUEUED = "queued"
    RUNNING = "running"
    POSTING = "posting"
    STORED = "stored"
    DELIVERED = "delivered"
    STOPPED = "stopped"
    LEAVING = "leaving"
    ENDED = "ended"


UNFINISHED = frozenset({Phase.FETCHING, Phase.QUEUED, Phase.RUNNING})
"""Phases in which there is no final receipt yet."""

ANSWERING = UNFINISHED | {Phase.POSTING, Phase.STORED, Phase.LEAVING}
"""Phases in which a call is answered (R6): there is still something to do for the lease."""


class Patience(msgspec.Struct, frozen=True):
    """Milliseconds: how long to wait for an acceptance before delivering; before the start window's end and before
    the deadline to give up; what a re-run needs beside its wall limits; how long a provider that shuts down waits for
    what is done to be handed in. `attempts` is how often a job is tried on a host that fails without any progress.
    """

    acceptance: int = 3_000
    start: int = 5_000
    deadline: int = 4_000
    overhead: int = 1_000
    leaving: int = 1_000
    attempts: int = 2
