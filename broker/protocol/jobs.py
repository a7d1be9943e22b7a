"""The job spec, whose digest stands in the order: what to run, on what, within which limits."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import msgspec

from chain.base.codec import Record
from chain.base.hashing import Digest, Tag, compute_digest, compute_id
from chain.base.merkle import compute_root
from chain.base.units import Amount, Count, Millis
from chain.ledger.terms.agreement import Few, Kind

__all__ = [
    "Entry",
    "JobSpec",
    "Level",
    "Resources",
    "Runtime",
    "compute_item_root",
    "compute_job_digest",
    "compute_runtime_digest",
]

Name = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*\Z")]
Function = Annotated[str, msgspec.Meta(max_length=100, pattern=r"^([A-Za-z_][A-Za-z0-9_]*)?\Z")]
Title = Annotated[str, msgspec.Meta(max_length=200)]


class Entry(StrEnum):
    """What the code blob is: a cloudpickled function (loaded inside the sandbox only), a script's source, or a folder
    of files as a packed dict of relative path to bytes (`broker.protocol.folders`), whose script is `main.py`.
    """

    FUNCTION = "function"
    SCRIPT = "script"
    FOLDER = "folder"


class Level(StrEnum):
    """Isolation levels, weakest first. Below `ns` there are no bids at all."""

    NS = "ns"
    NS_CGROUP = "ns+cgroup"

    @property
    def rank(self) -> int:
        """Larger is stronger."""
        return list(Level).index(self)


MAX_LOG_BYTES = 64 << 20
"""Most of a lease's log that is kept, however many segments it has."""

USUAL_TMP_BYTES = 256 << 20
"""Room in a job's folder that a client asks for which says nothing else. Providers keep sandboxes of this shape ready.
"""

USUAL_SHM_BYTES = 64 << 20
"""The same for shared memory."""

LOG_MARGIN = 4_096
"""Bytes by which a log may pass its limit: the notice that says it was cut."""

MAX_ERROR_BYTES = 1 << 20
"""Largest traceback that broker and requester take."""


class Runtime(Record, frozen=True, tag="runtime"):
    """A Python minor version such as `3.11`, and the names of the packages a job may import besides the standard
    library.
    """

    python: Name
    packages: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]


class Resources(Record, frozen=True, tag="resources"):
    """Limits of one segment, each enforced by the sandbox with its own exit cause. Wall time stands in the order."""

    memory_bytes: Amount
    cpu_ms: Millis
    millicores: Count
    processes: Count
    open_files: Count
    output_bytes: Amount
    output_count: Count
    log_bytes: Amount
    tmp_bytes: Amount
    shm_bytes: Amount


class JobSpec(Record, frozen=True, tag="job"):
    """What a job is. `code` and `inputs` are blob digests; `inputs` is a packed value (`broker.protocol.values`):
    `(args, kwargs)` for a `run`, the list of all items for a `map`, the first state for a `train`.

    `function` names what a script or folder calls for each segment of a `map` or `train` (empty for a `run`). A `map`
    is divided among at most `parallelism` providers at a time; once more than `tolerance` of its segments have failed,
    what they left unserved is not offered again.
    """

    title: Title
    kind: Kind
    entry: Entry
    function: Function
    code: Digest
    code_bytes: Amount
    inputs: Digest
    input_bytes: Amount
    runtime: Runtime
    resources: Resources
    level: Level
    seed: Amount
    parallelism: Few
    tolerance: Count


def compute_log_limit(spec: JobSpec, segments: int) -> int:
    """Bytes of log that a provider keeps of a lease on so many segments, without the notice that it was cut: each may
    write `log_bytes`, all together at most `MAX_LOG_BYTES`.
    """
    return min(spec.resources.log_bytes * segments, MAX_LOG_BYTES)


def compute_item_root(items: Sequence[bytes | memoryview]) -> bytes:
    """What a `map` names as its start: RFC 6962 root over the digests of its packed items, in order."""
    return compute_root([compute_digest(item) for item in items])


def compute_job_digest(chain_id: bytes, spec: JobSpec) -> bytes:
    """Digest of a job spec as the order names it."""
    return compute_id(Tag.JOB, chain_id, spec)


def compute_runtime_digest(chain_id: bytes, runtime: Runtime) -> bytes:
    """Digest of a runtime as order, offer and receipt name it."""
    return compute_id(Tag.RUNTIME, chain_id, runtime)
