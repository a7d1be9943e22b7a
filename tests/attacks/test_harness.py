"""A job that makes its end look like the host's: a `host` failure sends the provider home, and damages to the requester
(R4, R9). The code of a function is loaded in the runner, which shares the result stream with process 1.
"""

from __future__ import annotations

from typing import Any

import pytest

from chain.ledger.terms.outcome import Cause
from tests.provider.sandbox.world import Host, make_task

_FIND = """
import os, struct
FRAME = struct.Struct(">BI")
def is_pipe(fd):
    try:
        return "pipe" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return False
sink = max(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and is_pipe(fd))
"""
BEGUN = "os.write(sink, FRAME.pack(1, 4) + struct.pack('>I', 0))\n"
MEDDLING = {
    "the last word lies inside an unfinished frame": BEGUN + "os.write(sink, FRAME.pack(2, 1000)); os._exit(0)",
    "nothing was said at all": "os._exit(0)",
    "the stream is full and does not wait": BEGUN
    + "os.set_blocking(sink, False)\ntry:\n    while True:\n"
    + "        os.write(sink, FRAME.pack(2, 65536) + bytes(65536))\nexcept BlockingIOError:\n    os._exit(0)",
}


class Loaded:
    """Unpickled, it runs its source in the runner."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self._source, {})

    def __call__(self) -> None:
        """What the job would be asked for."""


@pytest.mark.parametrize("how", MEDDLING)
def test_no_job_can_end_in_the_hosts_name(how: str, best: Host) -> None:
    outcome = best.run(make_task(Loaded(_FIND + MEDDLING[how])))
    assert outcome.cause in (Cause.OUTPUT, Cause.PROGRAM), outcome.events
    assert [segment.cause for segment in outcome.segments] == [outcome.cause]


CHANGE_LIMITS = """
import os, resource
result = []
for pid in {1, os.getppid()}:
    for name in ("RLIMIT_CPU", "RLIMIT_AS", "RLIMIT_NOFILE"):
        try:
            resource.prlimit(pid, getattr(resource, name), (1, 1))
        except PermissionError:
            continue
        result.append(f"{name} of {pid}")
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


def test_no_job_sets_the_limits_of_the_harness(best: Host) -> None:
    outcome = best.run(make_task(CHANGE_LIMITS))
    assert (outcome.cause, outcome.value) == (Cause.OK, [])
