"""The sandbox as data: every flag, limit, descriptor and step of teardown, before anything is carried out (threats.md
1.2, 1.3, 1.5).

Pure. Each measure carries the name of the guard it belongs to, so that a plan can be printed, tested and, by tests
alone, be made weaker by one guard (`Plan.without`). Nothing in the production path does that: `executor.Sandbox` always
carries out what `build_plan` returns.
"""

from __future__ import annotations

from typing import Final

import msgspec

from broker.protocol import folders
from broker.protocol.jobs import Entry
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.spec import Limits, Task

__all__ = ["CgroupLimits", "Flag", "HostCaps", "Plan", "Rlimit", "build_plan"]

HARNESS_PROCESSES: Final = 3
"""Process 1, the runner, and the segment itself are not the job's children."""
INSIDE_ID: Final = 1000
"""User and group the job sees itself as; what it is outside is `Plan.uid`."""
_ENTRY: Final = "from provider.sandbox.inside.init import main; main()"
_HASH_SEED: Final = "0"
"""The same for every job: Python takes it only when it starts, and it starts before its task is known (decision 0013).
"""
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_PAGE: Final = 4096
_SIGNALS: Final = 256
"""Queued signals and timers of a job: they are kernel memory."""


class Flag(msgspec.Struct, frozen=True):
    """One option of bubblewrap. An argument `@name` stands for the descriptor of that name."""

    guard: str
    args: tuple[str, ...]


class Rlimit(msgspec.Struct, frozen=True):
    """One rlimit, set by the runner on itself inside the user namespace."""

    guard: str
    name: str
    soft: int
    hard: int


class CgroupLimits(msgspec.Struct, frozen=True):
    """What the job's cgroup enforces; None: not limited."""

    memory_bytes: int | None
    processes: int | None
    millicores: int | None


NO_CGROUP_LIMITS: Final = CgroupLimits(None, None, None)


class HostCaps(msgspec.Struct, frozen=True):
    """What the host itself watches and ends a job for; None: not watched. `polled_bytes` only where no cgroup limits
    memory.
    """

    wall_ms: int | None
    cpu_ms: int | None
    log_bytes: int | None
    output_bytes: int | None
    output_count: int | None
    polled_bytes: int | None


NO_CAPS: Final = HostCaps(None, None, None, None, None, None)


