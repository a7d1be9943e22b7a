"""Starts bubblewrap as a plan says and hands back the descriptors to talk through. Dull: every decision stands in the
plan.

Start only from a thread that lives as long as the job: `--die-with-parent` watches the thread that forked (threats.md
1.2).
"""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import subprocess
from collections.abc import Mapping
from typing import Final

from provider.sandbox.plan import Plan
from provider.sandbox.seccomp import assemble, build_filter

__all__ = ["Launched", "launch"]

_PIPE_BYTES: Final = 1 << 20
"""A larger pipe saves wakes; the kernel refuses more than this to ordinary users, and what it refuses is left as it is.
"""


class Launched:
    """A bubblewrap that was started. All descriptors are ours to close; those with data are non-blocking."""

    def __init__(self, process: subprocess.Popen[bytes], ends: Mapping[str, int]) -> None:
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.ends = dict(ends)

    def pass_file(self, file: int) -> None:
        """Gives the runner a descriptor, as the first thing it hears. It stays the caller's too."""
        with socket.socket(fileno=os.dup(self.ends["task"])) as channel:
            socket.send_fds(channel, [b"f"], [file])

    def close(self, *names: str) -> None:
        """Closes descriptors by name; without names, all. Closing twice is no error."""
        for name in names or (*self.ends,):
            descriptor = self.ends.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
        if not names and self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


@functools.lru_cache(maxsize=16)
def _get_filter(arch: str, memfd: bool, unfiltered: tuple[str, ...]) -> bytes:
    return assemble(build_filter(arch, memfd=memfd, without=frozenset(unfiltered)))


def launch(plan: Plan) -> Launched:
    """Starts the plan's bubblewrap; its runner waits for a task. Raises OSError where nothing can be started."""
    theirs: dict[str, int] = {}
    ours: dict[str, int] = {}
    try:
        theirs["inputs"] = os.memfd_create("inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        for name in ("args", "seccomp"):
            theirs[name], ours[name] = os.pipe()
        theirs["task"], ours["task"] = (end.detach() for end in socket.socketpair())
        for name in ("info", "frames", "out", "err"):
            ours[name], theirs[name] = os.pipe()
        process = _spawn(plan, theirs, ours)
        for name in ("task", "info", "frames", "out", "err"):
            os.set_blocking(ours[name], False)
        launched = Launched(process, ours)
    except BaseException:
        for descriptor in ours.values():
            os.close(descriptor)
        raise
    finally:
        for descriptor in theirs.values():
            os.close(descriptor)
    return launched


def _spawn(plan: Plan, theirs: dict[str, int], ours: dict[str, int]) -> subprocess.Popen[bytes]:
    options = [_name(arg, theirs) for flag in plan.flags for arg in flag.args]
    os.write(ours["args"], b"".join(option.encode() + b"\0" for option in options))
    os.write(ours["seccomp"], _get_filter(plan.arch, plan.memfd, plan.unfiltered))
    for name in ("args", "seccomp"):
        os.close(ours.pop(name))
    for name in ("out", "err"):
        if plan.uid is not None:
            os.fchown(theirs[name], plan.uid, plan.uid)  # so that the job may open /dev/stdout
    _widen(theirs["frames"])
    return subprocess.Popen(
        [plan.bwrap, "--args", str(theirs["args"]), "--", *(_name(arg, theirs) for arg in plan.command)],
        stdin=subprocess.DEVNULL,
        stdout=theirs["out"],
        stderr=theirs["err"],
        pass_fds=tuple(theirs[name] for name in ("args", "seccomp", "task", "info", "frames", "inputs")),
        env=dict(plan.launcher_environment),
        cwd="/",
        user=plan.uid,
        group=plan.uid,
        extra_groups=None if plan.uid is None else [],
    )


def _name(argument: str, descriptors: Mapping[str, int]) -> str:
    """`@name` becomes the number of that descriptor."""
    return str(descriptors[argument[1:]]) if argument.startswith("@") else argument


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        pass
