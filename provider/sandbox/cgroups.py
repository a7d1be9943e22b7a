"""Control groups for jobs: version 2 where a part of the tree is delegated, version 1 below our own group per
controller, or none.

Rules: threats.md 1.5. A job's group lies below the daemon's own, so that outer limits still hold, and is new for each
job, so that its figures start at nothing. Names carry the daemon's process and its start, so that `sweep` knows what a
killed daemon left behind.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final, Protocol

import msgspec

__all__ = ["Cgroup", "CgroupTree", "Reading", "find_tree", "get_family", "sweep"]

PREFIX: Final = "tallystick."
_LEAF: Final = ".daemon"
_PATIENCE: Final = 400
"""Looks at a group that should be empty, two seconds in all."""
_PERIOD_US: Final = 100_000
_PAGE: Final = 4096
_MOUNTS: Final = "/proc/self/mountinfo"
_OWN: Final = "/proc/self/cgroup"
_V1_NEEDED: Final = ("memory", "pids", "cpuacct")
_V2_NEEDED: Final = ("memory", "pids", "cpu")


class Reading(msgspec.Struct, frozen=True):
    """What the kernel counted so far."""

    cpu_us: int
    peak_bytes: int
    oom_kills: int


class Wanted(Protocol):
    """The limits of a group; see `plan.CgroupLimits`."""

    @property
    def memory_bytes(self) -> int | None:
        """Bytes of memory, tmpfs and pipes included."""

    @property
    def processes(self) -> int | None:
        """Processes and threads."""

    @property
    def millicores(self) -> int | None:
        """Thousandths of a core."""


class CgroupTree(msgspec.Struct, frozen=True):
    """Where groups can be made: one folder per controller (all the same in version 2)."""

    version: int
    folders: tuple[tuple[str, str], ...]
    family: str

    def get_folders(self, name: str) -> dict[str, Path]:
        """The folders of the group `name`, by controller."""
        return {controller: Path(folder) / self.family / name for controller, folder in self.folders}

    def create(self, name: str, wanted: Wanted) -> Cgroup:
        """Makes a group and sets its limits. Raises OSError where the kernel refuses."""
        folders = self.get_folders(name)
        group = Cgroup(self.version, folders)
        for folder in dict.fromkeys(folders.values()):
            folder.mkdir(parents=True, exist_ok=False)
        try:
            group.limit(wanted)
        except OSError:
            group.remove()
            raise
        return group

    def remove_family(self) -> None:
        """Removes the daemon's own folder at its end."""
        for _, folder in self.folders:
            _remove(Path(folder) / self.family)


def _get_settings(version: int, wanted: Wanted) -> list[tuple[str, str, str]]:
    """(controller, file, value): the limits as the files of this version take them."""
    rows: list[tuple[str, str, str]] = []
    if wanted.memory_bytes is not None:
        memory = str(wanted.memory_bytes)
        if version == 2:
            rows += [
                ("memory", "memory.max", memory),
                ("memory", "memory.swap.max", "0"),
                ("memory", "memory.oom.group", "1"),
            ]
        else:
            rows += [("memory", "memory.limit_in_bytes", memory), ("memory", "memory.memsw.limit_in_bytes", memory)]
            rows += [("memory", "memory.swappiness", "0")]
    if wanted.processes is not None:
        rows.append(("pids", "pids.max", str(wanted.processes)))
    if wanted.millicores is not None:
        quota = wanted.millicores * _PERIOD_US // 1000
        if version == 2:
            rows.append(("cpu", "cpu.max", f"{quota} {_PERIOD_US}"))
        else:
            rows += [("cpu", "cpu.cfs_period_us", str(_PERIOD_US)), ("cpu", "cpu.cfs_quota_us", str(quota))]
    return rows