class Plan(msgspec.Struct, frozen=True):
    """Everything there is to know about one sandbox."""

    arch: str
    bwrap: str
    uid: int | None
    """Kernel user and group to become before bubblewrap runs; None: stay who we are (trap 1)."""
    flags: tuple[Flag, ...]
    command: tuple[str, ...]
    memfd: bool
    unfiltered: tuple[str, ...]
    """Guards left out of the system call filter: none but in tests."""
    rlimits: tuple[Rlimit, ...]
    cgroup: CgroupLimits | None
    caps: HostCaps
    level: str
    launcher_environment: tuple[tuple[str, str], ...] = ()
    """Bubblewrap's own environment: empty, since `/proc/1/environ` would show it."""
    descriptors: tuple[tuple[str, str], ...] = (
        ("args", "read by bubblewrap: its options, so that no host path stands in a command line"),
        ("seccomp", "read by bubblewrap: the filter"),
        ("info", "written by bubblewrap: process 1 as the host sees it; read to its end and kept open"),
        (
            "task",
            "read by the runner: a descriptor of the inputs, closed before any code of the job is there; then the code",
        ),
        ("inputs", "nameless memory: the runner copies the file there and seals it; the job reads it"),
        ("frames", "written by the runner: segments and their outputs"),
    )
    teardown: tuple[str, ...] = (
        "wait for the whole of info",
        "pidfd_send_signal(process 1, SIGKILL)",
        "kill the cgroup",
        "wait for bubblewrap and for process 1",
        "remove the cgroup",
    )

    def without(self, guard: str) -> Plan:
        """The same plan less one guard. For controls in tests: what the guard is for must then happen."""
        caps = dict.fromkeys(_CAPS.get(guard, ()))
        limits = dict.fromkeys(_CGROUP.get(guard, ()))
        return msgspec.structs.replace(
            self,
            flags=tuple(flag for flag in self.flags if flag.guard != guard),
            rlimits=tuple(rlimit for rlimit in self.rlimits if rlimit.guard != guard),
            caps=msgspec.structs.replace(self.caps, **caps),
            cgroup=self.cgroup and msgspec.structs.replace(self.cgroup, **limits),
            unfiltered=(*self.unfiltered, guard),
            memfd=self.memfd or guard == "memory",
        )

    def compute_mould(self) -> Plan:
        """What stands of this plan before its task is known. Tasks whose plans have equal moulds may take the place of
        each other; limits, and the user, are given to a sandbox that stands.
        """
        return msgspec.structs.replace(
            self,
            uid=None,
            rlimits=(),
            cgroup=NO_CGROUP_LIMITS if self.cgroup is not None else None,
            caps=NO_CAPS,
        )

    def to_json(self) -> bytes:
        """The plan as people and tests read it."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


_CAPS: Final[dict[str, tuple[str, ...]]] = {
    "wall": ("wall_ms",),
    "cpu": ("cpu_ms",),
    "log": ("log_bytes",),
    "output": ("output_bytes", "output_count"),
    "memory": ("polled_bytes",),
}
_CGROUP: Final[dict[str, tuple[str, ...]]] = {
    "memory": ("memory_bytes",),
    "forks": ("processes",),
    "cpu": ("millicores",),
}


def build_plan(image: RuntimeImage, host: HostAbilities, task: Task, slot: int) -> Plan:
    """The plan for a task on a slot. `host` decides what can be used, never whether there is a sandbox."""
    limits = task.limits
    guarded = host.cgroup is not None
    environment = build_environment(task)
    return Plan(
        arch=host.arch,
        bwrap=host.bwrap,
        uid=None if host.uid_base is None else host.uid_base + slot,
        flags=(
            *_isolate(),
            *(Flag("environment-set", ("--setenv", name, value)) for name, value in environment),
            Flag("start", ("--setenv", "LD_BIND_NOW", "1")),
            *_mount(image, limits, measure_code(task), proc=host.proc),
        ),
        command=(
            f"/py/bin/python{image.python}",
            "-S",
            "-s",
            "-P",
            "-B",
            "-c",
            _ENTRY,
            "@task",
            "@frames",
            "@inputs",
            *list_preloaded(image, task),
        ),
        memfd=guarded,
        unfiltered=(),
        rlimits=_limit(limits, measure_code(task), guarded=guarded),
        cgroup=CgroupLimits(limits.memory_bytes, limits.processes + HARNESS_PROCESSES, limits.millicores)
        if guarded
        else None,
        caps=HostCaps(
            limits.wall_ms,
            limits.cpu_ms,
            limits.log_bytes,
            limits.output_bytes,
            limits.output_count,
            None if guarded else limits.memory_bytes,
        ),
        level=host.level or "none",
    )


def measure_code(task: Task) -> int:
    """Bytes that the files of a folder take in /job, beside what the job may write there. Raises `BadValue` where it is
    no folder whose files can be written.
    """
    if task.entry != Entry.FOLDER:
        return 0
    files = folders.unpack_folder(task.code)
    return sum(-(-len(data) // _PAGE) * _PAGE + name.count("/") * _PAGE for name, data in files.items())


def list_preloaded(image: RuntimeImage, task: Task) -> tuple[str, ...]:
    """Modules that are loaded before the task comes, so that it need not wait for them, nor each segment load them
    anew: cloudpickle for a function, and NumPy where the code speaks of it. With more than one core NumPy would start
    threads, which no fork takes along.
    """
    found = ["cloudpickle"] if task.entry == Entry.FUNCTION else []
    if b"numpy" in task.code and task.limits.cores == 1 and any(name == "numpy" for name, _ in image.packages):
        found.append("numpy")
    return tuple(found)


def build_environment(task: Task) -> tuple[tuple[str, str], ...]:
    """All the environment a job has; `LD_BIND_NOW`, which spares each fork the search for symbols, is taken out before
    it runs.
    """
    threads = str(task.limits.cores)
    return (
        ("PATH", "/py/bin"),
        ("HOME", "/job"),
        ("TMPDIR", "/tmp"),
        ("LANG", "C.UTF-8"),
        ("TZ", "UTC"),
        ("LD_LIBRARY_PATH", "/lib"),
        ("PYTHONPATH", "/sp"),
        ("PYTHONUTF8", "1"),
        ("PYTHONHASHSEED", _HASH_SEED),
        *((f"{library}_NUM_THREADS", threads) for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")),
    )


def _isolate() -> list[Flag]:
    return [
        Flag("user", ("--unshare-user",)),
        Flag("user", ("--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID))),
        Flag("namespaces", ("--disable-userns",)),
        Flag("ipc", ("--unshare-ipc",)),
        Flag("processes", ("--unshare-pid", "--as-pid-1")),
        Flag("network", ("--unshare-net",)),
        Flag("hostname", ("--unshare-uts", "--hostname", "tallystick")),
        Flag("cgroups", ("--unshare-cgroup-try",)),
        Flag("parent", ("--die-with-parent",)),
        Flag("terminal", ("--new-session",)),
        Flag("capabilities", ("--cap-drop", "ALL")),
        Flag("environment", ("--clearenv",)),
        Flag("seccomp", ("--seccomp", "@seccomp")),
        Flag("info", ("--info-fd", "@info")),
    ]


def _mount(image: RuntimeImage, limits: Limits, code: int, *, proc: bool) -> list[Flag]:
    """What the job sees as files. The root is bubblewrap's own tmpfs and is made read-only last: it would take half of
    all memory.
    """
    flags = [
        Flag("runtime", ("--ro-bind", f"{image.path}/py", "/py")),
        Flag("runtime", ("--ro-bind", f"{image.path}/sp", "/sp")),
        Flag("runtime", ("--ro-bind", f"{image.path}/lib", "/lib")),
        Flag("runtime", ("--symlink", "lib", "/lib64")),
        Flag("devices", ("--tmpfs", "/dev")),
        *(Flag("devices", ("--dev-bind", f"/dev/{name}", f"/dev/{name}")) for name in _DEVICES),
        Flag("devices", ("--size", str(max(_PAGE, limits.shm_bytes)), "--perms", "1777", "--tmpfs", "/dev/shm")),
        Flag("job", ("--size", str(max(_PAGE, limits.tmp_bytes + code)), "--perms", "0700", "--tmpfs", "/job")),
        Flag("job", ("--symlink", "job", "/tmp", "--chdir", "/job")),
    ]
    if proc:
        flags += [
            Flag("proc", ("--proc", "/proc")),
            Flag("proc", ("--symlink", "/proc/self/fd", "/dev/fd")),
            *(
                Flag("proc", ("--symlink", f"/proc/self/fd/{n}", f"/dev/std{name}"))
                for n, name in enumerate(("in", "out", "err"))
            ),
            Flag("read-only", ("--remount-ro", "/proc")),
        ]
    return [*flags, Flag("read-only", ("--remount-ro", "/dev")), Flag("read-only", ("--remount-ro", "/"))]


def _limit(limits: Limits, code: int, *, guarded: bool) -> tuple[Rlimit, ...]:
    seconds = -(-limits.cpu_ms // 1000)
    processes = limits.processes + HARNESS_PROCESSES
    longest = max(limits.tmp_bytes, limits.shm_bytes, code)
    rows = [
        Rlimit("forks", "RLIMIT_NPROC", processes, processes),
        Rlimit("files", "RLIMIT_NOFILE", limits.open_files, limits.open_files),
        Rlimit("cpu", "RLIMIT_CPU", seconds, seconds + 1),
        Rlimit("job", "RLIMIT_FSIZE", longest, longest),
        Rlimit("signals", "RLIMIT_SIGPENDING", _SIGNALS, _SIGNALS),
        Rlimit("core", "RLIMIT_CORE", 0, 0),
        Rlimit("memory", "RLIMIT_MEMLOCK", 0, 0),
        Rlimit("ipc", "RLIMIT_MSGQUEUE", 0, 0),
    ]
    # Without a cgroup each process is bounded by itself, and their sum is polled.
    return tuple(
        rows if guarded else [*rows, Rlimit("memory", "RLIMIT_DATA", limits.memory_bytes, limits.memory_bytes)]
    )
