"""From what the kernel and the harness report to an exit cause with words.

Pure, one table. How each cause is known: `oom` by the kernel's count in the job's cgroup, without one by polled PSS or
a MemoryError; `cpu` by the cgroup's clock or the process tree's, or the signal of RLIMIT_CPU; `wall`, `output` and
`log` by the host's own counters; `policy` by SIGSYS from the filter; `signal` by any other deadly signal; `program` by
an exception or an exit status; `host` by failures that are not the job's.
"""

from __future__ import annotations

import signal

import msgspec

from chain.ledger.terms.outcome import Cause
from provider.sandbox.inside import wire

__all__ = ["Evidence", "judge"]


class Evidence(msgspec.Struct, frozen=True):
    """What the host knows when something has ended. `guarded`: a cgroup limits memory."""

    oom_kills: int
    peak_bytes: int
    cpu_spent: bool
    guarded: bool


def judge(outcome: int, number: int, evidence: Evidence) -> tuple[Cause, str]:
    """Cause and detail of an outcome (`inside.wire`) with its signal or exit status."""
    if evidence.oom_kills or (outcome == wire.MEMORY and not evidence.guarded):
        return Cause.OOM, f"out of memory; peak {evidence.peak_bytes} bytes"
    if outcome == wire.OK:
        return Cause.OK, ""
    if outcome in (wire.RAISED, wire.MEMORY):
        return Cause.PROGRAM, "the program raised an exception"
    if outcome == wire.EXITED:
        return Cause.PROGRAM, f"the program left with exit status {number} and without a result"
    return _judge_signal(number, evidence)


def _judge_signal(number: int, evidence: Evidence) -> tuple[Cause, str]:
    if number == signal.SIGSYS:
        return Cause.POLICY, "the program made a system call that the filter punishes by death"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and evidence.cpu_spent):
        return Cause.CPU, "CPU time used up"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = str(number)
    return Cause.SIGNAL, f"the program was killed by signal {name}"