class Cgroup:
    """One group, for one job."""

    def __init__(self, version: int, folders: dict[str, Path]) -> None:
        self.version = version
        self._folders = folders
        self._unique = list(dict.fromkeys(folders.values()))
        self._figures: dict[Path, int] = {}

    def add(self, pid: int) -> None:
        """Puts a process, and so all it will fork, into the group."""
        for folder in self._unique:
            _write(folder / "cgroup.procs", str(pid))

    def limit(self, wanted: Wanted) -> None:
        """Sets limits. Raises OSError where the kernel refuses, such as less memory than the group uses already."""
        for controller, file, value in _get_settings(self.version, wanted):
            if controller in self._folders:
                needed = not file.startswith(("memory.sw", "memory.memsw"))
                _write(self._folders[controller] / file, value, needed=needed)

    def read(self) -> Reading:
        """The kernel's figures."""
        memory = self._folders["memory"]
        if self.version == 2:
            cpu = _find_field(self._read(self._folders["cpu"] / "cpu.stat"), b"usage_usec")
            peak = memory / "memory.peak"
            used = int(self._read(peak if peak in self._figures or peak.exists() else memory / "memory.current"))
            return Reading(cpu, used, _find_field(self._read(memory / "memory.events"), b"oom_kill"))
        return Reading(
            int(self._read(self._folders["cpuacct"] / "cpuacct.usage")) // 1000,
            int(self._read(memory / "memory.max_usage_in_bytes")),
            _find_field(self._read(memory / "memory.oom_control"), b"oom_kill"),
        )

    def _read(self, path: Path) -> bytes:
        """A file of the kernel, which is opened once: it is read hundreds of times a second."""
        descriptor = self._figures.get(path)
        if descriptor is None:
            descriptor = self._figures[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(descriptor, _PAGE, 0)

    def kill(self) -> bool:
        """Kills everything in the group once, and says whether anything was there."""
        pids = self.get_pids()
        if pids and self.version == 2 and (self._unique[0] / "cgroup.kill").exists():
            _write(self._unique[0] / "cgroup.kill", "1")
            return True
        if pids and "pids" in self._folders:
            _write(self._folders["pids"] / "pids.max", "0", needed=False)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue  # gone, or another's by now
        return bool(pids)

    def get_pids(self) -> list[int]:
        """Processes in the group."""
        found: set[int] = set()
        for folder in self._unique:
            try:
                found.update(map(int, (folder / "cgroup.procs").read_text().split()))
            except FileNotFoundError:
                continue
        return sorted(found)

    def remove(self) -> bool:
        """Removes the folders; False where the kernel still finds someone in one."""
        while self._figures:
            os.close(self._figures.popitem()[1])
        left = [folder for folder in self._unique if not _remove(folder)]
        return not left


# ---- finding a tree ----


def get_family(pid: int) -> str:
    """The name below which a daemon keeps its groups: its process and when that started, in clock ticks since boot."""
    return f"{PREFIX}{pid}.{_get_start(pid)}"


def _get_start(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def find_tree(pid: int, *, mounts: str = _MOUNTS, own: str = _OWN) -> tuple[CgroupTree | None, str]:
    """The tree in which this process may make groups, or None and why not. Tries by making one."""
    try:
        mounted = _parse_mounts(Path(mounts).read_text())
        groups = _parse_own(Path(own).read_text())
    except OSError as error:
        return None, f"no cgroups: {error}"
    said = []
    for version, needed in ((2, _V2_NEEDED), (1, _V1_NEEDED)):
        folders = _locate(version, mounted, groups)
        if missing := [name for name in needed if name not in folders]:
            said.append(f"version {version}: no controller {', '.join(missing)}")
            continue
        tree = CgroupTree(version, tuple(sorted(folders.items())), get_family(pid))
        try:
            _try_out(tree, pid)
        except OSError as error:
            said.append(f"version {version}: {error.strerror} at {error.filename}")
            continue
        return tree, ""
    return None, "; ".join(said)


def _try_out(tree: CgroupTree, pid: int) -> None:
    if tree.version == 2:
        _delegate(Path(tree.folders[0][1]), Path(tree.folders[0][1]) / tree.family, pid)
    probe = tree.create("probe", _Unlimited())
    try:
        probe.read()
    finally:
        probe.remove()


class _Unlimited(msgspec.Struct, frozen=True):
    memory_bytes: int | None = 1 << 30
    processes: int | None = 64
    millicores: int | None = 1000


def _delegate(own: Path, family: Path, pid: int) -> None:
    """Version 2 allows no processes beside controlled groups: move ourselves into a leaf, then hand the controllers
    down.
    """
    leaf = own / f"{family.name}{_LEAF}"
    leaf.mkdir(exist_ok=True)
    _write(leaf / "cgroup.procs", str(pid))
    family.mkdir(exist_ok=True)
    for folder in (own, family):
        _write(folder / "cgroup.subtree_control", " ".join(f"+{name}" for name in _V2_NEEDED))


def _parse_mounts(text: str) -> dict[str, tuple[str, str]]:
    """Mount point and root by controller, from mountinfo; version 2 stands under the empty name."""
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind[0] == "cgroup2":
            found.setdefault("", (fields[4], fields[3]))
        elif kind[0] == "cgroup":
            for name in kind[2].split(","):
                found.setdefault(name, (fields[4], fields[3]))
    return found


def _parse_own(text: str) -> dict[str, str]:
    """Our own group by controller."""
    rows = (line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2)
    return {name: path for _, names, path in rows for name in names.split(",")}


def _locate(version: int, mounted: dict[str, tuple[str, str]], groups: dict[str, str]) -> dict[str, str]:
    """Our own folder by controller."""
    if version == 1:
        names = [name for name in ("memory", "pids", "cpu", "cpuacct") if name in mounted and name in groups]
        return {name: _join(*mounted[name], groups[name]) for name in names}
    if "" not in mounted or "" not in groups:
        return {}
    folder = _join(*mounted[""], groups[""])
    if os.path.basename(folder).startswith(PREFIX) and folder.endswith(_LEAF):
        folder = os.path.dirname(folder)  # we have moved ourselves into our leaf before
    try:
        controllers = (Path(folder) / "cgroup.controllers").read_text().split()
    except OSError:
        return {}
    return {name: folder for name in _V2_NEEDED if name in controllers}


def _join(point: str, root: str, path: str) -> str:
    """The folder of a group: its path is told from the hierarchy's root, of which a container may see only a part."""
    relative = path.removeprefix(root) if root != "/" else path
    return os.path.join(point, relative.lstrip("/"))


def sweep(tree: CgroupTree) -> int:
    """Kills and removes what daemons that are no more left below our own group. Returns the number of groups."""
    count = 0
    for folder in dict.fromkeys(folder for _, folder in tree.folders):
        for family in Path(folder).glob(f"{PREFIX}*"):
            pid, _, start = family.name.removeprefix(PREFIX).removesuffix(_LEAF).partition(".")
            if not pid.isdigit() or (start and _get_start(int(pid)) == start):
                continue
            for group in [*family.glob("*/"), family]:
                if group.is_dir():
                    count += _clear(Cgroup(1, {"": group}))
    return count


def _clear(group: Cgroup) -> bool:
    """Kills and removes; the kernel holds a group for a moment after its last process."""
    for _ in range(_PATIENCE):
        group.kill()
        if group.remove():
            return True
        time.sleep(0.005)
    return False


# ---- files of the kernel ----


def _write(path: Path, value: str, *, needed: bool = True) -> None:
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as error:
        if needed:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _find_field(text: bytes, name: bytes) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if key == name:
            return int(value)
    return 0


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
