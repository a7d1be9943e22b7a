"""What is asked of a sandbox and what it answers: limits, tasks and the closed union of events.

Pure data. Rules: design.md sections 2 and 6. Not here: how a limit is enforced (`plan.py`) and how a cause is found
(`flight.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec

from broker.protocol.jobs import USUAL_SHM_BYTES, USUAL_TMP_BYTES, Entry
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause, Usage

__all__ = [
    "MAX_ERROR_BYTES",
    "MAX_SEGMENTS",
    "Ended",
    "Limits",
    "LogChunk",
    "SandboxEvent",
    "SegmentDone",
    "Started",
    "Task",
    "make_usual_task",
]

MAX_ERROR_BYTES: Final = 16 * 1024
"""Bytes of a traceback: a person reads its end."""
MAX_SEGMENTS: Final = 1 << 20
"""Segments of one task: a lease's range is split above this."""


class Limits(msgspec.Struct, frozen=True):
    """What a job may use. Times, output and log count per segment, everything else for the whole task.

    `output_count` bounds the outputs a task may send, one per segment. `wall_ms` and `cpu_ms` of the first segment
    include loading the code.
    """

    memory_bytes: int
    cpu_ms: int
    wall_ms: int
    processes: int
    open_files: int
    output_bytes: int
    output_count: int
    log_bytes: int
    tmp_bytes: int
    shm_bytes: int
    millicores: int = 1000

    @property
    def cores(self) -> int:
        """Threads a numeric library may start: whole cores, at least one."""
        return max(1, self.millicores // 1000)


class Task(msgspec.Struct, frozen=True):
    """One stay in a sandbox: segments `first` to `first + count - 1` of one order.

    `code` is what `entry` says: a cloudpickled function, the source of a script, a packed folder
    (`broker.protocol.folders`). `function` names what a script or folder of a `map` or `train` defines. `inputs` is a
    file that holds a packed value (`broker.protocol.values`): `(args, kwargs)` for a `run`; the packed list of all
    items of the order for a `map` (segment i takes item i); the state before segment `first` for a `train`. Nobody may
    change it while the task runs.
    """

    kind: Kind
    order_id: bytes
    first: int
    count: int
    code: bytes
    entry: Entry
    function: str
    inputs: Path
    limits: Limits
    seed: int = 0


def make_usual_task(memory_bytes: int = 512 << 20) -> Task:
    """What a client asks for that says nothing else, a function that uses NumPy: to be planned for, not to be run."""
    limits = Limits(
        memory_bytes=memory_bytes,
        cpu_ms=300_000,
        wall_ms=300_000,
        processes=64,
        open_files=256,
        output_bytes=64 << 20,
        output_count=1,
        log_bytes=1 << 20,
        tmp_bytes=USUAL_TMP_BYTES,
        shm_bytes=USUAL_SHM_BYTES,
    )
    return Task(Kind.RUN, bytes(32), 0, 1, b"numpy", Entry.FUNCTION, "", Path(os.devnull), limits)


class Started(msgspec.Struct, frozen=True):
    """The sandbox stands and the task was handed over. `at_ms` is an Instant."""

    at_ms: int


class LogChunk(msgspec.Struct, frozen=True):
    """Bytes the job wrote. `stream` is `out` or `err`. Hostile: escape before showing."""

    stream: str
    data: bytes


class SegmentDone(msgspec.Struct, frozen=True):
    """A segment is over, well or not.

    Its output is a packed value as received and counts only where `cause` is ok: up to `frames.HELD_BYTES` stand in
    `output`, a larger one lies in the file `spooled`, which belongs to whoever takes this event and is not yet synced.
    `output_digest` (SHA-256) and `output_bytes` are of either. `error` is the end of the traceback where the program
    failed (hostile text, at most `MAX_ERROR_BYTES`). `input_digest` is the SHA-256 of the packed input, `started_ms` an
    Instant.
    """

    index: int
    cause: Cause
    input_digest: bytes
    output: bytes
    spooled: Path | None
    output_digest: bytes
    output_bytes: int
    error: str
    usage: Usage
    started_ms: int


class Ended(msgspec.Struct, frozen=True):
    """Nothing of the job is left. `cause` is ok when every segment is; `detail` says in words what happened; `level` is
    what was enforced.
    """

    cause: Cause
    usage: Usage
    detail: str
    level: str


SandboxEvent = Started | LogChunk | SegmentDone | Ended
"""Everything a sandbox reports: one `Started`, log chunks and segments in order, one `Ended`; only `Ended` where it
could not be set up.
"""
