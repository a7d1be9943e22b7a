"""What a run may leave behind on the host: processes, folders, cgroups, mounts, shared memory. Compared before and
after."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class HostState:
    """Everything of ours that could leak."""

    processes: frozenset[str]
    temporary: frozenset[str]
    cgroups: frozenset[str]
    mounts: frozenset[str]
    shared_memory: frozenset[str]

    def added(self, later: HostState) -> dict[str, set[str]]:
        """What `later` has that this has not, by kind; empty when nothing leaked."""
        kinds = ("processes", "temporary", "cgroups", "mounts", "shared_memory")
        found = {kind: set(getattr(later, kind) - getattr(self, kind)) for kind in kinds}
        return {kind: what for kind, what in found.items() if what}


def read_host(folder: Path) -> HostState:
    """The host now. `folder` is the run's own temporary folder: its TMPDIR, named in the environment of all it starts.

    A cgroup counts once the process it is named after is gone, so that other runs beside this one don't.
    """
    return HostState(
        frozenset(_processes(str(folder))),
        frozenset(os.listdir(folder)),
        frozenset(_cgroups()),
        frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        frozenset(os.listdir("/dev/shm")),
    )


def _processes(marker: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or folder.name == str(os.getpid()):
            continue
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (folder / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if marker in line or marker in environment:
            found.append(f"{folder.name} {line}")
    return found


def _cgroups() -> list[str]:
    if not _CGROUPS.is_dir():
        return []
    found = [path for path in _CGROUPS.rglob("tallystick.*") if path.is_dir()]
    return [str(path) for path in found if not Path("/proc", path.name.split(".")[1]).exists()]
