"""What a job has used, from the kernel and never from the job: its cgroup where there is one, else its process tree and
rusage.
"""

from __future__ import annotations

import os
import resource
from typing import Final, Protocol

from provider.sandbox.cgroups import Cgroup, Reading

__all__ = ["CgroupMeter", "Meter", "TreeMeter", "list_tree"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Meter(Protocol):
    """Reads what was used so far; figures never fall."""

    def read(self) -> Reading:
        """Now, while the job runs."""

    def finish(self, rusage: resource.struct_rusage) -> Reading:
        """At the end, given what bubblewrap's wait told."""


class CgroupMeter:
    """Figures of a cgroup of one job."""

    def __init__(self, group: Cgroup) -> None:
        self._group = group
        self._peak = 0

    def read(self) -> Reading:
        """Now, while the job runs. Kernels before 5.19 tell version 2's present memory only, so the largest seen is
        kept.
        """
        reading = self._group.read()
        self._peak = max(self._peak, reading.peak_bytes)
        return Reading(reading.cpu_us, self._peak, reading.oom_kills)

    def finish(self, rusage: resource.struct_rusage) -> Reading:
        """The group still holds the figures of the dead."""
        return self.read()


class TreeMeter:
    """Figures of process 1 and all below it, polled. Memory is PSS: summed RSS counts pages shared after a fork once
    per process (trap 4).
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cpu_us = 0
        self._peak = 0
        self.present_bytes = 0

    def read(self) -> Reading:
        """Now, while the job runs. A process that ends between two looks is counted by whoever reaped it."""
        pids = list_tree(self._pid)
        self._cpu_us = max(self._cpu_us, sum(map(_read_cpu_us, pids)))
        self.present_bytes = sum(map(_read_memory, pids))
        self._peak = max(self._peak, self.present_bytes)
        return Reading(self._cpu_us, self._peak, 0)

    def finish(self, rusage: resource.struct_rusage) -> Reading:
        """The larger of what was seen and what the kernel tells of reaped processes, which misses those that process 1
        left behind.

        `ru_maxrss` of a child begins with what this very process held when it forked. So it says something of the job
        only where it is more than we ever held ourselves.
        """
        told = round((rusage.ru_utime + rusage.ru_stime) * 1_000_000)
        largest, ours = rusage.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = largest * 1024 if largest > ours else 0
        return Reading(max(self._cpu_us, told), max(self._peak, peak), 0)


def list_tree(pid: int) -> list[int]:
    """A process and all below it that still live."""
    found, pending = [], [pid]
    while pending:
        here = pending.pop()
        found.append(here)
        try:
            threads = os.listdir(f"/proc/{here}/task")
        except OSError:
            continue
        for thread in threads:
            pending.extend(map(int, _read(f"/proc/{here}/task/{thread}/children").split()))
    return found


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _read_cpu_us(pid: int) -> int:
    """User and system time of a process and of the children it has reaped."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) * 1_000_000 // _TICKS if len(fields) > 15 else 0


def _read_memory(pid: int) -> int:
    """PSS; RSS where the process hides itself, which costs only the one that hides."""
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0
